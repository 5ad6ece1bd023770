"""What Fast R-CNN and Faster R-CNN share: regions of a feature map, classified.

Girshick, "Fast R-CNN", ICCV 2015. Each region is pooled to one size; two dense layers
see it, and say its class (or that it is background) and, for each class, how its box
is to be moved. Both losses are of a sample of regions, a quarter of them objects'.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from dl_core.config import config, static, traced
from dl_core.models.detection.trunk import Backbone, Pyramid, Trunk
from dl_core.ops.box_coders import FasterRCNN
from dl_core.ops.boxes import Detections, clip, pairwise_iou
from dl_core.ops.losses import smooth_l1
from dl_core.ops.matching import balanced, match
from dl_core.ops.nms import suppress
from dl_core.ops.roi import roi_align, roi_pool
from dl_core.train.metrics import Mean

Pooling = Literal["pool", "align", "align_shifted"]


@config
class RoIHead:
    """The head on regions of interest (RoIs), its training, and what it keeps."""

    stride: Literal[4, 8, 16, 32] = static(
        4, "Pixels of the input between places of the features."
    )
    pooling: Pooling = static(
        "align", "RoI pooling, RoI align, or RoI align off by half a pixel."
    )
    pooled: int = static(5, "Bins along each side of a region.", at_least=1)
    width: int = static(128, "Units of each of two dense layers.", at_least=1)
    samples: int = static(64, "Regions of an image in the loss.", at_least=1)
    share: float = static(0.25, "Most of them that are objects'.", above=0)
    positive: float = traced(
        0.5, "IoU from which on a region is an object's.", above=0, at_most=1
    )
    background: float = traced(
        0.1, "IoU with an object that background has at least.", at_least=0
    )
    iou: float = traced(
        0.3, "IoU above which the lower of two detections is suppressed.", above=0
    )
    least: float = traced(0.05, "Least score of a detection.", at_least=0)
    most: int = static(100, "Most detections in an image.", at_least=1)

    @property
    def coder(self) -> FasterRCNN:
        """Codes of boxes whose spread is about 1."""
        return FasterRCNN(weights=(10.0, 10.0, 5.0, 5.0))


class Proposals(NamedTuple):
    """Boxes that may hold an object, and which of them are there (the others are 0)."""

    boxes: Float[Array, "*batch p 4"]
    mask: Bool[Array, "*batch p"]


class Regions(NamedTuple):
    """The regions of one image that are trained on, and what is to be said of them."""

    boxes: Float[Array, "n 4"]
    labels: Int[Array, " n"]
    """The class; the number of classes for background."""
    targets: Float[Array, "n 4"]
    """Codes of the objects' boxes; 0 for background."""
    weights: Float[Array, " n"]
    """0 where the image has too few regions."""


class FeatureMap(nn.Module):
    """The features of whole images that regions are pooled from.

    They are one map of a feature pyramid: as fine as small cells need, and yet each
    place sees as much of the image as in the papers' networks.
    """

    trunk: Trunk
    stride: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> Float[Array, "batch h w channels"]:
        """Returns the map of the chosen stride, rectified."""
        maps = Backbone(self.trunk)(images, train=train)
        pyramid = Pyramid(self.trunk.features, self.trunk.lowering)
        return nn.relu(pyramid(maps, (self.stride,))[self.stride])


class RegionClassifier(nn.Module):
    """Pools regions and classifies them; its dense layers are named as in the paper."""

    head: RoIHead
    classes: int

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "batch h w channels"],
        boxes: Float[Array, "batch n 4"],
    ) -> tuple[Float[Array, "batch n logits"], Float[Array, "batch n classes 4"]]:
        """Returns the logits, background's last, and a code for each class."""
        x = pool(self.head, features, boxes)
        x = x.reshape(*boxes.shape[:2], -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.head.width, name=name)(x))
        small, smaller = nn.initializers.normal(0.01), nn.initializers.normal(0.001)
        logits = nn.Dense(self.classes + 1, kernel_init=small, name="class")(x)
        codes = nn.Dense(4 * self.classes, kernel_init=smaller, name="boxes")(x)
        return logits, codes.reshape(*boxes.shape[:2], self.classes, 4)


def pool(
    head: RoIHead,
    features: Float[Array, "batch h w channels"],
    boxes: Float[Array, "batch n 4"],
) -> Float[Array, "batch n pooled pooled channels"]:
    """Returns each region, pooled to one size.

    RoI align has two points along each side of a bin, as Mask R-CNN.

    Args:
      head: how.
      features: of each image.
      boxes: xyxy, in pixels of the input; as many in each image.
    """

    def one(features, boxes):
        size = {"output_size": head.pooled, "spatial_scale": 1 / head.stride}
        if head.pooling == "pool":
            return roi_pool(features, boxes, **size)
        aligned = head.pooling == "align"
        return roi_align(features, boxes, **size, sampling_ratio=2, aligned=aligned)

    return jax.vmap(one)(features, boxes)


