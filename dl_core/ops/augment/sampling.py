"""Random affine maps: what to give to `warp`, drawn from a key.

Each returns one matrix, and `compose` makes one of several. Ranges and probabilities
may be traced; sizes are static.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from dl_core.ops.augment import affine
from dl_core.ops.augment.affine import Matrix, Size, compose

_ATTEMPTS = 10
"""How often torchvision draws a crop before it takes the middle one."""

Range = tuple[ArrayLike, ArrayLike]


def random_affine(
    key: Key[Array, ""],
    size: Size,
    *,
    degrees: ArrayLike = 0.0,
    scale: Range = (1.0, 1.0),
    shear: ArrayLike = 0.0,
    translate: ArrayLike = 0.0,
) -> Matrix:
    """Returns a shear, a scaling, a rotation about the centre, and a shift: in order.

    Args:
      key: the randomness.
      size: height and width of the image.
      degrees: rotated uniformly up to this, to either side.
      scale: the range of the factor; its logarithm is uniform, so that halving is as
        likely as doubling.
      shear: sheared along either axis uniformly up to this angle in degrees.
      translate: shifted uniformly up to this share of the width and of the height.
    """
    to_turn, to_scale, to_shear, to_shift = jax.random.split(key, 4)
    # Scaled afterwards, so that a range of 0 is no error and exact.
    shift = jax.random.uniform(to_shift, (2,), minval=-1) * translate
    angles = jax.random.uniform(to_shear, (2,), minval=-1) * shear
    logarithms = jnp.log(scale[0]), jnp.log(scale[1])
    factor = jnp.exp(_between(logarithms, jax.random.uniform(to_scale)))
    turn = jax.random.uniform(to_turn, minval=-1) * degrees
    return compose(
        affine.shear(angles[0], angles[1], size),
        affine.scaling(factor, factor, size),
        affine.rotation(turn, size),
        affine.translation(shift[0] * size[1], shift[1] * size[0]),
    )


def random_flip(
    key: Key[Array, ""],
    size: Size,
    *,
    horizontal: ArrayLike = 0.5,
    vertical: ArrayLike = 0.0,
) -> Matrix:
    """Returns flips with these probabilities, independent of each other."""
    drawn = jax.random.uniform(key, (2,))
    return affine.flip(drawn[0] < horizontal, drawn[1] < vertical, size)


def random_dihedral(
    key: Key[Array, ""], size: Size, *, reflections: bool = True
) -> Matrix:
    """Returns one of the eight symmetries of a square, or of its four rotations."""
    element = jax.random.randint(key, (), 0, 8 if reflections else 4)
    return affine.dihedral(element, size)


def random_crop(
    key: Key[Array, ""], size: Size, new_size: Size, *, padding: int = 0
) -> Matrix:
    """Returns a crop at a uniformly drawn place, by whole pixels.

    Args:
      key: the randomness.
      size: height and width of the image.
      new_size: height and width of the crop; give the same to `warp`.
      padding: pixels that the image is thought wider on each side. What they show is
        the warp's border.

    Raises:
      ValueError: where the crop is larger than the padded image.
    """
    room = [old + 2 * padding - new for old, new in zip(size, new_size, strict=True)]
    if min(room) < 0:
        raise ValueError(
            f"A crop of {new_size} does not fit into an image of {size} with {padding} "
            "pixels of padding."
        )
    y, x = jax.random.randint(key, (2,), 0, jnp.array(room) + 1) - padding
    return affine.translation(-x, -y)


def random_resized_crop(
    key: Key[Array, ""],
    size: Size,
    new_size: Size,
    *,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
) -> Matrix:
    """Returns a crop of random area and shape, resized: RandomResizedCrop.

    As torchvision has it, ten crops are drawn, with sides and places of whole pixels.
    The first that fits into the image is taken; if none does, the largest in the middle
    whose shape is in range.
    Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.

    Args:
      key: the randomness.
      size: height and width of the image.
      new_size: height and width of the output; give the same to `warp`.
      scale: the range of the crop's share of the image's area, uniform.
      ratio: the range of its width over its height, uniform in the logarithm.
    """
    height, width = size
    to_area, to_ratio, to_place = jax.random.split(key, 3)
    area = _between(scale, jax.random.uniform(to_area, (_ATTEMPTS,)))
    narrow_to_wide = jnp.log(ratio[0]), jnp.log(ratio[1])
    ratios = jnp.exp(
        _between(narrow_to_wide, jax.random.uniform(to_ratio, (_ATTEMPTS,)))
    )
    sides = jnp.stack([jnp.sqrt(area * ratios), jnp.sqrt(area / ratios)], axis=1)
    sides = jnp.round(sides * math.sqrt(width * height))
    limits = jnp.array([width, height])
    fits = ((sides > 0) & (sides <= limits)).all(1)
    # Where none fits: as much of the image as has a permitted shape.
    permitted = jnp.clip(width / height, ratio[0], ratio[1])
    largest = jnp.stack([height * permitted, width / permitted])
    largest = jnp.round(jnp.minimum(limits, largest))
    taken = jnp.where(fits.any(), sides[jnp.argmax(fits)], largest).astype(jnp.int32)
    room = limits - taken
    place = jax.random.randint(to_place, (2,), 0, room + 1)
    place = jnp.where(fits.any(), place, room // 2)
    box = jnp.concatenate([place, place + taken]).astype(jnp.float32)
    return affine.crop(box, new_size)


def _between(limits: Range, share: Float[Array, "..."]) -> Float[Array, "..."]:
    low, high = limits
    return low + (high - low) * share
