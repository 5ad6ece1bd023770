"""Features of regions of an image, pooled to one size: RoI pooling and RoI align.

Girshick, "Fast R-CNN", ICCV 2015 (RoI max pooling); He et al., "Mask R-CNN", ICCV 2017
(RoI align). As in torchvision and in ONNX (MaxRoiPool, RoiAlign), the gradient goes to
the features and never to the boxes.

Boxes are (x_min, y_min, x_max, y_max) in pixels of the image. `spatial_scale` takes
them to the features: 1/16 where the features have a stride of 16. The boxes of all
images come in one list with `batch_indices`. Where each image has as many, `jax.vmap`
over images and their boxes does as well, and RoI align then copies no features.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def roi_pool(
    features: Float[Array, "... height width channels"],
    boxes: Float[Array, "boxes 4"],
    output_size: int | Sequence[int],
    batch_indices: Int[Array, " boxes"] | None = None,
    *,
    spatial_scale: float = 1.0,
) -> Float[Array, "boxes pooled_height pooled_width channels"]:
    """Returns the maximum in each of a grid of bins on each box (Fast R-CNN).

    Corners are rounded to whole pixels, halves away from 0, and belong to the box: it
    is 1 pixel wide at least. Bin i of n on a box of w pixels covers those from
    ⌊i w / n⌋ to ⌈(i + 1) w / n⌉, so that neighbours may share pixels. What lies outside
    the image is left out, and a bin that is all outside gives 0. A NaN in a bin is its
    maximum, as in torch's max pooling (torchvision's RoI pooling skips it). Of equal
    maxima the first gets the gradient.

    The edges of bins are computed in whole numbers. The references do it in float32,
    which for some sizes makes a bin one pixel longer than the formula.

    Args:
      features: of one image, or of a batch of them with `batch_indices`.
      boxes: xyxy in pixels of the image; they may leave it.
      output_size: bins along height and width, or one number for both.
      batch_indices: the image of each box.
      spatial_scale: pixels of the features in a pixel of the image.

    Raises:
      ValueError: where shapes do not fit each other.
    """
    grid = _grid(features, boxes, output_size, batch_indices)
    if batch_indices is None:
        features, batch_indices = features[None], jnp.zeros(len(boxes), jnp.int32)
    _, height, width, channels = features.shape
    corners = _round(jax.lax.stop_gradient(boxes) * spatial_scale).astype(jnp.int32)
    top, bottom = _edges(corners[:, 1], corners[:, 3], grid[0], height)
    left, right = _edges(corners[:, 0], corners[:, 2], grid[1], width)

    pixels = features.reshape(len(features), height * width, channels)
    images = batch_indices[:, None, None]
    fixed = jax.lax.stop_gradient(pixels)
    widest = jnp.max(right - left, initial=1)

    def look(k, best):
        """Compares the best of each bin with its pixel k, counted as in the widest."""
        maxima, places = best
        y, x = top + k // widest, left + k % widest
        inside = (y < bottom)[:, :, None] & (x < right)[:, None]
        place = y[:, :, None] * width + x[:, None]
        pixel = fixed.at[images, place].get(mode="clip")
        better = inside[..., None] & ((pixel > maxima) | jnp.isnan(pixel))
        return (
            jnp.where(better, pixel, maxima),
            jnp.where(better, place[..., None], places),
        )

    shape = (len(boxes), *grid, channels)
    first = top[:, :, None, None] * width + left[:, None, :, None]
    start = jnp.full(shape, -jnp.inf, features.dtype), jnp.broadcast_to(first, shape)
    looks = jnp.max(bottom - top, initial=0) * widest
    _, places = jax.lax.fori_loop(0, looks, look, start)

    # Looked up once more, outside the loop: this is what has a gradient.
    found = pixels.at[images[..., None], places, jnp.arange(channels)].get(mode="clip")
    empty = (bottom <= top)[:, :, None, None] | (right <= left)[:, None, :, None]
    return jnp.where(empty, 0, found)


def roi_align(
    features: Float[Array, "... height width channels"],
    boxes: Float[Array, "boxes 4"],
    output_size: int | Sequence[int],
    batch_indices: Int[Array, " boxes"] | None = None,
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Float[Array, "boxes pooled_height pooled_width channels"]:
    """Returns the mean over points in each of a grid of bins on each box (Mask R-CNN).

    A point's value is interpolated between the four nearest pixels. One that is up to a
    pixel outside the features takes the value at their border; one that is farther
    outside counts as 0.

    Interpolation and mean are linear, and the points of a bin form a grid. So a bin is
    a weighted sum over rows and then over columns: two small matrices a box. Where
    a feature is not finite, neither is any box of its image.

    Args:
      features: of one image, or of a batch of them with `batch_indices`.
      boxes: xyxy in pixels of the image; they may leave it.
      output_size: bins along height and width, or one number for both.
      batch_indices: the image of each box.
      spatial_scale: pixels of the features in a pixel of the image.
      sampling_ratio: points along each side of a bin. With 0 one for each pixel that
        the side is long, rounded up, in each box as it needs: mind boxes without bound.
      aligned: pixel (0, 0) of the features is the square from (0, 0) to (1, 1), and its
        value stands at (0.5, 0.5). Otherwise the value stands at (0, 0), and a box is
        widened to 1 pixel at least: the first version, off by half a pixel. False is
        torchvision's default and ONNX's "output_half_pixel", True is "half_pixel".

    Raises:
      ValueError: where shapes do not fit each other.
    """
    grid = _grid(features, boxes, output_size, batch_indices)
    boxes = jax.lax.stop_gradient(boxes) * spatial_scale - (0.5 if aligned else 0.0)
    starts, sizes = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        sizes = jnp.maximum(sizes, 1)
    columns, rows = (
        _weights(starts[:, i], sizes[:, i], bins, limit, sampling_ratio)
        for i, bins, limit in (
            (0, grid[1], features.shape[-2]),
            (1, grid[0], features.shape[-3]),
        )
    )
    pixels = features if batch_indices is None else features[batch_indices]
    image = "hwc" if batch_indices is None else "nhwc"
    # Not in the reduced precision of matrix units: positions are to be exact.
    return jnp.einsum(
        f"nph,nqw,{image}->npqc",
        rows.astype(features.dtype),
        columns.astype(features.dtype),
        pixels,
        precision="highest",
    )


def check_boxes(boxes: Float[np.ndarray, "boxes 4"], height: int, width: int) -> None:
    """Raises ValueError for a box that is not in an image; on the host, for data.

    RoI pooling and RoI align, being traced, see no values and clip instead.

    Args:
      boxes: xyxy in pixels.
      height: of the image, in pixels.
      width: likewise.
    """
    _check_shape(boxes)
    x_min, y_min, x_max, y_max = boxes.T
    # In this form a NaN is wrong too.
    right = (x_min >= 0) & (x_min <= x_max) & (x_max <= width)
    right &= (y_min >= 0) & (y_min <= y_max) & (y_max <= height)
    if not right.all():
        first = int(np.argmin(right))
        raise ValueError(
            f"Box {first} of {boxes.shape}, {boxes[first].tolist()}, is no xyxy box "
            f"in an image of height {height} and width {width}."
        )


def _check_shape(boxes):
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"Boxes are (boxes, 4), not {boxes.shape}.")


def _grid(features, boxes, output_size, batch_indices):
    """Returns the bins along height and width; ValueError where shapes do not fit."""
    rank = 3 if batch_indices is None else 4
    if features.ndim != rank:
        raise ValueError(
            f"Features are (height, width, channels), or (batch, height, width, "
            f"channels) with the boxes' batch_indices, not {features.shape}"
            f"{' without' if rank == 3 else ' with'} them."
        )
    _check_shape(boxes)
    if batch_indices is not None and batch_indices.shape != boxes.shape[:1]:
        raise ValueError(
            f"Each box has one of batch_indices: boxes are {boxes.shape} and "
            f"batch_indices {batch_indices.shape}."
        )
    grid = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"The output size is two numbers of at least 1, not {grid}.")
    return grid


def _round(x):
    """Returns x rounded as C does: halves away from 0, not to even numbers."""
    whole = jnp.trunc(x)
    return whole + jnp.sign(x) * (jnp.abs(x - whole) >= 0.5)


def _edges(first, last, bins, limit):
    """Returns where the bins on each box's pixels begin, and end: two (boxes, bins)."""
    first, last = first[:, None], last[:, None]
    size = jnp.maximum(last - first + 1, 1)
    i = jnp.arange(bins)
    begin = first + i * size // bins
    end = first - (-(i + 1) * size // bins)
    return jnp.clip(begin, 0, limit), jnp.clip(end, 0, limit)


def _weights(starts, sizes, bins, limit, sampling_ratio):
    """Returns the weights of an axis's pixels in each bin: (boxes, bins, limit)."""
    bin_sizes = sizes / bins
    if sampling_ratio > 0:
        counts, most = jnp.full(starts.shape, float(sampling_ratio)), sampling_ratio
    else:
        counts = jnp.ceil(bin_sizes)
        most = jnp.max(counts, initial=0).astype(jnp.int32)
    first = starts[:, None] + jnp.arange(bins) * bin_sizes[:, None]
    steps = bin_sizes / jnp.maximum(counts, 1)
    pixels = jnp.arange(limit)

    def add_point(i, weights):
        x = first + (i + 0.5) * steps[:, None]
        counted = (i < counts)[:, None] & (x >= -1) & (x <= limit)
        nearness = 1 - jnp.abs(jnp.clip(x, 0, limit - 1)[..., None] - pixels)
        return weights + jnp.where(counted[..., None], jnp.maximum(nearness, 0), 0)

    zeros = jnp.zeros((len(starts), bins, limit), starts.dtype)
    total = jax.lax.fori_loop(0, most, add_point, zeros)
    return total / jnp.maximum(counts, 1)[:, None, None]
