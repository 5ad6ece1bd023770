"""R-CNN: regions are warped to one size, each is seen by a network, its boxes moved.

Girshick, Donahue, Darrell & Malik, "Rich feature hierarchies for accurate object
detection and semantic segmentation", CVPR 2014. The machines that classify are in
`dl_core.models.detection.rcnn_svm`. Numbers that the paper leaves out are those of the
authors' code.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dl_core.config import config, static, traced
from dl_core.metrics.detection import Detected
from dl_core.models.detection import fast_rcnn
from dl_core.models.detection.fast_rcnn import Proposals, Regions, RoIHead
from dl_core.models.detection.trunk import ConvNorm, Residual, Trunk
from dl_core.ops.augment import affine, warp
from dl_core.ops.box_coders import FasterRCNN
from dl_core.ops.boxes import Detections, clip, pairwise_iou
from dl_core.ops.nms import suppress

NORM = 20.0
"""Mean norm that features are scaled to, which C and λ are meant for."""

_CODER = FasterRCNN(weights=(1.0, 1.0, 1.0, 1.0))


@config
class RegionNet:
    """The network that sees warped regions, and what of its answers is kept."""

    size: int = static(32, "Pixels of a side of a warped region.", at_least=8)
    context: int = static(
        2, "Pixels of these on each side that are around the box.", at_least=0
    )
    width: int = static(128, "Units of each of two dense layers.", at_least=1)
    samples: int = static(32, "Regions of an image in a step.", at_least=1)
    share: float = static(0.25, "Most of them that are objects'.", above=0, at_most=1)
    positive: float = traced(
        0.5, "IoU from which on a region is an object's.", above=0, at_most=1
    )
    iou: float = traced(
        0.3, "IoU above which the lower of two detections is suppressed.", above=0
    )
    least: float = traced(0.05, "Least score of a detection.", at_least=0)
    most: int = static(100, "Most detections in an image.", at_least=1)


@config
class BoxRidge:
    """Boxes are moved by ridge regression, class by class (the paper's appendix C)."""

    steps: int = static(26, "Batches of images that it is fitted to.", at_least=1)
    iou: float = traced(
        0.6, "IoU from which on a proposal is to be moved.", above=0, at_most=1
    )
    ridge: float = traced(1_000.0, "λ: the price of the squared weights.", above=0)


class Seen(NamedTuple):
    """What the network makes of regions."""

    pool5: Float[Array, "*regions pooled"]
    """The last features that know of places, flattened."""
    fc7: Float[Array, "*regions width"]
    logits: Float[Array, "*regions logits"]
    """Of each class; background's last."""


class RegionClassifier(nn.Module):
    """The trunk's first stages on warped regions, and two dense layers."""

    trunk: Trunk
    width: int
    classes: int

    @nn.compact
    def __call__(self, warped: Float[Array, "n side side 3"]) -> Seen:
        """Returns the features and the logits of each region."""
        how = {"stride": 2, "lowering": self.trunk.lowering}
        x = nn.relu(ConvNorm(self.trunk.width, **how)(warped))
        for factor in (2, 4):
            x = Residual(factor * self.trunk.width, **how)(x)
        pool5 = x.reshape(len(x), -1)
        fc6 = nn.relu(nn.Dense(self.width, name="fc6")(pool5))
        fc7 = nn.relu(nn.Dense(self.width, name="fc7")(fc6))
        small = nn.initializers.normal(0.01)
        return Seen(pool5, fc7, nn.Dense(self.classes + 1, kernel_init=small)(fc7))


def warp_regions(
    image: Float[Array, "height width 3"],
    boxes: Float[Array, "n 4"],
    size: int,
    context: int,
) -> Float[Array, "n {size} {size} 3"]:
    """Returns each region of an image, stretched to a square whatever its shape is.

    What is outside of the image has its mean colour.

    Args:
      image: with any values.
      boxes: xyxy in its pixels; sides below a pixel count as one.
      size: pixels of a side of the result.
      context: pixels of the result, on each side, that show what is around the box.

    Raises:
      ValueError: if there is nothing but context.
    """
    if size <= 2 * context:
        raise ValueError(f"warp_regions: {context} pixels around leave none of {size}")
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = jnp.maximum(boxes[:, 2:] - boxes[:, :2], 1) / 2 * size / (size - 2 * context)
    fill = image.mean((0, 1))

    def one(frame):
        shape = (size, size)
        return warp(image, affine.crop(frame, shape), shape, fill=fill)

    return jax.vmap(one)(jnp.concatenate([center - half, center + half], axis=1))


def look(
    settings: RegionNet,
    trunk: Trunk,
    classes: int,
    params: Any,
    images: Float[Array, "batch height width 3"],
    boxes: Float[Array, "batch n 4"],
) -> Seen:
    """Returns what the network makes of the regions of each image.

    Args:
      settings: how regions are warped, and the network.
      trunk: likewise.
      classes: how many, without the background.
      params: of `RegionClassifier`.
      images: normalised.
      boxes: xyxy, as many in each image.
    """
    warped = jax.vmap(warp_regions, (0, 0, None, None))(
        images, boxes, settings.size, settings.context
    )
    network = RegionClassifier(trunk, settings.width, classes)
    seen = network.apply({"params": params}, warped.reshape(-1, *warped.shape[2:]))
    return jax.tree.map(lambda x: x.reshape(*boxes.shape[:2], -1), seen)


def proposals_of(batch: Mapping[str, Array]) -> Proposals:
    """Returns the proposals of a batch."""
    return Proposals(batch["proposals"], batch["proposal_mask"])


def sample(
    settings: RegionNet, batch: Mapping[str, Array], classes: int, key: Any
) -> Regions:
    """Returns regions of each image to train on: of its proposals and its objects.

    Args:
      settings: how many, and which are objects'; all others are background.
      batch: with proposals.
      classes: how many there are; background's label.
      key: of the sample.
    """
    head = RoIHead(
        samples=settings.samples,
        share=settings.share,
        positive=settings.positive,
        background=0.0,
    )
    return jax.vmap(fast_rcnn.sample, (None, 0, 0, 0, None, 0))(
        head,
        proposals_of(batch),
        batch["boxes"],
        batch["labels"],
        classes,
        jax.random.split(key, len(batch["boxes"])),
    )


def mean_norm(
    features: Float[Array, "batch n d"], mask: Bool[Array, "batch n"]
) -> Float[Array, ""]:
    """Returns the mean length of the features of the regions that are there."""
    lengths = jnp.where(mask, jnp.linalg.norm(features, axis=-1), 0)
    return jnp.maximum(lengths.sum() / jnp.maximum(mask.sum(), 1), 1e-6)


def overlap_by_class(
    proposals: Float[Array, "batch n 4"], batch: Mapping[str, Array], classes: int
) -> Float[Array, "batch n classes"]:
    """Returns the largest IoU of each proposal with an object of each class."""
    overlaps = jax.vmap(pairwise_iou)(proposals, batch["boxes"])
    of_class = batch["labels"][..., None] == jnp.arange(classes)
    return jnp.max(jnp.where(of_class[:, None], overlaps[..., None], 0), 2, initial=0)


@struct.dataclass
class Regression:
    """Ridge regression of each class, as sums over examples and what they give."""

    scale: Float[Array, ""]
    """Takes the features to the norm that λ is meant for."""
    products: Float[Array, "classes d d"]
    """Sum of the features times themselves; the last one is 1."""
    moments: Float[Array, "classes d 4"]
    """Sum of the features times the codes of the right boxes."""
    mean: Float[Array, "classes 4"]
    weights: Float[Array, "classes d 4"]

    @classmethod
    def zeros(cls, classes: int, features: int) -> "Regression":
        """Returns the regression of no examples, which leaves boxes where they are."""
        d = features + 1
        return cls(
            jnp.float32(1),
            jnp.zeros((classes, d, d)),
            jnp.zeros((classes, d, 4)),
            jnp.zeros((classes, 4)),
            jnp.zeros((classes, d, 4)),
        )

    def fitted(
        self,
        features: Float[Array, "n features"],
        codes: Float[Array, "n 4"],
        labels: Int[Array, " n"],
        ridge: Float[Array, ""] | float,
    ) -> "Regression":
        """Returns the regression of more examples.

        Args:
          features: of the proposals, not scaled.
          codes: that take the proposals to the objects.
          labels: of the objects; -1 for rows that do not count.
          ridge: λ.
        """
        rows = self._rows(features)
        classes = (labels[:, None] == jnp.arange(len(self.mean))).astype(rows.dtype)
        precise = {"precision": "highest"}
        products = self.products + jnp.einsum(
            "nc,nd,ne->cde", classes, rows, rows, **precise
        )
        moments = self.moments + jnp.einsum(
            "nc,nd,nk->cdk", classes, rows, codes, **precise
        )
        # The constant feature's products are the sums of all: the last one the number.
        sums = products[..., -1:]
        mean = moments[:, -1] / jnp.maximum(sums[:, -1], 1)
        priced = products + ridge * jnp.eye(products.shape[-1])
        factor = jax.scipy.linalg.cho_factor(priced)
        weights = jax.scipy.linalg.cho_solve(factor, moments - sums * mean[:, None])
        return self.replace(
            products=products, moments=moments, mean=mean, weights=weights
        )

    def fitted_to(
        self,
        settings: BoxRidge,
        features: Float[Array, "batch n features"],
        batch: Mapping[str, Array],
    ) -> "Regression":
        """Returns the regression of a further batch of images, too.

        Args:
          settings: which proposals are to be moved, and λ.
          features: of the proposals, not scaled.
          batch: with proposals.
        """
        codes, labels = examples_to_move(settings, batch)
        rows = features.reshape(-1, features.shape[-1])
        return self.fitted(
            rows, codes.reshape(-1, 4), labels.reshape(-1), settings.ridge
        )

    def moved(
        self,
        features: Float[Array, "batch n features"],
        boxes: Float[Array, "batch n 4"],
    ) -> Float[Array, "batch n classes 4"]:
        """Returns where each class has each box."""
        codes = jnp.einsum(
            "bnd,cdk->bnck", self._rows(features), self.weights, precision="highest"
        )
        anchors = jnp.broadcast_to(boxes[..., None, :], codes.shape)
        return _CODER.decode(codes + self.mean, anchors)

    def _rows(self, features):
        ones = jnp.ones((*features.shape[:-1], 1), features.dtype)
        return jnp.concatenate([features * self.scale, ones], axis=-1)


def examples_to_move(
    settings: BoxRidge, batch: Mapping[str, Array]
) -> tuple[Float[Array, "batch n 4"], Int[Array, "batch n"]]:
    """Returns the codes of each proposal's object, and its label: -1 where it has none.

    Args:
      settings: how near an object is.
      batch: with proposals.
    """
    proposals = batch["proposals"]
    known = (batch["labels"] >= 0) & ~batch["difficult"]
    overlaps = jax.vmap(pairwise_iou)(proposals, batch["boxes"])
    overlaps = jnp.where(known[:, None], overlaps, 0)
    truth = overlaps.argmax(-1)
    near = (overlaps.max(-1) >= settings.iou) & batch["proposal_mask"]
    boxes = jnp.take_along_axis(batch["boxes"], truth[..., None], axis=1)
    codes = _CODER.encode(boxes, proposals)
    labels = jnp.take_along_axis(batch["labels"], truth, axis=1)
    return jnp.where(near[..., None], codes, 0), jnp.where(near, labels, -1)


def detections(
    settings: RegionNet,
    scores: Float[Array, "batch n classes"],
    boxes: Float[Array, "batch n 4"] | Float[Array, "batch n classes 4"],
    mask: Bool[Array, "batch n"],
    size: tuple[int, int],
) -> Detections:
    """Returns what is found in each image: boxes suppressed class by class.

    Args:
      settings: how much may overlap, and how many are kept.
      scores: from 0 to 1.
      boxes: for all classes, or for each.
      mask: which proposals are there.
      size: height and width of the image, pixels.
    """
    return suppress(
        clip(boxes, size),
        jnp.where(mask[..., None], scores, -1),
        iou=settings.iou,
        least=settings.least,
        candidates=mask.shape[-1],
        most=settings.most,
    )


@struct.dataclass
class StageAP(Detected):
    """Average precision of what a stage finds, by the stage's name."""

    stage: str = struct.field(pytree_node=False, default="")

    def compute(self) -> dict[str, float]:
        """Returns the average precision at an IoU of 0.5, "ap50_after_<stage>"."""
        row = super().compute()
        return {f"ap50_after_{self.stage}": row["ap50"]} if "ap50" in row else {}
