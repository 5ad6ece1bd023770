"""The TFDS data set `mnist_subset`: real digits that ship with the project."""

from dl_core.data.mnist_subset.builder import MnistSubset

__all__ = ["MnistSubset"]
