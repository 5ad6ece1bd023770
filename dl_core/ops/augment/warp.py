"""An image moved by an affine map: one plain gather of flattened pixels.

Every pixel of the output looks where its centre comes from. Four neighbours are read by
their flat index and weighted, so the cost is four gathers whatever the map is made of.
Values and both gradients are those of `torch.nn.functional.grid_sample` with
`align_corners=False`.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from dl_core.ops.augment.affine import Matrix, Size, invert

Method = Literal["bilinear", "nearest"]
Border = Literal["constant", "edge", "reflect"]


def warp(
    image: Shaped[Array, "height width *channels"],
    matrix: Matrix,
    size: Size | None = None,
    *,
    method: Method = "bilinear",
    border: Border = "constant",
    fill: ArrayLike = 0,
) -> Shaped[Array, "new_height new_width *channels"]:
    """Returns the image moved by an affine map.

    Nothing is smoothed first: where the map shrinks by more than 2, blur before it
    (`gaussian_blur`) or fine patterns alias.

    Args:
      image: with any number of channels, or none. Whole numbers are interpolated as
        floats and rounded to the nearest.
      matrix: from the input's points to the output's (`dl_core.ops.augment.affine`).
      size: height and width of the output; the image's where None.
      method: "bilinear", or "nearest" for masks and labels. Flips, quarter turns and
        shifts by whole pixels are exact in either, and "nearest" reads a quarter.
      border: what lies outside: "constant" (`fill`), "edge" (the nearest pixel), or
        "reflect" (the image mirrored at its edge: c b a | a b c).
      fill: one number, or one for each channel.

    Raises:
      ValueError: where the shapes do not fit, or the method or border is unknown.
    """
    _check(image, matrix, method, border)
    size = image.shape[:2] if size is None else tuple(size)
    height, width, channels = *image.shape[:2], image.shape[2:]
    flat = image.reshape(height * width, *channels)
    fill = jnp.asarray(fill, image.dtype)

    def read(column: Int[Array, " pixels"], row: Int[Array, " pixels"]) -> Array:
        pixels = flat.at[
            _inside(row, height, border) * width + _inside(column, width, border)
        ].get(mode="promise_in_bounds")
        if border != "constant":
            return pixels
        shown = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        return jnp.where(_over(shown, pixels), pixels, fill)

    x, y = _sources(matrix, size)
    if method == "nearest":
        moved = read(jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32))
        return moved.reshape(*size, *channels)
    # From here on whole numbers are the centres of pixels.
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    right, low = x - 0.5 - left, y - 0.5 - top
    column, row = left.astype(jnp.int32), top.astype(jnp.int32)
    moved = sum(
        _over(across * down, flat) * read(column + i, row + j)
        for i, across in enumerate((1 - right, right))
        for j, down in enumerate((1 - low, low))
    )
    if jnp.issubdtype(image.dtype, jnp.integer):
        moved = jnp.round(moved)
    return moved.astype(image.dtype).reshape(*size, *channels)


def _sources(
    matrix: Matrix, size: Size
) -> tuple[Float[Array, " pixels"], Float[Array, " pixels"]]:
    """Returns x and y in the input of the centres of the output's pixels."""
    back = invert(matrix)
    y, x = jnp.indices(size).reshape(2, -1) + 0.5
    # Not a matrix product, which accelerators do with few digits.
    return tuple(back[i, 0] * x + back[i, 1] * y + back[i, 2] for i in range(2))


def _inside(
    index: Int[Array, " pixels"], length: int, border: Border
) -> Int[Array, " pixels"]:
    """Returns indices that exist in place of those that may not."""
    if border == "reflect":
        index = index % (2 * length)
        return jnp.minimum(index, 2 * length - 1 - index)
    return jnp.clip(index, 0, length - 1)


def _over(values: Shaped[Array, " pixels"], pixels: Array) -> Array:
    """Returns one value a pixel, to broadcast over the channels of pixels."""
    return values.reshape(-1, *[1] * (pixels.ndim - 1))


def _check(image: Array, matrix: Array, method: str, border: str) -> None:
    if image.ndim not in (2, 3) or matrix.shape != (3, 3):
        raise ValueError(
            "warp takes one image (height, width, channels) or (height, width) and one "
            f"matrix (3, 3), not {image.shape} and {matrix.shape}; vmap it for a batch."
        )
    if method not in ("bilinear", "nearest"):
        raise ValueError(f'The method is "bilinear" or "nearest", not "{method}".')
    if border not in ("constant", "edge", "reflect"):
        raise ValueError(
            f'The border is "constant", "edge" or "reflect", not "{border}".'
        )
    if image.dtype == jnp.bool_ and method == "bilinear":
        raise ValueError(f'A mask of booleans {image.shape} is moved by "nearest".')
