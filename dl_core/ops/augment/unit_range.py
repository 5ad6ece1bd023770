"""Images as floats from 0 to 1 while something is computed on them."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Shaped

Image = Shaped[Array, "height width channels"]
"""Floats from 0 to 1, or bytes."""


def to_unit(image: Array) -> Float[Array, "height width channels"]:
    """Returns the image as floats from 0 to 1, of single precision at the least.

    Raises:
      ValueError: where it is not one image of floats or bytes.
    """
    if image.ndim != 3:
        raise ValueError(
            f"An image is (height, width, channels), not {image.shape}; vmap a batch."
        )
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image.astype(jnp.promote_types(image.dtype, jnp.float32))
    raise ValueError(
        "An image is floats from 0 to 1 or bytes (uint8), not "
        f"{image.dtype} {image.shape}."
    )


def from_unit(values: Float[Array, "height width channels"], dtype: DTypeLike) -> Image:
    """Returns the values, kept between 0 and 1, as an image of floats or bytes."""
    values = jnp.clip(values, 0, 1)
    return (jnp.round(values * 255) if dtype == jnp.uint8 else values).astype(dtype)
