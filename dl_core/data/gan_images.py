"""Small square images for generative models: batches by name, values from -1 to 1.

28×28 digits and clothes get a black border of two pixels, so that all sets are of 32×32
pixels, which strided networks halve evenly. Smaller sides are for quick runs on CPUs.
"""

import os
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dl_core.config import config, static
from dl_core.data.batches import Batch, InMemory, Prepare, Streamed
from dl_core.data.named import named_batches
from dl_core.ops.pooling import avg_pool

SHAPES = {
    "mnist_subset": (28, 28, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
}
"""Height, width and channels of the images, by TFDS name. All have ten classes."""
CLASSES = 10
_SIDE = 32


@config
class Images:
    """Which images."""

    name: Literal["mnist_subset", "mnist", "fashion_mnist", "cifar10"] = static(
        "mnist_subset", "TFDS data set."
    )
    size: Literal[8, 16, 32] = static(
        32, "Pixels a side; below 32, averages of squares."
    )

    test: str = static("test", "Split, or a slice of one, to compare with.")

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colours."""
        return SHAPES[self.name][2]


def image_batches(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None,
    batch_size: int,
    prepare: Prepare | None = None,
) -> InMemory | Streamed:
    """Returns batches of `image` (bytes) and `label`; see `named_batches`.

    Args:
      name: one of `SHAPES`.
      split: one of its splits, or a slice of one.
      data_dir: the root of the prepared data sets.
      batch_size: examples in a batch.
      prepare: run in the compiled step; `to_unit` belongs there.
    """
    shapes = {"image": SHAPES[name], "label": ()}
    return named_batches(name, split, data_dir, batch_size, shapes, prepare)


def prepare(config: Any, batch: Batch, key: Any) -> dict[str, Array]:
    """Returns a batch with its images as `example`, for `image_batches`.

    Args:
      config: has the `Images` as `data`.
      batch: with `image`, bytes.
      key: not used.
    """
    return {**batch, "example": to_unit(batch["image"], config.data.size)}


def with_latents(batches: InMemory, latent: int) -> InMemory:
    """Returns evaluation batches that also hold `latents`, the same in every run.

    Args:
      batches: of a split, a latent for each of its examples.
      latent: dimensions of a latent.
    """
    latents = np.random.default_rng(0).standard_normal(
        (batches.size, latent), np.float32
    )
    arrays = {**batches.resident, "latents": latents}
    return InMemory(arrays, batches.batch_size, batches.assemble.prepare)


def to_unit(
    images: UInt8[Array, "n height width channels"], size: int = _SIDE
) -> Float[Array, "n size size channels"]:
    """Returns images as numbers from -1 (black) to 1.

    Args:
      images: bytes, at most 32 pixels a side; a black border makes them 32.
      size: pixels a side of the result, a divisor of 32.

    Raises:
      ValueError: if the images are larger, or `size` does not divide 32.
    """
    if max(images.shape[1:3]) > _SIDE or _SIDE % size:
        raise ValueError(
            f"to_unit: expected images of at most {_SIDE}×{_SIDE} pixels and a size "
            f"that divides {_SIDE}, got {images.shape} and size {size}"
        )
    missing = [_SIDE - side for side in images.shape[1:3]]
    border = [(m // 2, m - m // 2) for m in missing]
    padded = jnp.pad(images, [(0, 0), *border, (0, 0)])
    values = padded.astype(jnp.float32) / 127.5 - 1
    return avg_pool(values, _SIDE // size) if size < _SIDE else values
