"""Figures of networks that learn tapes: a line a seed, and what the heads address."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from dl_core.data import tapes
from dl_core.data.tapes import Task
from dl_core.results import Runs

_LEAST = 1e-3
"""Bits below which an axis of them ends."""
_LOG_FROM = 30
"""Ratio of the greatest to the least bits from which on their axis is logarithmic."""


class Seeds(NamedTuple):
    """What the seeds of one setting have learned; NaN where a run diverged."""

    seen: Float[np.ndarray, " points"]
    """Tapes seen in training, in thousands."""
    bits: Float[np.ndarray, "seeds points"]
    """Bits that a test tape costs."""
    sizes: Sequence[int]
    """Of the tapes on which generalisation was measured."""
    wrong: Float[np.ndarray, "seeds sizes"]
    """Wrong bits of such a tape."""
    said: Sequence[int]
    """Bits that such a tape says."""
    longest: int
    """The greatest size in training."""

    @classmethod
    def of(cls, runs: Runs, metric: str) -> Self:
        """Reads the runs of one setting, whose config has a `Task`.

        Args:
          runs: a seed each; one that diverged is drawn up to there.
          metric: the bits a test tape.
        """
        config = runs[0].config
        rows = [[row for row in run.rows if metric in row] for run in runs]
        steps = np.array([row["step"] for row in max(rows, key=len)])
        bits = np.full((len(runs), len(steps)), np.nan)
        for line, measured in zip(bits, rows, strict=True):
            line[: len(measured)] = [row[metric] for row in measured]
        task = Task(name=config["task.name"], longest=config["task.longest"])
        sizes = config["longer"]
        wrong = [runs.final(f"longer/error_bits_{size}") for size in sizes]
        return cls(
            seen=steps * config["batch_size"] / 1_000,
            bits=bits,
            sizes=sizes,
            wrong=np.reshape(wrong, (len(sizes), len(runs))).T,
            said=[tapes.said(task, x, task.repeats[1]) * task.outputs for x in sizes],
            longest=task.sizes[1],
        )


def learned(groups: Mapping[str, Seeds], threshold: float) -> Figure:
    """Draws a column a setting: bits over training above, wrong bits by size below.

    Args:
      groups: title of a column -> its seeds, each in a colour of its own.
      threshold: bits a tape from which on the task counts as learned.
    """
    fig, axes = plt.subplots(
        2,
        len(groups),
        figsize=(3.1 * len(groups) + 0.4, 5.8),
        layout="constrained",
        sharey="row",
        squeeze=False,
    )
    for (above, below), (title, seeds) in zip(axes.T, groups.items(), strict=True):
        for number, bits in enumerate(np.maximum(seeds.bits, _LEAST)):
            above.plot(seeds.seen, bits, lw=1.1, color=f"C{number}", label=number)
            _mark_end(above, seeds.seen, bits, f"C{number}")
        above.axhline(threshold, color="grey", ls="--", lw=1)
        above.set(xlabel="tapes seen, in thousands", yscale="log", title=title)
        wrong_bits(below, seeds)
    axes[0, 0].set_ylabel(f"bits a tape, dashed {threshold}")
    axes[0, 0].legend(title="seed", fontsize=7, title_fontsize=7, loc="lower left")
    axes[1, 0].set_ylabel("wrong bits a tape")
    fig.suptitle(
        "below: dashed guessing, dotted the longest tape of the training", fontsize=9
    )
    return fig


def wrong_bits(ax: plt.Axes, seeds: Seeds) -> None:
    """Draws wrong bits against the tape's size, the counts of the longest as title."""
    sizes = np.asarray(seeds.sizes, float)
    apart = (sizes.max() - sizes.min()) / 100
    middle = (len(seeds.wrong) - 1) / 2
    for number, wrong in enumerate(seeds.wrong):
        places = sizes + apart * (number - middle)
        ax.plot(places, wrong, "o-", ms=3.5, lw=1, color=f"C{number}")
    ax.plot(sizes, np.array(seeds.said) / 2, color="grey", ls="--", lw=1)
    ax.axvline(seeds.longest, color="grey", ls=":", lw=1)
    ax.set_yscale("symlog", linthresh=1, linscale=0.5)
    ax.set_ylim(-0.25, None)
    ax.set_xticks(seeds.sizes)
    ax.set_xlabel("size of the tape")
    last = ", ".join(amount(wrong) for wrong in np.sort(seeds.wrong[:, -1]))
    title = f"wrong of the {seeds.said[-1]:,} bits of size {seeds.sizes[-1]}:"
    ax.set_title(f"{title}\n{last}", fontsize=8.5)


