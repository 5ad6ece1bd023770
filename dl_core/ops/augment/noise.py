"""What makes an image worse on purpose: noise, blur, and a missing square."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from dl_core.ops.augment.unit_range import Image, from_unit, to_unit


def gaussian_noise(key: Key[Array, ""], image: Image, sigma: ArrayLike) -> Image:
    """Returns the image with independent normal noise on each value.

    Args:
      key: the randomness.
      image: floats from 0 to 1, within which the result is kept, or bytes.
      sigma: standard deviation, on the range from 0 to 1.
    """
    unit = to_unit(image)
    noise = jax.random.normal(key, unit.shape, unit.dtype)
    return from_unit(unit + sigma * noise, image.dtype)


def gaussian_blur(image: Image, sigma: ArrayLike, radius: int) -> Image:
    """Returns the image convolved with a Gaussian, mirrored at its edges.

    The Gaussian is sampled at whole pixels, cut off and made to sum to 1, as SciPy's
    and torchvision's are. It runs over rows and columns as weighted sums of shifted
    images, which vmap well where every image has a filter of its own.

    Args:
      image: floats from 0 to 1, or bytes.
      sigma: standard deviation in pixels, which may be traced; 0 changes nothing.
      radius: pixels to either side where it is cut off; 3 sigma loses 0.3 %.

    Raises:
      ValueError: where the radius is negative.
    """
    if radius < 0:
        raise ValueError(f"The radius of a blur of {image.shape} is 0 or more.")
    unit = to_unit(image)
    offsets = jnp.arange(-radius, radius + 1)
    # So small that the neighbours' weights are 0, and no 0 / 0.
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
    weights = (weights / weights.sum()).astype(unit.dtype)
    for axis in range(2):
        widths = [(radius, radius) if axis == i else (0, 0) for i in range(3)]
        padded = jnp.pad(unit, widths, mode="symmetric")
        length = unit.shape[axis]
        unit = sum(
            weight * jax.lax.slice_in_dim(padded, start, start + length, axis=axis)
            for start, weight in enumerate(weights)
        )
    return from_unit(unit, image.dtype)


def random_gaussian_blur(
    key: Key[Array, ""],
    image: Image,
    sigma: tuple[ArrayLike, ArrayLike] = (0.1, 2.0),
    *,
    radius: int = 6,
) -> Image:
    """Returns the image blurred with a standard deviation uniform in a range."""
    drawn = jax.random.uniform(key, minval=sigma[0], maxval=sigma[1])
    return gaussian_blur(image, drawn, radius)


def cutout(
    key: Key[Array, ""], image: Image, length: ArrayLike, fill: ArrayLike = 0.0
) -> Image:
    """Returns the image with a square of it filled.

    DeVries & Taylor, "Improved regularization of convolutional neural networks with
    Cutout", 2017. The centre is any pixel, so the square may lie partly outside; they
    find that this matters.

    Args:
      key: the randomness.
      image: floats or bytes.
      length: the square's side in whole pixels, which may be traced; 0 cuts nothing.
      fill: a value, or one for each channel, in the image's own range. 0 is the mean
        of images that are standardised already.

    Raises:
      ValueError: where the image is not (height, width, channels).
    """
    if image.ndim != 3:
        raise ValueError(
            f"An image is (height, width, channels), not {image.shape}; vmap a batch."
        )
    size = jnp.array(image.shape[:2])
    start = jax.random.randint(key, (2,), 0, size) - jnp.asarray(length) // 2
    places = [jnp.arange(n) for n in image.shape[:2]]
    rows, columns = (
        (start[i] <= place) & (place < start[i] + length)
        for i, place in enumerate(places)
    )
    cut = (rows[:, None] & columns)[..., None]
    return jnp.where(cut, jnp.asarray(fill, image.dtype), image)
