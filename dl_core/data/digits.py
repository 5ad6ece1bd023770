"""The files of `mnist_subset`, read without importing TFDS."""

import functools
import gzip
import pathlib

import numpy as np
from jaxtyping import Float, Shaped

FOLDER = pathlib.Path(__file__).with_name("mnist_subset")


def read_idx(path: pathlib.Path) -> Shaped[np.ndarray, "..."]:
    """Returns the array of bytes in a gzipped idx file.

    The format: two zero bytes, the type (8: unsigned bytes), the number of dimensions,
    each dimension as a big-endian 32-bit integer, the values.
    """
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


@functools.cache
def first_digits() -> Float[np.ndarray, "10 28 28 1"]:
    """Returns the first test image of each digit, 0 to 9, as numbers from 0 to 1."""
    images = read_idx(FOLDER / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(FOLDER / "t10k-labels-idx1-ubyte.gz")
    first = [np.flatnonzero(labels == digit)[0] for digit in range(10)]
    return images[first, :, :, None].astype(np.float32) / 255
