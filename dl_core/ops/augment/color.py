"""Brightness, contrast, saturation and hue, as torchvision and Pillow define them.

The first three blend the image with black, with its mean grey, and with its own grey
version; a factor of 1 changes nothing, 0 leaves the other alone, and above 1 goes away
from it. Hue is an angle of the HSV cone, in turns. Values are kept between 0 and 1
after each.

Images of one channel are grey: they have brightness and contrast, and neither of the
other two changes them. Bytes are rounded to the nearest level, where torchvision
rounds down.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from dl_core.ops.augment.unit_range import Image, from_unit, to_unit

Planes = Float[Array, "channels height width"]

_LUMA = (0.2989, 0.587, 0.114)
"""How much red, green and blue add to grey: torchvision's rounding of ITU-R 601-2."""
_HUE = 3
"""Its number among the four; 0, 1 and 2 are brightness, contrast and saturation."""


def adjust_brightness(image: Image, factor: ArrayLike) -> Image:
    """Returns the image with all its values multiplied."""
    return _to_image(_blend(_to_planes(image), 0, factor), image)


def adjust_contrast(image: Image, factor: ArrayLike) -> Image:
    """Returns the image farther from (or, below 1, nearer to) its mean grey."""
    planes = _to_planes(image)
    return _to_image(_blend(planes, _gray(planes).mean(), factor), image)


def adjust_saturation(image: Image, factor: ArrayLike) -> Image:
    """Returns the image farther from (or, below 1, nearer to) its grey version."""
    planes = _to_planes(image)
    return _to_image(_blend(planes, _gray(planes), factor), image)


def adjust_hue(image: Image, turns: ArrayLike) -> Image:
    """Returns the image with its hues moved by this share of the circle of colours.

    Args:
      image: red, green and blue, or grey.
      turns: from −0.5 to 0.5, either end of which gives the opposite colours.
    """
    return _to_image(_turn_hue(_to_planes(image), turns), image)


def adjust_colors(
    image: Image, factors: Float[Array, "4"], order: Int[Array, "4"]
) -> Image:
    """Returns the image with all four adjusted, in any order.

    The order may be traced: it is not a branch, which under vmap would compute each of
    the four four times. The first three are blends with something, so one blend at each
    place before and after the hue is enough, with hue computed once.

    Args:
      image: red, green and blue, or grey.
      factors: of brightness, contrast and saturation, and the hue's turns.
      order: a permutation of 0 to 3, which number them as above; the first comes first.
    """
    planes = _to_planes(image)
    hue = jnp.argmax(order == _HUE)

    def blend(planes, place, applies):
        gray, number = _gray(planes), order[place]
        other = jnp.where(number == 2, gray, jnp.where(number == 1, gray.mean(), 0))
        return _blend(planes, other, jnp.where(applies, factors[number], 1))

    for place in range(3):
        planes = blend(planes, place, place < hue)
    planes = _turn_hue(planes, factors[_HUE])
    for place in range(1, 4):
        planes = blend(planes, place, place > hue)
    return _to_image(planes, image)


def color_jitter(
    key: Key[Array, ""],
    image: Image,
    *,
    brightness: ArrayLike = 0.0,
    contrast: ArrayLike = 0.0,
    saturation: ArrayLike = 0.0,
    hue: ArrayLike = 0.0,
) -> Image:
    """Returns the image with random adjustments in random order.

    Args:
      key: the randomness.
      image: red, green and blue, or grey.
      brightness: b for a factor uniform between max(0, 1 − b) and 1 + b.
      contrast: likewise.
      saturation: likewise.
      hue: h for a turn uniform between −h and h, at most 0.5.
    """
    to_factors, to_order = jax.random.split(key)
    strengths = jnp.stack([jnp.asarray(s) for s in (brightness, contrast, saturation)])
    drawn = jax.random.uniform(to_factors, (4,))
    low = jnp.maximum(1 - strengths, 0)
    factors = low + (1 + strengths - low) * drawn[:3]
    factors = jnp.append(factors, (2 * drawn[3] - 1) * hue)
    return adjust_colors(image, factors, jax.random.permutation(to_order, 4))


def _to_planes(image: Array) -> Planes:
    """Returns the image as floats from 0 to 1, channel by channel.

    What is computed on whole planes vectorises; on three numbers a pixel it does not.
    """
    unit = to_unit(image)
    if unit.shape[-1] not in (1, 3):
        raise ValueError(
            "Colours are those of an image with 3 channels (red, green, blue) or 1 "
            f"(grey), not {image.shape}."
        )
    return jnp.moveaxis(unit, -1, 0)


def _to_image(planes: Planes, image: Image) -> Image:
    return from_unit(jnp.moveaxis(planes, 0, -1), image.dtype)


def _gray(planes: Planes) -> Float[Array, "height width"]:
    if len(planes) == 1:
        return planes[0]
    return sum(share * plane for share, plane in zip(_LUMA, planes, strict=True))


def _blend(planes: Planes, other: ArrayLike, factor: ArrayLike) -> Planes:
    # In this form a factor of 1 and grey among grey are exact.
    return jnp.clip(planes + (1 - factor) * (other - planes), 0, 1)


def _turn_hue(planes: Planes, turns: ArrayLike) -> Planes:
    if len(planes) == 1:
        return planes
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    some = jnp.where(chroma > 0, chroma, 1)  # Grey has no hue: any will do.
    sixths = jnp.where(
        red == value,
        (green - blue) / some,
        jnp.where(green == value, 2 + (blue - red) / some, 4 + (red - green) / some),
    )

    def channel(start):
        # It falls from `value` by the chroma and comes back, a third after the last.
        phase = sixths + 6 * turns + start
        phase -= 6 * jnp.floor(phase / 6)  # As `% 6`, which is slow.
        return value - chroma * jnp.clip(jnp.minimum(phase, 4 - phase), 0, 1)

    turned = jnp.stack([channel(start) for start in (5, 3, 1)])
    return jnp.where(jnp.asarray(turns) == 0, planes, turned)