def sample(
    head: RoIHead,
    proposals: Proposals,
    boxes: Float[Array, "truths 4"],
    labels: Int[Array, " truths"],
    classes: int,
    key: Any,
) -> Regions:
    """Returns regions of one image to train on: of its proposals and its objects.

    Args:
      head: how many, and which are objects' and which background.
      proposals: of the image.
      boxes: of the objects, which are added to the proposals.
      labels: of the objects; -1 where there is none.
      classes: how many there are; background's label.
      key: of the sample.
    """
    candidates = jax.lax.stop_gradient(jnp.concatenate([proposals.boxes, boxes]))
    there = jnp.concatenate([proposals.mask, labels >= 0])
    overlaps = pairwise_iou(candidates, boxes)
    matched = match(
        overlaps, labels >= 0, head.positive, head.positive, low_quality=False
    )
    most = jnp.max(jnp.where(labels >= 0, overlaps, 0), axis=-1, initial=0)
    unused = ~there | ((matched == -1) & (most < head.background))
    matched = jnp.where(unused, -2, matched)
    weights = balanced(key, matched, head.samples, head.share).astype(jnp.float32)
    weights, chosen = jax.lax.top_k(weights, min(head.samples, len(weights)))
    regions, truth = candidates[chosen], matched[chosen]
    positive, truth = truth >= 0, jnp.maximum(truth, 0)
    return Regions(
        regions,
        jnp.where(positive, labels[truth], classes),
        jnp.where(positive[:, None], head.coder.encode(boxes[truth], regions), 0),
        weights,
    )


def losses(
    logits: Float[Array, "*shape logits"],
    codes: Float[Array, "*shape classes 4"],
    regions: Regions,
) -> dict[str, Float[Array, ""]]:
    """Returns the mean cross-entropy of regions, "class", and smooth l1, "boxes".

    Smooth l1 is that of the code of the region's own class; both are divided by the
    number of sampled regions, as background has no box.

    Args:
      logits: of each region; background's last.
      codes: of each region for each class.
      regions: what is right.
    """
    classes = codes.shape[-2]
    count = jnp.maximum(regions.weights.sum(), 1)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, regions.labels)
    own = jnp.minimum(regions.labels, classes - 1)[..., None, None]
    code = jnp.take_along_axis(codes, own, axis=-2)[..., 0, :]
    errors = smooth_l1(code - regions.targets, 1.0).sum(-1)
    objects = regions.weights * (regions.labels < classes)
    return {
        "class": jnp.sum(regions.weights * entropy) / count,
        "boxes": jnp.sum(objects * errors) / count,
    }


def detections(
    head: RoIHead,
    logits: Float[Array, "batch n logits"],
    codes: Float[Array, "batch n classes 4"],
    proposals: Proposals,
    size: tuple[int, int],
) -> Detections:
    """Returns what is found in each image: boxes suppressed class by class.

    Args:
      head: how much may overlap, and how many are kept.
      logits: of each region; background's last.
      codes: of each region for each class.
      proposals: the regions.
      size: height and width of the input, in pixels.
    """
    likely = jax.nn.softmax(logits)[..., :-1]
    scores = jnp.where(proposals.mask[..., None], likely, -1)
    anchors = jnp.broadcast_to(proposals.boxes[..., None, :], codes.shape)
    boxes = head.coder.decode(codes, anchors)
    return suppress(
        clip(boxes, size), scores, iou=head.iou, least=head.least, most=head.most
    )


NUMBERS = (1, 3, 10, 30, 100, 300)
"""Of how many proposals the recall is measured."""


def recall(proposals: Proposals, batch: Mapping[str, Array], iou: float = 0.5) -> Mean:
    """Returns the share of all objects that the first few proposals find: a metric.

    Args:
      proposals: of each image, best first.
      batch: `boxes`, `labels` and `mask` of an evaluation set.
      iou: overlap from which on an object is found.

    Returns:
      Of the first 1, 3, 10, … proposals, as `NUMBERS` has them.
    """
    valid = (batch["labels"] >= 0) & (batch["mask"] > 0)[:, None]
    overlaps = jax.vmap(pairwise_iou)(batch["boxes"], proposals.boxes)
    overlaps = jnp.where(proposals.mask[:, None], overlaps, 0)
    best = jax.lax.cummax(overlaps, axis=2)
    last = jnp.minimum(jnp.array(NUMBERS), best.shape[2]) - 1
    found = jnp.sum(valid[..., None] & (best[..., last] >= iou), axis=(0, 1))
    count = jnp.broadcast_to(valid.sum(), found.shape)
    return Mean(found.astype(jnp.float32), count.astype(jnp.float32))
