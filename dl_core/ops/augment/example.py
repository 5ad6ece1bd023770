"""A whole example moved by one affine map: the image and all that is marked on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike

from dl_core.ops.augment.affine import Matrix, Size
from dl_core.ops.augment.annotations import move_boxes, move_keypoints
from dl_core.ops.augment.warp import Border, warp


def warp_example(
    example: Mapping[str, Any],
    matrix: Matrix,
    size: Size | None = None,
    *,
    border: Border = "constant",
    fill: ArrayLike = 0,
    mask_fill: ArrayLike = 0,
    swap: Sequence[int] | None = None,
    min_visible: ArrayLike = 0.0,
    min_size: ArrayLike = 1.0,
) -> dict[str, Any]:
    """Returns the example with every field that has a place in the image moved.

    Fields are known by name, and all but the image may be missing:

    - `image` (height, width, channels), interpolated;
    - `masks` (height, width) or (height, width, masks): labels or masks, the nearest;
    - `boxes` (boxes, 4), xyxy in pixels, with `boxes_valid` (boxes): all where missing;
    - `keypoints` (…, points, 2), with `keypoints_visible` (…, points): all where
      missing.

    The masks of boxes and keypoints are always in the result where those are. Other
    fields stay as they are.

    Args:
      example: one example; vmap for a batch.
      matrix: from the input's points to the output's.
      size: height and width of the output; the image's where None.
      border: as for `warp`, of the image alone: what a mask, a box or a keypoint marks
        is not there a second time in a reflection.
      fill: as for `warp`, of the image.
      mask_fill: what masks hold where the image shows nothing.
      swap: as for `move_keypoints`.
      min_visible: as for `move_boxes`.
      min_size: likewise.

    Raises:
      ValueError: where shapes do not fit each other.
    """
    image = example["image"]
    size = image.shape[:2] if size is None else tuple(size)
    moved = {**example, "image": warp(image, matrix, size, border=border, fill=fill)}
    if "masks" in example:
        masks = example["masks"]
        if masks.shape[:2] != image.shape[:2]:
            raise ValueError(
                "Masks have the height and width of their image, not "
                f"{masks.shape} on {image.shape}."
            )
        moved["masks"] = warp(masks, matrix, size, method="nearest", fill=mask_fill)
    if "boxes" in example:
        moved["boxes"], counts = move_boxes(
            example["boxes"], matrix, size, min_visible=min_visible, min_size=min_size
        )
        moved["boxes_valid"] = counts & example.get("boxes_valid", True)
    if "keypoints" in example:
        keypoints = example["keypoints"]
        visible = example.get("keypoints_visible", jnp.ones(keypoints.shape[:-1], bool))
        moved["keypoints"], moved["keypoints_visible"] = move_keypoints(
            keypoints, visible, matrix, size, swap=swap
        )
    return moved