def amount(wrong: float) -> str:
    """Returns a mean number of wrong bits, 0 for none at all."""
    if np.isnan(wrong):
        return "diverged"
    return f"{wrong:.0f}" if wrong >= 10 or wrong == 0 else f"{wrong:.1f}"


def compared(ax: plt.Axes, groups: Mapping[str, Seeds], optimum: float | None) -> None:
    """Draws the bits of several settings in one panel: every seed, and the median.

    Args:
      ax: where.
      groups: label -> its seeds.
      optimum: bits that the best estimator needs, drawn dashed; None if unknown.
    """
    everything = np.concatenate([seeds.bits.ravel() for seeds in groups.values()])
    for number, (label, seeds) in enumerate(groups.items()):
        color, bits = f"C{number}", np.maximum(seeds.bits, _LEAST)
        ax.plot(seeds.seen, bits.T, color=color, lw=0.8, alpha=0.6)
        for line in bits:
            _mark_end(ax, seeds.seen, line, color)
        if len(seeds.seen):
            middle = np.nanmedian(bits, axis=0)
            ax.plot(seeds.seen, middle, color=color, lw=2.2, label=label)
    if optimum is not None:
        ax.axhline(optimum, color="black", ls="--", lw=1, label="best estimator")
    if np.nanmax(everything) > _LOG_FROM * np.nanmin(everything):
        ax.set_yscale("log")
    ax.set(xlabel="tapes seen, in thousands", ylabel="bits a tape")


def _mark_end(ax: plt.Axes, seen: np.ndarray, bits: np.ndarray, color: str) -> None:
    """Draws an x at the last bits of a run that diverged."""
    measured = np.flatnonzero(np.isfinite(bits))
    if 0 < len(measured) < len(bits):
        ax.plot(seen[measured[-1]], bits[measured[-1]], "x", ms=7, mew=2, color=color)


def optimum(runs: Runs) -> float | None:
    """Returns the bits of the best estimator, the same in each run that has them."""
    found = (run.result["metrics"].get("test/optimum") for run in runs)
    return next((bits for bits in found if bits is not None), None)


def addressing(
    columns: Mapping[str, Runs],
) -> Figure:
    """Draws inputs, outputs, and the weights of the slots over time.

    Args:
      columns: title -> runs, of which the first that did not diverge is drawn. They
        observe "inputs" (time, inputs), "chances" (time, outputs), "writes" and "reads"
        (time, heads, slots).
    """
    fig, axes = plt.subplots(
        4,
        len(columns),
        figsize=(4.6 * len(columns), 7.5),
        height_ratios=(1, 1, 3, 3),
        layout="constrained",
        sharex="col",
        squeeze=False,
    )
    looks = {"cmap": "Greys", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    for column, (title, runs) in zip(axes.T, columns.items(), strict=True):
        arrays = _last_seen(runs)
        column[0].set_title(title)
        column[-1].set_xlabel("step of the tape")
        for ax, name in zip(
            column, ("inputs", "chances", "writes", "reads"), strict=True
        ):
            if arrays is None:
                ax.text(0.5, 0.5, "diverged", ha="center", transform=ax.transAxes)
                continue
            rows = arrays[name].reshape(len(arrays[name]), -1).T
            ax.imshow(rows, aspect="auto", **looks)
            last = len(rows) - 1
            ax.set_yticks([0, last] if name in ("writes", "reads") else [])
    for ax, name in zip(
        axes[:, 0], ("inputs", "outputs", "slot written", "slot read"), strict=True
    ):
        ax.set_ylabel(name)
    fig.suptitle("white 0, black 1", fontsize=9)
    return fig


def _last_seen(runs: Runs) -> Mapping[str, np.ndarray] | None:
    """Returns what the first run that did not diverge observed at its end."""
    seen = (run.last_artifacts() for run in runs if not run.diverged)
    return next((last for last in seen if "writes" in last), None)
