"""The region proposal network: boxes that may hold an object, of whatever class.

Ren, He, Girshick & Sun, "Faster R-CNN: towards real-time object detection with region
proposal networks", NIPS 2015. At each place of a feature map stand anchors of several
sizes and shapes; a small convolutional head says of each whether there is an object,
and how the anchor is to be moved onto it. Everything has a static shape: of one image
come always `after` proposals, of which a mask says which are there.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dl_core.config import config, static, traced
from dl_core.models.detection.fast_rcnn import Proposals
from dl_core.nn.conv import Conv
from dl_core.ops.anchors import grid
from dl_core.ops.box_coders import FasterRCNN
from dl_core.ops.boxes import area, clip, pairwise_iou
from dl_core.ops.losses import smooth_l1
from dl_core.ops.matching import balanced, match
from dl_core.ops.nms import nms

CODER = FasterRCNN(weights=(1.0, 1.0, 1.0, 1.0))
"""Codes of a box: offsets in sides of its anchor, logarithms of the sides' ratios."""
BETA = 1 / 9
"""Where smooth l1 turns from square to linear: what the authors' code has."""


@config
class RPN:
    """The region proposal network, its training and what it proposes."""

    width: int = static(32, "Channels of its 3×3 convolution.", at_least=1)
    sizes: tuple[float, ...] = static(
        (10.0, 25.0, 50.0), "Roots of the anchors' areas, in pixels of the input."
    )
    ratios: tuple[float, ...] = static(
        (1.0,), "Heights of the anchors over their widths."
    )
    positive: float = traced(
        0.7, "IoU from which on an anchor is an object's.", above=0, at_most=1
    )
    negative: float = traced(
        0.3, "IoU with all objects below which an anchor is background.", above=0
    )
    inside: bool = static(
        False, "Whether to train only on anchors that lie in the image."
    )
    samples: int = static(256, "Anchors of an image in the loss.", at_least=1)
    share: float = static(0.5, "Share of objects' anchors among them.", above=0)
    before: int = static(
        1_000, "Best boxes of an image that enter suppression.", at_least=1
    )
    after: int = static(100, "Proposals of an image that leave it.", at_least=1)
    iou: float = traced(
        0.7, "IoU above which the lower of two boxes is suppressed.", above=0
    )


class RPNHead(nn.Module):
    """A 3×3 convolution, and of it the score and the code of each anchor."""

    rpn: RPN

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch h w channels"]
    ) -> tuple[Float[Array, "batch anchors"], Float[Array, "batch anchors 4"]]:
        """Returns logits of "there is an object", and codes, in the anchors' order."""
        per_place, batch = len(self.rpn.sizes) * len(self.rpn.ratios), len(features)
        small = nn.initializers.normal(0.01)
        x = nn.relu(Conv(self.rpn.width, 3, name="shared")(features))
        logits = Conv(per_place, 1, kernel_init=small, name="objectness")(x)
        codes = Conv(4 * per_place, 1, kernel_init=small, name="boxes")(x)
        return logits.reshape(batch, -1), codes.reshape(batch, -1, 4)


def anchors_of(
    rpn: RPN, features: Float[Array, "batch h w channels"], stride: int
) -> Float[Array, "anchors 4"]:
    """Returns the anchors of a feature map.

    Args:
      rpn: their sizes and shapes.
      features: the map; only its shape is read.
      stride: pixels of the input between its places.
    """
    shape = features.shape[1:3]
    return jnp.asarray(grid(shape, stride, rpn.sizes, rpn.ratios))


def propose(
    rpn: RPN,
    logits: Float[Array, "batch anchors"],
    codes: Float[Array, "batch anchors 4"],
    anchors: Float[Array, "anchors 4"],
    size: tuple[int, int],
) -> Proposals:
    """Returns the proposals of each image, through which no gradient goes.

    The best anchors are decoded and clipped to the image, overlapping ones suppressed.

    Args:
      rpn: how many.
      logits: of each anchor.
      codes: likewise.
      anchors: xyxy, in pixels of the input.
      size: height and width of the input, in pixels.
    """
    logits, codes = jax.lax.stop_gradient((logits, codes))
    best, at = jax.lax.top_k(logits, min(rpn.before, len(anchors)))
    codes = jnp.take_along_axis(codes, at[..., None], axis=1)
    boxes = clip(CODER.decode(codes, anchors[at]), size)
    best = jnp.where(area(boxes) > 0, best, -jnp.inf)
    kept, mask = nms(boxes, best, rpn.iou, rpn.after)
    boxes = jnp.take_along_axis(boxes, kept[..., None], axis=1)
    return Proposals(jnp.where(mask[..., None], boxes, 0), mask)


def losses(
    rpn: RPN,
    logits: Float[Array, " anchors"],
    codes: Float[Array, "anchors 4"],
    anchors: Float[Array, "anchors 4"],
    boxes: Float[Array, "truths 4"],
    labels: Int[Array, " truths"],
    size: tuple[int, int],
    key: Any,
) -> dict[str, Float[Array, ""]]:
    """Returns the two losses of one image, "objectness" and "proposal_boxes".

    Cross-entropy over a sample of anchors, and smooth l1 over those of them that are an
    object's, each divided by the size of the sample.

    Args:
      rpn: which anchors are whose, and how many are sampled.
      logits: of each anchor.
      codes: likewise.
      anchors: xyxy, in pixels of the input.
      boxes: of the objects.
      labels: of the objects; -1 where there is none.
      size: height and width of the input, in pixels.
      key: of the sample.
    """
    overlaps = pairwise_iou(anchors, boxes)
    matched = match(overlaps, labels >= 0, rpn.positive, rpn.negative, low_quality=True)
    if rpn.inside:
        whole = jnp.all(clip(anchors, size) == anchors, axis=-1)
        matched = jnp.where(whole, matched, -2)
    sampled = balanced(key, matched, rpn.samples, rpn.share).astype(jnp.float32)
    count = jnp.maximum(sampled.sum(), 1)
    positive = matched >= 0
    entropy = optax.sigmoid_binary_cross_entropy(logits, positive.astype(jnp.float32))
    targets = CODER.encode(boxes[jnp.maximum(matched, 0)], anchors)
    # Where there is no object the code may be infinite: kept out of the gradient too.
    errors = jnp.where(positive[:, None], codes - targets, 0)
    return {
        "objectness": jnp.sum(sampled * entropy) / count,
        "proposal_boxes": jnp.sum(sampled * smooth_l1(errors, BETA).sum(-1)) / count,
    }
