"""Boxes and keypoints moved by the affine map that moves their image."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from dl_core.ops.augment.affine import Matrix, Size


def move_points(
    points: Float[Array, "*points 2"], matrix: Matrix
) -> Float[Array, "*points 2"]:
    """Returns where points (x, y) of the input show in the output."""
    if points.shape[-1:] != (2,) or matrix.shape != (3, 3):
        raise ValueError(
            "Points are (…, 2) and a matrix (3, 3), not "
            f"{points.shape} and {matrix.shape}."
        )
    x, y = points[..., 0], points[..., 1]
    rows = (matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] for i in range(2))
    return jnp.stack(list(rows), axis=-1)


def move_boxes(
    boxes: Float[Array, "boxes 4"],
    matrix: Matrix,
    size: Size,
    *,
    min_visible: ArrayLike = 0.0,
    min_size: ArrayLike = 1.0,
) -> tuple[Float[Array, "boxes 4"], Bool[Array, " boxes"]]:
    """Returns the boxes about the moved boxes, and which of them still count.

    A box's four corners are moved, boxed anew and clipped to the output. That box holds
    whatever the old one held; after a rotation it is larger than need be.

    Args:
      boxes: xyxy in pixels. Those without an area, as padding is, never count.
      matrix: from the input's points to the output's.
      size: height and width of the output.
      min_visible: the share of a moved box's area that must lie in the output.
      min_size: pixels that both its sides must have there.

    Returns:
      The boxes, also those that do not count, and a mask.

    Raises:
      ValueError: where boxes are not (boxes, 4). Values cannot be checked in a traced
        function; `dl_core.ops.roi.check_boxes` does it on the host.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"Boxes are (boxes, 4), not {boxes.shape}.")
    height, width = size
    corners = move_points(boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]], matrix)
    whole = jnp.concatenate([corners.min(1), corners.max(1)], axis=-1)
    seen = jnp.clip(whole, 0, jnp.array([width, height] * 2, whole.dtype))
    sides = seen[:, 2:] - seen[:, :2]
    counts = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    counts &= (sides > 0).all(1) & (sides >= min_size).all(1)
    counts &= sides.prod(1) >= min_visible * (whole[:, 2:] - whole[:, :2]).prod(1)
    return seen, counts


def move_keypoints(
    keypoints: Float[Array, "*instances points 2"],
    visible: Shaped[Array, "*instances points"],
    matrix: Matrix,
    size: Size,
    *,
    swap: Sequence[int] | None = None,
) -> tuple[Float[Array, "*instances points 2"], Shaped[Array, "*instances points"]]:
    """Returns the moved keypoints and their flags, left and right told anew.

    Args:
      keypoints: (x, y) in pixels.
      visible: flags, booleans or numbers as COCO's, where 0 is "not there".
      matrix: from the input's points to the output's.
      size: height and width of the output. What leaves it gets flag 0.
      swap: for each keypoint the number of its mirror image: (0, 2, 1) for a nose, a
        left and a right eye. It is applied where the map mirrors (one flip does, two or
        a rotation do not), since a mirrored left eye looks like a right one.

    Raises:
      ValueError: where shapes do not fit, or `swap` does not undo itself.
    """
    if keypoints.ndim < 2 or keypoints.shape != (*visible.shape, 2):
        raise ValueError(
            "Keypoints are (…, points, 2) with flags (…, points), not "
            f"{keypoints.shape} and {visible.shape}."
        )
    moved = move_points(keypoints, matrix)
    x, y = moved[..., 0], moved[..., 1]
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    visible = jnp.where(inside, visible, jnp.zeros_like(visible))
    if swap is None:
        return moved, visible
    table = np.asarray(swap)
    numbers = np.arange(keypoints.shape[-2])
    if sorted(table) != numbers.tolist() or (table[table] != numbers).any():
        raise ValueError(
            f"A table that swaps pairs of {len(numbers)} keypoints is asked for, not "
            f"{tuple(swap)}."
        )
    mirrors = matrix[0, 0] * matrix[1, 1] < matrix[0, 1] * matrix[1, 0]
    order = jnp.where(mirrors, table, numbers)
    return moved[..., order, :], visible[..., order]
