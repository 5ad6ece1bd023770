"""Rotated MNIST, made from a data set of upright digits by turning each at random.

The task of Larochelle et al., "An empirical evaluation of deep architectures on
problems with many factors of variation", ICML 2007, with the sizes of the sets that
Cohen & Welling, "Group equivariant convolutional networks", ICML 2016, give: 10,000
images to train on, 2,000 to validate, 50,000 to test. Their files are not used: the
images are drawn from all 70,000 of MNIST and turned here, with a fixed seed, so numbers
on them are comparable, not identical.
"""

import functools
import os

import numpy as np
from jaxtyping import Float, Int, Shaped

from dl_core.data.memory import Arrays, load
from dl_core.errors import UserError

SEED = 2016
"""Chooses which images fall into which set, and their angles; the same for all runs."""

_CHUNK = 4_096
_QUARTERS = np.array([1, 1j, -1, -1j])


def rotate(
    images: Shaped[np.ndarray, "images height width channels"],
    degrees: Float[np.ndarray, " images"],
) -> Float[np.ndarray, "images height width channels"]:
    """Returns the images turned about their centres, bilinearly interpolated.

    What comes in from outside is 0. Multiples of 90 degrees move pixels of square
    images and change none.

    Args:
      images: of any size and type.
      degrees: how far each is turned, counter-clockwise.

    Raises:
      ValueError: if there is not one angle for each of the images.
    """
    if images.ndim != 4 or degrees.shape != images.shape[:1]:
        raise ValueError(
            "rotate: expected images (images, height, width, channels) and an angle "
            f"each, got {images.shape} and {degrees.shape}"
        )
    parts = range(0, len(images), _CHUNK)
    turned = [_rotate(images[i : i + _CHUNK], degrees[i : i + _CHUNK]) for i in parts]
    return np.concatenate([np.empty_like(images[:0], np.float32), *turned])


def rotated(
    name: str,
    data_dir: str | os.PathLike | None,
    train: int,
    validation: int,
    test: int,
) -> dict[str, Arrays]:
    """Returns disjoint sets of images turned by uniformly random angles.

    All examples of the data set's splits "train" and "test" are shuffled together and
    dealt out; which is which and the angles depend on `SEED` alone.

    Args:
      name: a TFDS data set of square images with labels.
      data_dir: the root of the prepared data sets.
      train: examples of the training set.
      validation: examples of the validation set.
      test: examples of the test set.

    Returns:
      For "train", "validation" and "test" the fields `image` (bytes scaled to numbers
      from 0 to 1, turned), `upright` (the bytes as they were) and `label`.

    Raises:
      UserError: if the data set does not hold as many examples.
    """
    root = None if data_dir is None else os.fspath(data_dir)
    return _rotated(name, root, train, validation, test)


@functools.lru_cache(maxsize=2)
def _rotated(
    name: str, data_dir: str | None, train: int, validation: int, test: int
) -> dict[str, Arrays]:
    parts = [load(name, split, data_dir) for split in ("train", "test")]
    image, label = (
        np.concatenate([part[field] for part in parts]) for field in ("image", "label")
    )
    wanted = train + validation + test
    if wanted > len(image):
        raise UserError(
            f"rotated images: {train:,} + {validation:,} + {test:,} are asked for, "
            f"{name} holds {len(image):,}"
        )
    generator = np.random.default_rng(SEED)
    chosen = generator.permutation(len(image))[:wanted]
    angles = generator.uniform(0, 360, wanted)
    turned = rotate(image[chosen], angles) / np.float32(255)
    fields = {"image": turned, "upright": image[chosen], "label": label[chosen]}
    names, ends = ("train", "validation", "test"), np.cumsum([train, validation])
    split = {field: np.split(array, ends) for field, array in fields.items()}
    return {
        name: {field: arrays[i] for field, arrays in split.items()}
        for i, name in enumerate(names)
    }


def _rotate(
    images: Shaped[np.ndarray, "images height width channels"],
    degrees: Float[np.ndarray, " images"],
) -> Float[np.ndarray, "images height width channels"]:
    count, height, width, channels = images.shape
    # Quarter turns are exact: the cosine of 90 degrees would be 6e-17.
    quarters, rest = np.divmod(degrees, 90)
    unit = np.exp(1j * np.deg2rad(rest)) * _QUARTERS[(quarters % 4).astype(int)]
    y, x = np.indices((height, width)) - _centre(height, width)
    # Where each pixel comes from, as x + iy with y upwards: turned back.
    source = (x - 1j * y) * np.conj(unit)[:, None, None]
    from_y = (height - 1) / 2 - source.imag
    from_x = (width - 1) / 2 + source.real
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    flat = padded.reshape(count, -1, channels)
    turned = np.zeros((count, height * width, channels), np.float32)
    for corner in np.ndindex(2, 2):
        rows, down = _neighbour(from_y, corner[0], height)
        columns, along = _neighbour(from_x, corner[1], width)
        places = (rows * (width + 2) + columns).reshape(count, -1, 1)
        weights = (down * along).astype(np.float32).reshape(count, -1, 1)
        turned += weights * np.take_along_axis(flat, places, axis=1)
    return turned.reshape(images.shape)


def _centre(height: int, width: int) -> Float[np.ndarray, "2 1 1"]:
    return np.array([height - 1, width - 1]).reshape(2, 1, 1) / 2


def _neighbour(
    position: Float[np.ndarray, "images height width"], which: int, size: int
) -> tuple[Int[np.ndarray, "images height width"], Float[np.ndarray, "..."]]:
    """Returns one of the two pixels about a position, in padded numbers, its weight."""
    below = np.floor(position)
    weight = position - below if which else 1 - (position - below)
    return np.clip(below + which + 1, 0, size + 1).astype(int), weight
