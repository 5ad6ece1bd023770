"""Alignment maps: which words of a source each word of its translation attended to."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from dl_core.data.translation import Pairs, Split
from dl_core.metrics.sentences import before_end

_TOKENS = (9, 14)
"""Of a source that is shown."""
_MOST = 24
"""Tokens of a translation that are shown."""


def chosen(split: Split, count: int) -> list[int]:
    """Returns the first pairs whose sources are neither too short nor too long."""
    low, high = _TOKENS
    fitting = (split.source_length >= low) & (split.source_length <= high)
    return np.flatnonzero(fitting)[:count].tolist()


def draw(
    ax: plt.Axes, pairs: Pairs, observed: Mapping[str, np.ndarray], number: int
) -> None:
    """Draws the weights of one test pair, white 0 and black 1; nothing without them.

    Args:
      ax: where.
      pairs: the pairs.
      observed: "example", "tokens" and "weights" of some test pairs.
      number: which of them.
    """
    if "weights" not in observed:
        ax.set(xticks=[], yticks=[])
        return
    split, example = pairs.splits["test"], observed["example"][number]
    source = split.source[example, : split.source_length[example]]
    row = observed["tokens"][number]
    target = row[: min(len(before_end(row)) + 1, _MOST)]
    weights = observed["weights"][number, : len(target), : len(source)]
    ax.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    style = {"fontsize": 7, "parse_math": False}
    ax.set_xticks(range(len(source)), pairs.source.pieces(source), rotation=60, **style)
    ax.set_yticks(range(len(target)), pairs.target.pieces(target), **style)
