"""The TFDS data set `bccd_small`: blood cells that ship with the project."""

from dl_core.data.bccd_small.builder import BccdSmall

__all__ = ["BccdSmall"]
