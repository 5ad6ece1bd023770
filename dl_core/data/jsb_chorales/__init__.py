"""The TFDS data set `jsb_chorales`: Bach's chorales, which ship with the project."""

from dl_core.data.jsb_chorales.builder import JsbChorales

__all__ = ["JsbChorales"]
