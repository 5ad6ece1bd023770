"""Affine maps of the plane as 3×3 matrices, and their composition.

A matrix takes a point (x, y, 1) of the input image to the point of the output image
where it shows; its last row is (0, 0, 1). Coordinates are those of
`dl_core.ops.augment`: y points down, and pixels are unit squares. Angles are degrees,
counter-clockwise as one sees them.

Flips, quarter turns and moves by whole pixels hold whole and half numbers, which
floating point computes exactly; so images move under them without a change.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

Matrix = Float[Array, "3 3"]
Size = tuple[int, int]
"""Height and width, in pixels."""

_QUARTERS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
"""Cosine and sine of 0, 90, 180 and 270 degrees."""


def compose(first: Matrix, *others: Matrix) -> Matrix:
    """Returns the map that applies the first, then the second, and so on.

    This is the product from the last to the first. Write it so, not with `@`: by
    default accelerators may multiply with few digits, and 8 bits of a coordinate of
    500 are a shift by a pixel.
    """

    def product(done: Matrix, then: Matrix) -> Matrix:
        return sum(then[:, k, None] * done[k] for k in range(3))

    return functools.reduce(product, others, first)


def invert(matrix: Matrix) -> Matrix:
    """Returns the map back. Where the matrix is singular it is not finite."""
    (a, b, x), (c, d, y) = matrix[0], matrix[1]
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    return _matrix(a, b, -(a * x + b * y), c, d, -(c * x + d * y))


def translation(x: ArrayLike, y: ArrayLike) -> Matrix:
    """Returns the shift by x pixels to the right and y pixels down."""
    return _matrix(1, 0, x, 0, 1, y)


def scaling(x: ArrayLike, y: ArrayLike, size: Size) -> Matrix:
    """Returns the scaling about the image's centre; a factor above 1 enlarges."""
    return _about_center(_matrix(x, 0, 0, 0, y, 0), size)


def rotation(degrees: ArrayLike, size: Size) -> Matrix:
    """Returns the counter-clockwise rotation about the image's centre.

    Multiples of 90 degrees are exact, as long as height and width differ by an even
    number (else the pixels' centres would come to lie on edges).
    """
    degrees = jnp.asarray(degrees, jnp.float32)
    quarters = jnp.round(degrees / 90)
    # The cosine of π/2 in floating point is not 0.
    radians = jnp.deg2rad(degrees - 90 * quarters)
    cosine, sine = jnp.asarray(_QUARTERS)[quarters.astype(jnp.int32) % 4]
    cosine, sine = (
        cosine * jnp.cos(radians) - sine * jnp.sin(radians),
        sine * jnp.cos(radians) + cosine * jnp.sin(radians),
    )
    return _about_center(_matrix(cosine, sine, 0, -sine, cosine, 0), size)


def shear(x: ArrayLike, y: ArrayLike, size: Size) -> Matrix:
    """Returns the shear about the image's centre, first along x and then along y.

    From the centre, (x, y) moves to (x + tan(x angle) y, y) and that likewise along y.
    Areas stay as they are. Angles are in degrees.
    """
    x, y = (jnp.tan(jnp.deg2rad(jnp.asarray(angle, jnp.float32))) for angle in (x, y))
    return _about_center(_matrix(1, x, 0, y, 1 + x * y, 0), size)


def flip(
    horizontal: bool | Bool[Array, ""], vertical: bool | Bool[Array, ""], size: Size
) -> Matrix:
    """Returns the mirror image: left for right, top for bottom, both or neither."""
    return scaling(jnp.where(horizontal, -1, 1), jnp.where(vertical, -1, 1), size)


def dihedral(element: int | Int[Array, ""], size: Size) -> Matrix:
    """Returns one of the eight symmetries of a square image, exactly.

    Args:
      element: 0 to 3 are as many quarter turns counter-clockwise; 4 to 7 are a
        horizontal flip and then as many quarter turns less 4.
      size: height and width, which are equal.

    Raises:
      ValueError: where they are not.
    """
    if size[0] != size[1]:
        raise ValueError(f"Only a square image has its symmetries, not one of {size}.")
    element = jnp.asarray(element)
    mirrored = flip(element >= 4, False, size)
    return compose(mirrored, rotation(90 * (element % 4), size))


def crop(box: Float[Array, " 4"], size: Size) -> Matrix:
    """Returns the map of a box onto a whole image: a crop, resized.

    The whole image as the box is a plain resize.

    Args:
      box: xyxy in pixels of the input.
      size: height and width of the output.
    """
    x_min, y_min, x_max, y_max = box
    x, y = size[1] / (x_max - x_min), size[0] / (y_max - y_min)
    return _matrix(x, 0, -x * x_min, 0, y, -y * y_min)


def _about_center(matrix: Matrix, size: Size) -> Matrix:
    height, width = size
    to, back = translation(-width / 2, -height / 2), translation(width / 2, height / 2)
    return compose(to, matrix, back)


def _matrix(*entries: ArrayLike) -> Matrix:
    """Returns the matrix of six numbers, row by row."""
    rows = [jnp.asarray(entry, jnp.float32) for entry in (*entries, 0, 0, 1)]
    return jnp.stack(rows).reshape(3, 3)
