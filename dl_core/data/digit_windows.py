"""Windows cut from scenes of digits: of the digit, at the right size, or of none.

A window shows the digit where their centres are near each other and the digit's longer
side fits; else it shows the background, which may be a part of a digit, one of another
size, or clutter. The scene is resized before, and there is black around it.

    batch = cut(scenes, key, windows, side=40, scales=(0.8, 1.6), border=12)
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dl_core.config import config, traced
from dl_core.ops.boxes import to_centers

BACKGROUND = 10
"""The label of a window without a digit."""


@config
class WindowConfig:
    """Which windows there are, and when they show the digit."""

    aimed: float = traced(
        0.5, "Share of windows put on the digit.", at_least=0, at_most=1
    )
    shortest: float = traced(
        20.0,
        "Longer side of the smallest digit shown, in pixels.",
        above=0,
    )
    longest: float = traced(27.0, "Longer side of the largest.", above=0)
    apart: float = traced(
        6.0, "Largest distance of the centres on an axis, in pixels.", at_least=0
    )


def cut(
    scenes: Mapping[str, Array],
    key: Key[Array, ""],
    chosen: WindowConfig,
    *,
    side: int,
    scales: tuple[float, float],
    border: int,
) -> dict[str, Array]:
    """Returns a window of each scene, traced.

    Args:
      scenes: `image` (n, height, width, 1), `box` (n, 4), xyxy, and `label` (n,), of
        one digit each.
      key: the randomness.
      chosen: which windows.
      side: of a window, in pixels.
      scales: between which scenes are resized where windows lie anywhere.
      border: how far these reach beyond the resized scene, in pixels.

    Returns:
      `image` (n, side, side, 1); `label` (n,), the digit's or `BACKGROUND`; `box`
      (n, 4), the digit's, in sides of the window.
    """

    def one(
        image: Float[Array, "height width 1"], box: Array, label: Array, key: Array
    ):
        to_kind, to_scale, to_place = jax.random.split(key, 3)
        aimed = jax.random.bernoulli(to_kind, chosen.aimed)
        part, place = jax.random.uniform(to_scale), jax.random.uniform(to_place, (2,))
        middle, longer = to_centers(box)[:2], to_centers(box)[2:].max()
        height, width, _ = image.shape

        wanted = chosen.shortest + (chosen.longest - chosen.shortest) * part
        low, high = scales
        scale = jnp.where(aimed, wanted / longer, low * (high / low) ** part)
        first = side / 2 - border
        last = scale * jnp.array([width, height]) + border - side / 2
        anywhere = first + jnp.maximum(last - first, 0) * place
        about = scale * middle + chosen.apart * (2 * place - 1)
        center = jnp.where(aimed, about, anywhere)
        corner = center - side / 2
        window = jax.image.scale_and_translate(
            image,
            (side, side, 1),
            (0, 1),
            jnp.stack([scale, scale]),
            -corner[::-1],
            "linear",
        )
        fits = (chosen.shortest <= scale * longer) & (scale * longer <= chosen.longest)
        near = (jnp.abs(scale * middle - center) <= chosen.apart).all()
        return {
            "image": window,
            "label": jnp.where(aimed | (fits & near), label, BACKGROUND),
            "box": (scale * box - jnp.tile(corner, 2)) / side,
        }

    keys = jax.random.split(key, len(scenes["label"]))
    return jax.vmap(one)(scenes["image"], scenes["box"], scenes["label"], keys)
