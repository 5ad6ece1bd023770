"""The TFDS data set `novels_small`: novels that ship with the project."""

from dl_core.data.novels_small.builder import NovelsSmall

__all__ = ["NovelsSmall"]
