"""YOLO's grid: what its predictors say as boxes, who answers for a cell, and priors.

Redmon et al., "You only look once: unified, real-time object detection", CVPR 2016
(v1); Redmon & Farhadi, "YOLO9000: better, faster, stronger", CVPR 2017 (v2). The loss,
v1's equation 3, is `dl_core.ops.losses.yolo_sum_of_squares`.

The grid's cells are squares of `stride` pixels. The code of a box is (x, y, w, h): the
centre's place in its cell, from 0 to 1, and width and height in units of seven cells to
some power. v1 says their square roots, so that the same error weighs more in a small
box. Seven cells are the image in v1: this keeps, on any grid, its balance of the errors
in place and size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dl_core.ops.boxes import iou, to_centers, to_corners

UNIT = 7
"""Cells of which sizes are told as shares."""
_ROUNDS = 300
"""Rounds of k-means at the most."""


class Said(NamedTuple):
    """What the predictors of a grid say."""

    codes: Float[Array, "rows columns predictors 4"]
    confidences: Float[Array, "rows columns predictors"]
    classes: Float[Array, "rows columns predictors classes"]
    """The same for all predictors of a cell, where classes are the cell's (v1)."""


class Answers(NamedTuple):
    """What the predictors of a grid should say."""

    objects: Int[Array, "rows columns"]
    """The object whose centre is in the cell; -1 where none is."""
    codes: Float[Array, "rows columns 4"]
    responsible: Bool[Array, "rows columns predictors"]
    overlaps: Float[Array, "rows columns predictors"]
    """IoU of each predictor's box with the object of its cell; 0 where none is."""


def read_out(
    outputs: Float[Array, "rows columns outputs"],
    predictors: int,
    classes: int,
    *,
    class_per_box: bool = False,
    direct: bool = False,
    priors: Float[Array, "predictors 2"] | None = None,
    power: ArrayLike = 0.5,
) -> Said:
    """Returns what a linear layer's outputs say.

    Args:
      outputs: of each cell 5 for each predictor (x, y, w, h, confidence), then those of
        the classes, once or for each predictor.
      predictors: of a cell.
      classes: of objects.
      class_per_box: whether each predictor has its own class probabilities (v2).
      direct: whether x and y are passed through a sigmoid, which keeps them in the cell
        (v2's "direct location prediction").
      priors: width and height of each predictor's prior, in units of seven cells. With
        them w is p e^t where t is the output and p the prior's (v2), then to the power.
        Without, the code is the output (v1).
      power: of the sizes in a code.

    Raises:
      ValueError: if there are not as many outputs.
    """
    groups = predictors if class_per_box else 1
    if outputs.shape[-1] != predictors * 5 + groups * classes:
        raise ValueError(
            f"YOLO: {predictors} predictors and {groups} × {classes} classes have "
            f"{predictors * 5 + groups * classes} outputs, not {outputs.shape[-1]}"
        )
    grid = outputs.shape[:-1]
    boxes, rest = jnp.split(outputs, [predictors * 5], axis=-1)
    boxes = boxes.reshape(*grid, predictors, 5)
    places, sizes = boxes[..., :2], boxes[..., 2:4]
    if direct:
        places = jax.nn.sigmoid(places)
    if priors is not None:
        sizes = (priors * jnp.exp(sizes)) ** power
    rest = rest.reshape(*grid, groups, classes)
    return Said(
        jnp.concatenate([places, sizes], axis=-1),
        boxes[..., 4],
        jnp.broadcast_to(rest, (*grid, predictors, classes)),
    )


def decode(
    codes: Float[Array, "rows columns predictors 4"],
    stride: int,
    power: ArrayLike = 0.5,
) -> Float[Array, "rows columns predictors 4"]:
    """Returns the boxes, xyxy in pixels, that codes stand for.

    Args:
      codes: of the predictors of each cell; negative sizes are taken as 0.
      stride: pixels of a cell's side.
      power: of the sizes in a code.
    """
    rows, columns = codes.shape[:2]
    y, x = jnp.mgrid[:rows, :columns]
    centers = (codes[..., :2] + jnp.stack([x, y], axis=-1)[:, :, None]) * stride
    sizes = jnp.maximum(codes[..., 2:], 0) ** (1 / power) * (UNIT * stride)
    return to_corners(jnp.concatenate([centers, sizes], axis=-1))


