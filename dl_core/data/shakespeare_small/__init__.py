"""The TFDS data set `shakespeare_small`: a text that ships with the project."""

from dl_core.data.shakespeare_small.builder import ShakespeareSmall

__all__ = ["ShakespeareSmall"]
