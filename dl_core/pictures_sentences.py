"""Figures of translations: BLEU by length of the source, and alignment maps."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from dl_core.data.translation import Pairs, Split
from dl_core.metrics.sentences import LENGTHS, before_end
from dl_core.pictures import mean_and_range

_TOKENS = (9, 14)
"""Of a source that is shown."""
_MOST = 24
"""Tokens of a translation that are shown."""


def chosen(split: Split, count: int) -> list[int]:
    """Returns the first pairs whose sources are neither too short nor too long.

    Where these are too few, the sources of the nearest lengths follow them.
    """
    low, high = _TOKENS
    far = np.maximum(low - split.source_length, split.source_length - high)
    return np.argsort(np.maximum(far, 0), kind="stable")[:count].tolist()


def bleu_by_length(
    lines: Sequence[tuple[str, str, Float[np.ndarray, "_ ranges"]]],
    sentences: Float[np.ndarray, " ranges"],
    dashed: str,
) -> Figure:
    """Draws BLEU against the words of the source, and how many sentences have so many.

    Args:
      lines: a label, a colour and scores, for the ranges of `LENGTHS`.
      sentences: in each range; those without are not drawn.
      dashed: label of the line that is.
    """
    fig, (ax, counts) = plt.subplots(
        2, 1, figsize=(7, 5), layout="constrained", height_ratios=(5, 1), sharex=True
    )
    some = np.flatnonzero(sentences)
    for label, color, scores in lines:
        style = "o--" if label == dashed else "o-"
        looks = {"color": color, "label": label, "alpha": 0.12}
        mean_and_range(ax, some, scores[:, some], style, ms=4, **looks)
    counts.bar(range(len(sentences)), sentences, color="0.7")
    ax.set(ylabel="BLEU, test")
    ax.grid(alpha=0.3)
    if lines:
        ax.legend(title="mean and range over seeds", fontsize=8)
    labels = [
        f"{low}-{high - 1}" if high < LENGTHS[-1] else f"from {low}"
        for low, high in itertools.pairwise(LENGTHS)
    ]
    counts.set(xlabel="words in the source sentence", ylabel="sentences")
    counts.set_xticks(range(len(labels)), labels)
    return fig


def alignments(
    lines: Sequence[tuple[str, str, Mapping[str, np.ndarray]]],
    pairs: Pairs,
    count: int,
) -> Figure:
    """Draws a row a network: where the tokens of its translations attended to.

    Args:
      lines: a label, its colour, and what the network's run observed last.
      pairs: the pairs.
      count: test pairs that are shown.
    """
    size = (4 * count, 3.6 * len(lines))
    fig, axes = plt.subplots(
        len(lines), count, figsize=size, layout="constrained", squeeze=False
    )
    for row, (label, color, seen) in zip(axes, lines, strict=True):
        row[0].set_ylabel(label, color=color)
        for number, ax in enumerate(row):
            _draw(ax, pairs, seen, number)
    fig.suptitle(
        "weights of the source's tokens (columns) for each written token (rows); "
        "white 0, black 1"
    )
    return fig


def _draw(
    ax: plt.Axes, pairs: Pairs, observed: Mapping[str, np.ndarray], number: int
) -> None:
    """Draws the weights of one test pair, white 0 and black 1; nothing without them.

    Args:
      ax: where.
      pairs: the pairs.
      observed: "example", "tokens" and "weights" of some test pairs.
      number: which of them.
    """
    if "weights" not in observed or number >= len(observed["example"]):
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
