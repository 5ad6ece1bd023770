"""How the training images of a detector are varied: one affine map, and colours."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dl_core.ops.augment import affine, random_affine
from dl_core.ops.augment.detection import (
    distort,
    expose,
    move_objects,
    random_patch,
    stretch,
    zoom_out,
)


def augment(
    settings: Any, example: Mapping[str, Array], key: Key[Array, ""]
) -> dict[str, Array]:
    """Returns an example of `dl_core.data.detection` varied, traced.

    Args:
      settings: `DetectionData`.
      example: with `image` (bytes), `boxes`, `labels`, `difficult`; perhaps proposals.
      key: the randomness.

    Returns:
      The example with an image of numbers from 0 to 255, and boxes moved with it.
    """
    to_flip, to_zoom, to_patch, to_whether, to_color = jax.random.split(key, 5)
    image, size = example["image"].astype(jnp.float32) / 255, example["image"].shape[:2]
    flipped = jax.random.uniform(to_flip) < settings.flip
    mirror = affine.flip(flipped, False, size)
    if settings.augment == "flip":
        image = jnp.where(flipped, image[:, ::-1], image)
        return {**move_objects(example, mirror, size, min_size=0), "image": 255 * image}
    if settings.augment == "ssd":
        canvas = zoom_out(
            to_zoom,
            size,
            probability=settings.zoom_out,
            largest=settings.zoom_out_side,
        )
        canvas = affine.compose(mirror, canvas)
        there = move_objects(example, canvas, size)
        patch, _ = random_patch(to_patch, there["boxes"], there["labels"] >= 0, size)
        whole = jnp.array([0, 0, size[1], size[0]], jnp.float32)
        chosen = jax.random.uniform(to_whether) < settings.patch
        crop = affine.crop(jnp.where(chosen, patch, whole), size)
        matrix = affine.compose(canvas, crop)
    else:
        most = 1 + settings.scaling
        moved = random_affine(
            to_zoom, size, scale=(1 / most, most), translate=settings.translation
        )
        matrix = affine.compose(mirror, moved)
    moved = move_objects(example, matrix, size)
    # What is outside has the image's mean colour.
    image = stretch(image, matrix, fill=image.mean((0, 1)))
    if settings.augment == "ssd":
        image = distort(to_color, image, strength=settings.distort)
    else:
        image = expose(
            to_color,
            image,
            saturation=settings.saturation,
            exposure=settings.exposure,
        )
    return {**moved, "image": 255 * image}
