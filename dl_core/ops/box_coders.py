"""Box coders: what a network predicts of a box, as numbers relative to an anchor.

Each has `encode(boxes, anchors)` and `decode(codes, anchors)`, inverse to each other,
on xyxy boxes in pixels with any leading dimensions. No number is NaN: a box or an
anchor without an area, as padding is, counts as a hair wide.

FasterRCNN   centres in anchor sizes, sizes as logarithms; weights; also R-CNN's, Fast
             R-CNN's and RetinaNet's (Girshick et al., 2014; Ren et al., 2015)
SSD          the same, divided by variances (Liu et al., 2016)
YOLO         centres within a grid's cell, roots of sizes relative to the image (Redmon
             et al., 2016)
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.ops.boxes import to_centers, to_corners

Boxes = Float[Array, "*n 4"]

_HAIR = 1e-6
"""Pixels: a size whose logarithm is finite."""


@dataclasses.dataclass(frozen=True)
class FasterRCNN:
    """(x - x_a) / w_a, (y - y_a) / h_a, log(w / w_a), log(h / h_a), times weights."""

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Fast and Faster R-CNN's second stage: (10, 10, 5, 5)."""
    clip: float = math.log(1000 / 16)
    """The largest logarithm that is decoded, so that no box explodes."""

    def encode(self, boxes: Boxes, anchors: Boxes) -> Boxes:
        """Returns the codes of boxes relative to anchors."""
        (center, size), (anchor, scale) = _parts(boxes), _parts(anchors)
        codes = jnp.concatenate(
            [(center - anchor) / scale, jnp.log(size / scale)], axis=-1
        )
        return codes * jnp.array(self.weights)

    def decode(self, codes: Boxes, anchors: Boxes) -> Boxes:
        """Returns the boxes that codes mean relative to anchors."""
        anchor, scale = _parts(anchors)
        codes = codes / jnp.array(self.weights)
        size = jnp.exp(jnp.minimum(codes[..., 2:], self.clip)) * scale
        center = codes[..., :2] * scale + anchor
        return to_corners(jnp.concatenate([center, size], axis=-1))


@dataclasses.dataclass(frozen=True)
class SSD:
    """(x - x_a) / w_a / v, …, log(w / w_a) / v', …: the variances make codes larger."""

    variances: tuple[float, float] = (0.1, 0.2)
    """Of centres and of sizes."""

    @property
    def _as_faster_rcnn(self) -> FasterRCNN:
        center, size = (1 / variance for variance in self.variances)
        return FasterRCNN((center, center, size, size))

    def encode(self, boxes: Boxes, anchors: Boxes) -> Boxes:
        """Returns the codes of boxes relative to anchors, the default boxes."""
        return self._as_faster_rcnn.encode(boxes, anchors)

    def decode(self, codes: Boxes, anchors: Boxes) -> Boxes:
        """Returns the boxes that codes mean relative to anchors, the default boxes."""
        return self._as_faster_rcnn.decode(codes, anchors)


@dataclasses.dataclass(frozen=True)
class YOLO:
    """Offsets of the centre in the cell, from 0 to 1, and roots of the sizes.

    Without roots, an error of some pixels would cost a small box no more than a large
    one.
    """

    image: tuple[int, int]
    """Height and width of the image in pixels."""
    roots: bool = True
    """Whether sizes are coded by their roots."""

    def encode(self, boxes: Boxes, cells: Boxes) -> Boxes:
        """Returns the codes of boxes relative to cells of the grid, which are xyxy."""
        center, size = _parts(boxes)
        low, high = cells[..., :2], cells[..., 2:]
        size = size / jnp.array(self.image[::-1], boxes.dtype)
        if self.roots:
            size = jnp.sqrt(size)
        offset = (center - low) / jnp.maximum(high - low, _HAIR)
        return jnp.concatenate([offset, size], axis=-1)

    def decode(self, codes: Boxes, cells: Boxes) -> Boxes:
        """Returns the boxes that codes mean relative to cells of the grid."""
        low, high = cells[..., :2], cells[..., 2:]
        size = codes[..., 2:] ** 2 if self.roots else jnp.maximum(codes[..., 2:], 0)
        center = low + codes[..., :2] * (high - low)
        size = size * jnp.array(self.image[::-1], codes.dtype)
        return to_corners(jnp.concatenate([center, size], axis=-1))


def _parts(boxes: Boxes) -> tuple[Float[Array, "*n 2"], Float[Array, "*n 2"]]:
    """Returns centres and sizes, a hair at least."""
    parts = to_centers(boxes)
    return parts[..., :2], jnp.maximum(parts[..., 2:], _HAIR)
