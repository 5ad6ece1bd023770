"""The TFDS data set `tatoeba_small`: pairs of sentences that ship with the project."""

from dl_core.data.tatoeba_small.builder import TatoebaSmall

__all__ = ["TatoebaSmall"]
