"""Boxes: area, overlap, conversions, and the detections of an image.

Boxes are (x_min, y_min, x_max, y_max) in pixels, where a box from 0 to 10 is 10 wide.
A box without width or height, as padding is, or with its corners the wrong way round,
has no area and overlaps nothing: its IoU is 0, and no gradient is NaN.

The measures come elementwise (`iou`, with broadcasting) and for all pairs
(`pairwise_iou`). GIoU: Rezatofighi et al., "Generalized intersection over union", CVPR
2019. DIoU: Zheng et al., "Distance-IoU loss", AAAI 2020.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Detections(NamedTuple):
    """What a detector finds, by falling score; rows of it are padded.

    Where there is no detection the label is -1, score and box are 0.
    """

    boxes: Float[Array, "*batch detections 4"]
    scores: Float[Array, "*batch detections"]
    labels: Int[Array, "*batch detections"]


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Returns width times height; 0 where a box has none."""
    width = jnp.maximum(boxes[..., 2] - boxes[..., 0], 0)
    return width * jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def iou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*n"]:
    """Returns the area of the intersection over that of the union, from 0 to 1."""
    return _ratio(*_overlap(a, b))


def giou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*n"]:
    """Returns IoU less the share of the enclosing box that neither covers: -1 to 1."""
    intersection, union = _overlap(a, b)
    around = area(_enclosing(a, b))
    return _ratio(intersection, union) - _ratio(around - union, around)


def diou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"]) -> Float[Array, "*n"]:
    """Returns IoU less the squared distance of the centres: -1 to 1.

    The distance is measured in diagonals of the enclosing box.
    """
    around = _enclosing(a, b)
    diagonal = jnp.sum((around[..., 2:] - around[..., :2]) ** 2, axis=-1)
    apart = to_centers(a)[..., :2] - to_centers(b)[..., :2]
    return _ratio(*_overlap(a, b)) - _ratio(jnp.sum(apart**2, axis=-1), diagonal)


def pairwise_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Returns the IoU of each of `a` with each of `b`."""
    return _pairwise(iou, a, b)


def pairwise_giou(
    a: Float[Array, "n 4"], b: Float[Array, "m 4"]
) -> Float[Array, "n m"]:
    """Returns the GIoU of each of `a` with each of `b`."""
    return _pairwise(giou, a, b)


def pairwise_diou(
    a: Float[Array, "n 4"], b: Float[Array, "m 4"]
) -> Float[Array, "n m"]:
    """Returns the DIoU of each of `a` with each of `b`."""
    return _pairwise(diou, a, b)


def to_centers(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns (x, y, width, height) of the centres, from corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def to_corners(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns corners, from (x, y, width, height) of the centres."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([center - half, center + half], axis=-1)


def clip(boxes: Float[Array, "*n 4"], size: tuple[int, int]) -> Float[Array, "*n 4"]:
    """Returns the part of each box that is in an image.

    Args:
      boxes: xyxy in pixels. One that is all outside is left without an area.
      size: height and width of the image.
    """
    height, width = size
    return jnp.clip(boxes, 0, jnp.array([width, height] * 2, boxes.dtype))


def _overlap(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the areas of intersection and union."""
    left, right = jnp.maximum(a[..., 0], b[..., 0]), jnp.minimum(a[..., 2], b[..., 2])
    top, bottom = jnp.maximum(a[..., 1], b[..., 1]), jnp.minimum(a[..., 3], b[..., 3])
    intersection = jnp.maximum(right - left, 0) * jnp.maximum(bottom - top, 0)
    return intersection, area(a) + area(b) - intersection


def _enclosing(a: Array, b: Array) -> Array:
    low = jnp.minimum(a[..., :2], b[..., :2])
    return jnp.concatenate([low, jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1)


def _ratio(part: Array, whole: Array) -> Array:
    """Returns part / whole, and 0 with a gradient of 0 where there is no whole."""
    some = whole > 0
    return jnp.where(some, part / jnp.where(some, whole, 1), 0)


def _pairwise(measure: Callable, a: Array, b: Array) -> Array:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != 4 or b.shape[1] != 4:
        raise ValueError(
            f"Boxes are (n, 4) and (m, 4), not {a.shape} and {b.shape}; jax.vmap adds "
            "a batch."
        )
    return measure(a[:, None], b[None])
