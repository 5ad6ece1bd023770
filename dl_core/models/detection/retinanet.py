"""RetinaNet: one head, the same on every map of a pyramid, says all in one step.

Lin, Goyal, Girshick, He & Dollár, "Focal loss for dense object detection", ICCV 2017,
section 4. Of two small convolutional subnets one answers for each anchor and class
whether such an object is there (a sigmoid each: there is no class "background"), the
other says how the anchor is to be moved onto it. Both are shared by all maps, so that
an object is learned at one size and known at every.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dl_core.config import config, static, traced
from dl_core.models.detection.trunk import (
    Backbone,
    ConvNorm,
    Pyramid,
    Trunk,
    prior_bias,
    shapes,
)
from dl_core.nn.conv import Conv
from dl_core.ops.anchors import pyramid
from dl_core.ops.box_coders import FasterRCNN
from dl_core.ops.boxes import Detections, clip, pairwise_iou
from dl_core.ops.conv_lowerings import Lowering
from dl_core.ops.losses import smooth_l1
from dl_core.ops.matching import IGNORED, match
from dl_core.ops.nms import suppress

CODER = FasterRCNN(weights=(1.0, 1.0, 1.0, 1.0))
"""Codes of a box: offsets in sides of its anchor, logarithms of the sides' ratios."""
BETA = 1 / 9
"""Where smooth l1 turns from square to linear: what the authors' code has."""


@config
class Head:
    """The anchors, the subnets, and which anchors learn which objects."""

    strides: tuple[int, ...] = static(
        (4, 8, 16), "Pixels of the image per position of each map."
    )
    scale: float = static(2.5, "Smallest side of an anchor, in strides.", above=0)
    octaves: int = static(3, "Sizes of anchors from there to its double.", at_least=1)
    ratios: tuple[float, ...] = static((1.0,), "Heights of anchors over their widths.")
    convolutions: int = static(2, "3×3 convolutions of a subnet.", at_least=0)
    prior: float = traced(
        0.01, "Probability of an object that all anchors begin with.", above=0, below=1
    )
    positive: float = traced(
        0.5, "IoU from which on an anchor learns an object.", above=0, at_most=1
    )
    negative: float = traced(
        0.4, "IoU with all objects below which it is background.", above=0, at_most=1
    )

    def anchors(self, size: tuple[int, int]) -> Float[np.ndarray, "anchors 4"]:
        """Returns the anchors of an image of this height and width: xyxy, in pixels."""
        return pyramid(
            shapes(size, self.strides),
            self.strides,
            scale=self.scale,
            octaves=self.octaves,
            ratios=self.ratios,
        )


class RetinaNet(nn.Module):
    """Images to the logits and the codes of every anchor."""

    trunk: Trunk
    head: Head
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> tuple[Float[Array, "batch anchors classes"], Float[Array, "batch anchors 4"]]:
        """Returns the logit of each class, and codes, in the order of `Head.anchors`.

        Args:
          images: normalised.
          train: passed on to the trunk.
        """
        lowering, features = self.trunk.lowering, self.trunk.features
        maps = Backbone(self.trunk, name="backbone")(images, train=train)
        maps = Pyramid(features, lowering, name="pyramid")(maps, self.head.strides)
        anchors = self.head.octaves * len(self.head.ratios)
        depth, bias = self.head.convolutions, prior_bias(self.head.prior)
        said = []
        for name, each, bias_init in (
            ("classify", self.classes, bias),
            ("locate", 4, nn.initializers.zeros_init()),
        ):
            subnet = Subnet(
                features, depth, anchors * each, bias_init, lowering, name=name
            )
            levels = [subnet(x).reshape(len(x), -1, each) for x in maps.values()]
            said.append(jnp.concatenate(levels, axis=1))
        return tuple(said)


class Subnet(nn.Module):
    """Convolutions of 3×3, the last of which gives the outputs of a place's anchors.

    Unlike in the paper all but the last are normalised, as without pretraining it takes
    (the same way as the trunk, in groups of channels).
    """

    features: int
    depth: int
    outputs: int
    bias_init: nn.initializers.Initializer
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w channels"]
    ) -> Float[Array, "batch h w outputs"]:
        """Returns the outputs at each place."""
        for _ in range(self.depth):
            x = nn.relu(ConvNorm(self.features, lowering=self.lowering)(x))
        return Conv(
            self.outputs,
            3,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=self.bias_init,
            lowering=self.lowering,
        )(x)


class Wanted(NamedTuple):
    """What the anchors of an image are to say."""

    classes: Bool[Array, "*batch anchors classes"]
    codes: Float[Array, "*batch anchors 4"]
    objects: Bool[Array, "*batch anchors"]
    """Which learn an object; only their codes are read."""
    counted: Bool[Array, "*batch anchors"]
    """Which learn anything: not those whose overlap is neither much nor little."""


def assign(
    head: Head,
    anchors: Float[Array, "anchors 4"],
    boxes: Float[Array, "objects 4"],
    labels: Int[Array, " objects"],
    classes: int,
) -> Wanted:
    """Returns what the anchors of one image learn.

    The anchor that overlaps an object most learns it too, however little that is.

    Args:
      head: the thresholds.
      anchors: xyxy, in pixels.
      boxes: of the objects, likewise.
      labels: of the objects; -1 where there is none.
      classes: their number.
    """
    overlaps = pairwise_iou(anchors, boxes)
    matched = match(
        overlaps, labels >= 0, head.positive, head.negative, low_quality=True
    )
    objects = matched >= 0
    label = jnp.where(objects, labels[matched], -1)
    # Where there is no object, the code of a padded box would be infinite.
    codes = CODER.encode(jnp.where(objects[:, None], boxes[matched], anchors), anchors)
    return Wanted(
        label[:, None] == jnp.arange(classes), codes, objects, matched != IGNORED
    )


def location_loss(
    codes: Float[Array, "batch anchors 4"], wanted: Wanted
) -> Float[Array, ""]:
    """Returns smooth l1 of the codes, a mean over the anchors that learn an object.

    Args:
      codes: what the anchors say.
      wanted: what they are to say.
    """
    errors = smooth_l1(codes - wanted.codes, BETA).sum(-1)
    return jnp.sum(errors, where=wanted.objects) / count(wanted)


def count(wanted: Wanted) -> Float[Array, ""]:
    """Returns how many anchors learn an object, at least 1: what losses are divided by.

    Args:
      wanted: of all images of a batch.
    """
    return jnp.maximum(wanted.objects.sum(), 1).astype(jnp.float32)


def detections(
    logits: Float[Array, "batch anchors classes"],
    codes: Float[Array, "batch anchors 4"],
    anchors: Float[Array, "anchors 4"],
    size: tuple[int, int],
) -> Detections:
    """Returns the objects found in each image, by the paper's thresholds.

    Boxes of a score above 0.05 are suppressed, class by class, where their IoU with
    a better one is above 0.5.

    Args:
      logits: of each anchor and class.
      codes: of each anchor.
      anchors: xyxy, in pixels.
      size: height and width of the image, to which boxes are clipped.
    """
    decode = jax.vmap(CODER.decode, (0, None))
    boxes = clip(decode(codes, anchors), size)
    return suppress(boxes, jax.nn.sigmoid(logits), iou=0.5, least=0.05)