def encode(
    boxes: Float[Array, "*n 4"], stride: int, power: ArrayLike = 0.5
) -> Float[Array, "*n 4"]:
    """Returns the codes of boxes, each in the cell that holds its centre.

    Args:
      boxes: xyxy in pixels.
      stride: pixels of a cell's side.
      power: of the sizes in a code.
    """
    centers = to_centers(boxes)
    places = centers[..., :2] / stride % 1
    sizes = jnp.maximum(centers[..., 2:], 0) / (UNIT * stride)
    return jnp.concatenate([places, sizes**power], axis=-1)


def answers(
    codes: Float[Array, "rows columns predictors 4"],
    boxes: Float[Array, "objects 4"],
    valid: Bool[Array, " objects"],
    stride: int,
    power: ArrayLike = 0.5,
) -> Answers:
    """Returns which predictors answer for which objects, and what they should say.

    A cell is responsible for the first object whose centre it holds, and can say no
    other. Of its predictors the one whose box has the highest IoU with the object is
    responsible; where none overlaps it, the one whose code is nearest, as in the
    authors' code. Nothing here has a gradient.

    Args:
      codes: what the predictors say now.
      boxes: of the objects, xyxy in pixels; padded.
      valid: which of them are there.
      stride: pixels of a cell's side.
      power: of the sizes in a code.
    """
    codes = jax.lax.stop_gradient(codes)
    rows, columns, predictors, _ = codes.shape
    cells = (to_centers(boxes)[:, :2] // stride).astype(jnp.int32)
    column, row = (
        jnp.clip(cells[:, axis], 0, most - 1)
        for axis, most in ((0, columns), (1, rows))
    )
    count = len(boxes)
    numbers = jnp.where(valid, jnp.arange(count), count)
    first = jnp.full((rows, columns), count).at[row, column].min(numbers)
    there = first < count
    targets = boxes[jnp.minimum(first, count - 1)]
    wanted = encode(targets, stride, power)
    said = decode(codes, stride, power)
    overlaps = iou(said, jnp.broadcast_to(targets[:, :, None], said.shape))
    apart = jnp.square(codes - wanted[:, :, None]).sum(-1)
    best = jnp.where(overlaps.max(-1) > 0, overlaps.argmax(-1), apart.argmin(-1))
    return Answers(
        jnp.where(there, first, -1),
        wanted,
        there[..., None] & (best[..., None] == jnp.arange(predictors)),
        jnp.where(there[..., None], overlaps, 0),
    )


def cluster_sizes(
    sizes: Float[np.ndarray, "boxes 2"], count: int, *, seed: int = 0, tries: int = 10
) -> tuple[Float[np.ndarray, "count 2"], float]:
    """Returns priors by k-means under the distance 1 - IoU, by rising area.

    From v2, section 2: Euclidean distance would favour large boxes. Boxes are compared
    as if they shared their centre; a cluster's prior is the mean of its sizes.

    Args:
      sizes: width and height of boxes, in any unit.
      count: how many priors.
      seed: of the boxes that each try starts from.
      tries: starts, of which the best end is kept.

    Returns:
      The priors, and the mean IoU of the boxes with the best prior of each.

    Raises:
      ValueError: if there are fewer different sizes than priors, or one is no size.
    """
    sizes = np.asarray(sizes, np.float64)
    different = np.unique(sizes, axis=0)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError(f"sizes are positive numbers, not {sizes.min()}")
    if not 1 <= count <= len(different):
        raise ValueError(f"{count} priors of {len(different)} different sizes")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(tries):
        priors = different[rng.permutation(len(different))[:count]]
        # The mean need not lower this distance: in theory it could go on for ever.
        for _ in range(_ROUNDS):
            nearest = overlap_of_sizes(sizes, priors).argmax(1)
            means = [
                sizes[nearest == k].mean(0) if (nearest == k).any() else prior
                for k, prior in enumerate(priors)
            ]
            if np.array_equal(means, priors):
                break
            priors = np.stack(means)
        found.append((overlap_of_sizes(sizes, priors).max(1).mean(), priors))
    quality, priors = max(found, key=lambda each: each[0])
    return priors[np.argsort(priors.prod(1))], float(quality)


def overlap_of_sizes(
    a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "n m"]:
    """Returns the IoU of boxes of these sizes that share their centre."""
    common = np.minimum(a[:, None], b[None]).prod(-1)
    return common / (a.prod(-1)[:, None] + b.prod(-1)[None] - common)


def stacked(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c4"]:
    """Returns a map of half the sides with the features of each 2×2 positions.

    v2's passthrough layer. Odd sides are padded with 0.
    """
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = -(-height // 2), -(-width // 2)
    squares = x.reshape(batch, rows, 2, columns, 2, channels).swapaxes(2, 3)
    return squares.reshape(batch, rows, columns, 4 * channels)
