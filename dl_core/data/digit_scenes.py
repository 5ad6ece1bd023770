"""Scenes of handwritten digits with exact boxes, drawn on the device without end.

Digits of random sizes lie at random places of a black canvas, among pieces of other
digits, which are no objects. Where strokes cross, the brighter one shows. The clutter
is that of Mnih et al., "Recurrent models of visual attention", NIPS 2014, section 4.1.
A box holds just the pixels of its digit that are not black.

    def make(config, digits, key):
        return generate(config.data, key, digits, config.batch_size)

    train = SceneBatches(read_digits("train", data_dir), make, config.batch_size)
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from dl_core.config import config, static, traced
from dl_core.data.batches import Batch, Generated
from dl_core.data.memory import load
from dl_core.ops.augment.detection import linear_weights
from dl_core.ops.boxes import area, pairwise_iou

CLASSES = tuple(str(digit) for digit in range(10))
_VALIDATION = 10
"""One in so many digits to train on is left for validation."""
_PIECE = 9
"""Pixels on a side of a piece of clutter."""
_LAYOUTS = 16
"""Layouts drawn for a scene, of which that with the least overlap is taken."""
_EVALUATION = 0x5CE9E

Digits = Mapping[str, Array | np.ndarray]
Make = Callable[[Any, Digits, Any], Batch]


@config
class SceneConfig:
    """What the scenes show."""

    height: int = static(64, "Pixels of a scene.", at_least=16)
    width: int = static(64, "Pixels of a scene.", at_least=16)
    least: int = static(1, "Fewest digits in a scene.", at_least=0)
    most: int = static(1, "Most digits in a scene.", at_least=1)
    smallest: float = traced(
        20.0, "Side of the smallest digit's image, in pixels (28 as it is).", above=0
    )
    largest: float = traced(44.0, "Side of the largest digit's image.", above=0)
    clutter: int = static(6, "Pieces of other digits in a scene.", at_least=0)


def read_digits(
    split: Literal["train", "validation", "test"],
    data_dir: str | os.PathLike | None,
    name: str = "mnist_subset",
) -> dict[str, np.ndarray]:
    """Returns the digits that scenes of a split show, no two splits the same one.

    Args:
      split: validation is a tenth of the training images.
      data_dir: the root of the prepared data sets.
      name: a TFDS set as MNIST is.

    Returns:
      `image` (n, 28, 28), bytes, and `label` (n,).
    """
    arrays = load(name, "test" if split == "test" else "train", data_dir)
    images, labels = arrays["image"][..., 0], arrays["label"].astype(np.int32)
    held = len(images) // _VALIDATION
    rows = {
        "train": slice(held, None),
        "validation": slice(held),
        "test": slice(None),
    }[split]
    return {"image": np.asarray(images[rows]), "label": labels[rows]}


def generate(
    scene: SceneConfig, key: Key[Array, ""], digits: Digits, count: int
) -> dict[str, Array]:
    """Returns scenes, traced.

    Args:
      scene: what they show.
      key: the randomness.
      digits: `image` (n, side, side), bytes, and `label` (n,), to draw from.
      count: of the scenes.

    Returns:
      `image` (count, height, width, 1), bytes; `boxes` (count, most, 4), xyxy in
      pixels, padded with 0; `labels` (count, most), padded with -1.
    """
    image, label = jnp.asarray(digits["image"]), jnp.asarray(digits["label"])

    def draw(key: Key[Array, ""]) -> dict[str, Array]:
        planes, labels = draw_objects(scene, key, image, label)
        clutter = _clutter(scene, jax.random.fold_in(key, 1), image)
        return {
            "image": jnp.concatenate([planes, clutter]).max(0)[..., None],
            "boxes": jax.vmap(extent)(planes),
            "labels": labels,
        }

    return jax.vmap(draw)(jax.random.split(key, count))


def draw_objects(
    scene: SceneConfig,
    key: Key[Array, ""],
    image: UInt8[Array, "n side side"],
    label: Int[Array, " n"],
) -> tuple[UInt8[Array, "most height width"], Int[Array, " most"]]:
    """Returns each digit of one scene on a canvas of its own, and its label.

    Canvases beyond the number of digits are black, their labels -1.
    """
    to_count, to_digit, to_side, to_place = jax.random.split(key, 4)
    shape = jnp.array([scene.height, scene.width], jnp.float32)
    chosen = jax.random.randint(to_digit, (scene.most,), 0, len(image))
    number = jax.random.randint(to_count, (), scene.least, scene.most + 1)
    there = jnp.arange(scene.most) < number
    sides = jax.random.uniform(to_side, (scene.most, 1))
    sides = scene.smallest + (scene.largest - scene.smallest) * sides
    places = jax.random.uniform(to_place, (_LAYOUTS, scene.most, 2))
    places *= jnp.maximum(shape - sides, 0)
    place = places[
        jnp.argmin(jax.vmap(_overlap, (0, None, None))(places, sides, there))
    ]
    planes = jax.vmap(_paste, (0, 0, 0, None))(
        image[chosen], place, sides[:, 0], (scene.height, scene.width)
    )
    planes = jnp.where(there[:, None, None], planes, 0)
    return planes, jnp.where(there, label[chosen], -1)


def extent(plane: UInt8[Array, "height width"]) -> Float[Array, " 4"]:
    """Returns the box (xyxy) of the pixels that are not black; 0 where all are."""
    rows, columns = (plane > 0).any(1), (plane > 0).any(0)

    def ends(there):
        return jnp.argmax(there), len(there) - jnp.argmax(there[::-1])

    (y_min, y_max), (x_min, x_max) = ends(rows), ends(columns)
    box = jnp.stack([x_min, y_min, x_max, y_max]).astype(jnp.float32)
    return jnp.where(rows.any(), box, 0)


class SceneBatches(Generated):
    """Scenes from a key; evaluation has scenes of its own, the same in every run."""

    def __init__(
        self, digits: Digits, make: Make, batch_size: int, eval_batches: int = 1
    ):
        """Args:
        digits: as `read_digits` has them; they stay on the device.
        make: traced `(config, digits, key) -> batch`; a module-level function.
        batch_size: examples in a batch that `make` returns.
        eval_batches: batches in the evaluation set.
        """
        super().__init__(_no_digits, batch_size, eval_batches)
        self.resident = dict(digits)
        self.assemble = _Assemble(make)


@dataclasses.dataclass(frozen=True)
class _Assemble:
    make: Make

    def __call__(self, config, resident, inputs, key):
        if "mask" not in inputs:
            return self.make(config, resident, key)
        fixed = jax.random.fold_in(jax.random.key(_EVALUATION), inputs["number"])
        batch = self.make(config, resident, fixed)
        rows = jax.tree.leaves(batch)[0].shape[0]
        return {**batch, "mask": jnp.broadcast_to(inputs["mask"], rows)}


def _no_digits(config, key):
    raise TypeError("scenes are made of digits")


def _clutter(
    scene: SceneConfig, key: Key[Array, ""], image: UInt8[Array, "n side side"]
) -> UInt8[Array, "pieces height width"]:
    """Returns pieces of digits at random places, on a canvas each."""
    to_digit, to_piece, to_place = jax.random.split(key, 3)
    chosen = jax.random.randint(to_digit, (scene.clutter,), 0, len(image))
    room = image.shape[-1] - _PIECE
    corners = jax.random.randint(to_piece, (scene.clutter, 2), 0, room + 1)
    limits = jnp.array([scene.height - _PIECE, scene.width - _PIECE])
    places = jax.random.randint(to_place, (scene.clutter, 2), 0, limits + 1)

    def piece(number, corner, place):
        part = jax.lax.dynamic_slice(image[number], corner, (_PIECE, _PIECE))
        canvas = jnp.zeros((scene.height, scene.width), jnp.uint8)
        return jax.lax.dynamic_update_slice(canvas, part, place)

    return jax.vmap(piece)(chosen, corners, places)


def _overlap(
    place: Float[Array, "digits 2"],
    sides: Float[Array, "digits 1"],
    there: Array,
) -> Float[Array, ""]:
    """Returns how much digits cover each other: 0 where none touches another."""
    boxes = jnp.concatenate([place, place + sides], 1)
    covered = jnp.triu(pairwise_iou(boxes, boxes), 1) * area(boxes).mean()
    return jnp.where(there[:, None] & there, covered, 0).sum()


def _paste(
    image: UInt8[Array, "side side"],
    place: Float[Array, " 2"],
    side: Float[Array, ""],
    size: tuple[int, int],
) -> UInt8[Array, "height width"]:
    """Returns an image resized and put at a place (y, x) of a black canvas."""
    down, across = (
        linear_weights(side / image.shape[0], shift, image.shape[0], length)
        for shift, length in zip(place, size, strict=True)
    )
    # Else accelerators multiply with few digits.
    pasted = jnp.matmul(down, image.astype(jnp.float32), precision="highest")
    pasted = jnp.matmul(pasted, across.T, precision="highest")
    return jnp.round(pasted).astype(jnp.uint8)
