"""One-dimensional shapes whose heights are to be made equal, in pairs.

The task of Fleuret's course "Deep learning" (EE-559 of EPFL, lecture 13.2): a sequence
shows two triangles and two boxes of random places, heights and widths, none of which
touches another. The target shows the same, but that both of a pair have the mean of
their heights. Pairs are made of shapes of one type, or of the two on the left and the
two on the right. What a network must find is far away: it must ask what to look for.

Both sequences have noise of ±0.15. Two shapes of a type differ by more than 4 in
height, and two places' mean heights too, so that no answer is nearly the input. (The
course's code compares the triangles twice and the boxes never.)
"""

import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from dl_core.config import config, static

HEIGHTS = 1.0, 25.0
WIDTHS = 5.0, 11.0
NOISE = 0.15
"""The noise is uniform between minus and plus this."""
LEAST_ERROR = NOISE**2 / 3
"""The squared error of one who knows all but the target's noise: its variance."""
_DIFFERENCE = 4.0
_CHUNK = 4_096
_SEED = 559

Sequences = Float[np.ndarray, "examples length"]


@config
class Shapes:
    """Which pairs, and how many sequences."""

    pairs: Literal["type", "place"] = static(
        "type", "What a pair has in common: its type, or being on the left or right."
    )
    length: int = static(100, "Positions of a sequence.", at_least=60)
    train: int = static(25_000, "Sequences to train on.", at_least=1)
    test: int = static(1_000, "Sequences to test on.", at_least=1)


@functools.lru_cache(maxsize=4)
def read(shapes: Shapes) -> dict[str, dict[str, Sequences]]:
    """Returns "train" and "test", inputs and targets each; always the same ones."""
    return {
        split: _sample(
            shapes, getattr(shapes, split), np.random.default_rng([_SEED, i])
        )
        for i, split in enumerate(("train", "test"))
    }


def _sample(
    shapes: Shapes, count: int, rng: np.random.Generator
) -> dict[str, Sequences]:
    found, chunks = 0, []
    for chunk in _chunks(shapes, rng):
        chunks.append(chunk)
        found += len(chunk["inputs"])
        if found >= count:
            break
    return {
        name: np.concatenate([chunk[name] for chunk in chunks])[:count]
        for name in ("inputs", "targets")
    }


def _chunks(shapes: Shapes, rng: np.random.Generator) -> Iterator[dict[str, Sequences]]:
    """Yields examples without end: of many random ones, those that may be."""
    size = (_CHUNK, 4)
    while True:
        places = rng.uniform(WIDTHS[1] / 2, shapes.length - WIDTHS[1] / 2, size)
        heights, widths = rng.uniform(*HEIGHTS, size), rng.uniform(*WIDTHS, size)
        pairs = pairs_of(shapes.pairs, places)
        means = mean_heights(heights, pairs)
        inputs = draw(places, heights, widths, shapes.length)
        kept = different(shapes.pairs, heights, pairs) & ~touching(inputs)
        targets = draw(places, means, widths, shapes.length)
        yield {
            name: _noisy(drawn[kept].max(axis=1), rng)
            for name, drawn in (("inputs", inputs), ("targets", targets))
        }


def pairs_of(
    pairs: str, places: Float[np.ndarray, "examples 4"]
) -> Bool[np.ndarray, "examples 4"]:
    """Returns which of the shapes (two triangles, two boxes) are of the first pair."""
    if pairs == "type":
        return np.broadcast_to(np.arange(4) < 2, places.shape)
    return places < np.sort(places, axis=1)[:, 2:3]


def mean_heights(
    heights: Float[np.ndarray, "examples 4"], first: Bool[np.ndarray, "examples 4"]
) -> Float[np.ndarray, "examples 4"]:
    """Returns the mean height of each shape's pair."""
    means = [
        (heights * mask).sum(axis=1, keepdims=True) / 2 for mask in (first, ~first)
    ]
    return np.where(first, *means)


def different(
    pairs: str,
    heights: Float[np.ndarray, "examples 4"],
    first: Bool[np.ndarray, "examples 4"],
) -> Bool[np.ndarray, " examples"]:
    """Returns which examples have heights different enough."""
    if pairs == "type":
        return (np.abs(heights[:, ::2] - heights[:, 1::2]) > _DIFFERENCE).all(axis=1)
    means = mean_heights(heights, first)
    return np.ptp(means, axis=1) > _DIFFERENCE


def draw(
    places: Float[np.ndarray, "examples 4"],
    heights: Float[np.ndarray, "examples 4"],
    widths: Float[np.ndarray, "examples 4"],
    length: int,
) -> Float[np.ndarray, "examples 4 length"]:
    """Returns each shape by itself: two triangles, flat for a position, two boxes."""
    places, heights, widths = (x[..., None] for x in (places, heights, widths))
    away = np.abs(np.arange(length) - places) / (widths / 2)
    flat = 0.5 / (widths / 2)
    triangles = np.maximum(1 - np.maximum(away - flat, 0), 0)
    boxes = away < 1
    return heights * np.concatenate([triangles[:, :2], boxes[:, 2:]], axis=1)


def touching(
    drawn: Float[np.ndarray, "examples 4 length"],
) -> Bool[np.ndarray, " examples"]:
    """Returns in which examples two shapes share a position or are neighbours."""
    there = drawn > 0
    near = there[..., 1:] | there[..., :-1]
    return (near.sum(axis=1) > 1).any(axis=-1)


def _noisy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (x + rng.uniform(-NOISE, NOISE, x.shape)).astype(np.float32)
