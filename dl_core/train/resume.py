"""Where runs go on: at the last step that all of them have saved whole.

A checkpoint that cannot be read, in any process, or that knows of more rows than the
metrics' file has, is set aside, and the one before it is tried.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dl_core.train import processes
from dl_core.train.checkpoints import ASIDE
from dl_core.train.layout import Layout
from dl_core.train.run_directory import RunDirectory


@dataclasses.dataclass(frozen=True)
class Place:
    """Where runs go on."""

    step: int
    state: PyTree | None
    """The state there, stacked where there are several runs; None at the start."""
    seconds: float
    """What has been spent on getting there."""
    latest: Sequence[dict[str, Any]]
    """For each run the last value of each metric."""


def resume(
    runs: Sequence[RunDirectory],
    abstract: Callable[[int], PyTree[jax.ShapeDtypeStruct]],
    layout: Layout,
    say: Callable[[str], None],
) -> Place:
    """Reads where runs were left, and opens them there.

    Args:
      runs: their open directories.
      abstract: from a step to the shapes, types and shardings of the state there.
      layout: the devices.
      say: is told of checkpoints that are set aside.

    Raises:
      OtherStateError: if a checkpoint is of another structure than `abstract`.
      OSError: if one cannot be read now, and perhaps later.
    """
    steps = [set(run.checkpoints.steps()) for run in runs]
    for step in sorted(set.intersection(*steps), reverse=True):
        problem = None
        try:
            state, abouts = _read(runs, step, abstract(step), layout)
            for run, about in zip(runs, abouts, strict=True):
                if len(run.rows()) < about["rows"]:
                    problem = f"{run.path / 'metrics.jsonl'} is cut short"
        except ValueError as error:
            problem = str(error)
        if processes.all_true(problem is None):
            latest = [
                _open(run, step, about["rows"])
                for run, about in zip(runs, abouts, strict=True)
            ]
            seconds = max(about["seconds"] for about in abouts)
            return Place(step, state, seconds, latest)
        problem = problem or "another process cannot read it"
        kept = f"its files are kept in the folder {ASIDE}"
        say(f"going back before step {step}: {problem}; {kept}")
        for run in runs:
            run.checkpoints.discard(step, keep=True)
    for run in runs:
        run.start(0, 0)
    return Place(0, None, 0.0, [{} for _ in runs])


def _read(
    runs: Sequence[RunDirectory], step: int, abstract: PyTree, layout: Layout
) -> tuple[PyTree, list[dict[str, Any]]]:
    """Returns the state, stacked where there are several runs, and what is told of it.

    Raises:
      ValueError: if a checkpoint is damaged.
    """
    if len(runs) == 1:
        state, about = runs[0].checkpoints.restore(step, abstract)
        return state, [about]
    single = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape[1:], x.dtype, sharding=layout.replicated
        ),
        abstract,
    )
    read = [run.checkpoints.restore(step, single) for run in runs]
    states = jax.device_get([state for state, _ in read])
    state = jax.tree.map(lambda *xs: np.stack(xs), *states)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.tree.map(layout.place, state, shardings), [about for _, about in read]


def _open(run: RunDirectory, step: int, rows: int) -> dict[str, Any]:
    """Begins to write after a step; returns the last value of each metric there."""
    for later in (s for s in run.checkpoints.steps() if s > step):
        run.checkpoints.discard(later)
    run.start(rows, step)
    latest: dict[str, Any] = {}
    for row in run.rows():
        latest |= {name: value for name, value in row.items() if "/" in name}
    return latest
