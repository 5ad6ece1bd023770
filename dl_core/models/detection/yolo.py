"""YOLO: one look at the image, and each cell of a grid says which box it holds.

Redmon et al., "You only look once: unified, real-time object detection", CVPR 2016
(v1), with tricks of Redmon & Farhadi, "YOLO9000: better, faster, stronger", CVPR 2017
(v2), each a field of `Network`. The numbers are `dl_core.ops.yolo`'s.

v1's grid is 7×7 on 448 pixels, a stride of 64, and its two fully connected layers show
every cell the whole image. Here, as in v2, all layers are convolutions; a cell sees far
through the pyramid, which brings the coarser maps to the grid.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.config import config, static, traced
from dl_core.errors import UserError
from dl_core.models.detection.trunk import Backbone, ConvNorm, Pyramid, Trunk
from dl_core.nn.conv import Conv
from dl_core.ops import boxes as box_ops
from dl_core.ops import yolo
from dl_core.ops.boxes import Detections
from dl_core.ops.losses import yolo_sum_of_squares
from dl_core.ops.nms import suppress

PRIORS = {
    1: (0.167, 0.211),
    2: (0.064, 0.083, 0.175, 0.222),
    3: (0.064, 0.082, 0.164, 0.209, 0.326, 0.395),
}
"""Of BCCD's training boxes, by `dl_core.ops.yolo.cluster_sizes`."""


@config
class Network:
    """The grid and its predictors."""

    stride: Literal[8, 16, 32] = static(8, "Pixels of a side of the grid's cells.")
    predictors: int = static(2, "Predictors, or boxes, of a cell.", at_least=1)
    priors: tuple[float, ...] = static(
        PRIORS[2],
        "Widths and heights, in turn, that sizes are told from, as shares of the "
        "image's; with () sizes are told outright (v1).",
    )
    direct: bool = static(True, "Whether a sigmoid keeps centres in their cells (v2).")
    class_per_box: bool = static(
        True, "Whether each predictor has its own classes (v2), or each cell (v1)."
    )
    passthrough: bool = static(
        True, "Whether finer features join those of the grid (v2)."
    )
    size_power: float = traced(
        0.5, "Power of sizes in the loss: 1/2 is their root.", above=0, at_most=1
    )
    leak: float = traced(0.1, "Slope of the rectifiers below 0.", at_least=0, at_most=1)
    dropout: float = traced(
        0.0, "Features lost before the last layer; 0.5 in v1.", at_least=0, below=1
    )

    def check(self) -> None:
        """Raises UserError where the priors do not fit the predictors."""
        count = len(self.priors)
        if count not in (0, 2 * self.predictors) or min(self.priors, default=1) <= 0:
            raise UserError(
                f"--config.model.priors={','.join(map(str, self.priors))}: expected "
                f"{2 * self.predictors} positive numbers for "
                f"--config.model.predictors={self.predictors}, or ()"
            )


@config
class Weights:
    """The loss: equation 3 of v1."""

    coordinates: float = traced(5.0, "Weight of boxes, λ_coord.", at_least=0)
    no_object: float = traced(
        0.5, "Weight of the confidences without an object, λ_noobj.", at_least=0
    )
    overlap: float = traced(
        1.0,
        "The confidence with an object should be 1 (at 0) or the box's IoU (at 1).",
        at_least=0,
        at_most=1,
    )


class Yolo(nn.Module):
    """Images to what the predictors of each cell say."""

    trunk: Trunk
    network: Network
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> yolo.Said:
        """Returns codes, confidences and class probabilities of a grid for each image.

        Args:
          images: normalised.
          train: whether features are dropped (with a key named "dropout").
        """
        network, width = self.network, self.trunk.features
        leaky = functools.partial(nn.leaky_relu, negative_slope=network.leak)
        maps = Backbone(self.trunk, activation=leaky)(images, train=train)
        pyramid = Pyramid(width, self.trunk.lowering)
        x = pyramid(maps, (network.stride,))[network.stride]
        if network.passthrough:
            finer = Conv(width // 4, 1, lowering=self.trunk.lowering, name="finer")
            fine = yolo.stacked(finer(maps[network.stride // 2]))
            x = jnp.concatenate([x, fine], axis=-1)
        x = leaky(ConvNorm(width, lowering=self.trunk.lowering)(leaky(x)))
        if train:
            kept = jax.random.bernoulli(
                self.make_rng("dropout"), 1 - network.dropout, x.shape
            )
            x = jnp.where(kept, x / (1 - network.dropout), 0)
        if priors := network.priors:
            unit = yolo.UNIT * network.stride
            sides = jnp.array(images.shape[2:0:-1]) / unit
            priors = jnp.array(priors).reshape(-1, 2) * sides
        groups = network.predictors if network.class_per_box else 1
        count = network.predictors * 5 + groups * self.classes
        outputs = Conv(count, 1, kernel_init=nn.initializers.normal(0.01), name="last")
        read = functools.partial(
            yolo.read_out,
            predictors=network.predictors,
            classes=self.classes,
            class_per_box=network.class_per_box,
            direct=network.direct,
            priors=None if network.priors == () else priors,
            power=network.size_power,
        )
        return jax.vmap(read)(outputs(x))


def loss(
    said: yolo.Said,
    boxes: Float[Array, "batch objects 4"],
    labels: Int[Array, "batch objects"],
    network: Network,
    weights: Weights,
) -> dict[str, Float[Array, " batch"]]:
    """Returns the parts of equation 3, whose sum is an image's loss, for each image.

    Args:
      said: by the network.
      boxes: of the objects, xyxy in pixels of the image; padded.
      labels: their classes; -1 for padding.
      network: the grid.
      weights: of the parts.
    """
    power = network.size_power

    def one(said, boxes, labels):
        answers = yolo.answers(said.codes, boxes, labels >= 0, network.stride, power)
        # Each cell's classes are those of the predictor that answers for its object.
        answering = answers.responsible[..., None]
        classes = jnp.sum(said.classes, axis=2, where=answering)
        return yolo_sum_of_squares(
            said.codes,
            said.confidences,
            classes,
            answers.codes,
            1 - weights.overlap * (1 - answers.overlaps),
            jax.nn.one_hot(labels[answers.objects], classes.shape[-1]),
            answers.responsible,
            coordinates=weights.coordinates,
            no_object=weights.no_object,
        )

    return jax.vmap(one)(said, boxes, labels)


def detections(
    said: yolo.Said, size: tuple[int, int], network: Network, *, least: float = 0.01
) -> Detections:
    """Returns what is found in each image: a box's score is confidence × class.

    Args:
      said: by the network.
      size: height and width of the images, in pixels.
      network: the grid.
      least: boxes with a lower score are left out.
    """
    decode = functools.partial(
        yolo.decode, stride=network.stride, power=network.size_power
    )
    boxes = box_ops.clip(jax.vmap(decode)(said.codes), size)
    scores = jnp.clip(said.confidences, 0, 1)[..., None] * jnp.clip(said.classes, 0, 1)
    batch, classes = len(boxes), scores.shape[-1]
    return suppress(
        boxes.reshape(batch, -1, 4), scores.reshape(batch, -1, classes), least=least
    )
