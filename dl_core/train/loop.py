"""The one loop: every experiment, stage and sweep point trains through it.

It trains one run, or several runs at once that differ only in traced fields and seeds
(their states stacked, `vmap`). Either way each run has its own directory, from which it
resumes: a run that was killed gives the same bits as one that was not.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from dl_core.config import stack, to_arrays
from dl_core.data.batches import Batches, Data
from dl_core.errors import UserError
from dl_core.experiment import Experiment, Stage
from dl_core.train import processes
from dl_core.train.layout import Layout
from dl_core.train.program import Program, program
from dl_core.train.resume import resume
from dl_core.train.run_directory import RunDirectory, first_infinite

DONE, DIVERGED, STOPPED = "done", "diverged", "stopped"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: `DONE`, `DIVERGED` or `STOPPED`, and a sentence about it."""

    status: str
    step: int
    text: str


@dataclasses.dataclass(frozen=True)
class Options:
    """What the loop is told besides the configs; none of it changes a number."""

    data_dir: Any
    layout: Layout
    steps_per_call: int
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = print
    progress: bool = False
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def default_steps_per_call() -> int:
    """Returns how many steps to dispatch at once on this backend.

    One on CPUs, where XLA runs convolutions inside loops many times slower (jax#12868)
    and a dispatch costs little.
    """
    return 1 if jax.default_backend() == "cpu" else 50


def dispatch_length(config: Any, limit: int) -> int:
    """Returns the longest dispatch that ends wherever there is something to do."""
    divisor = np.gcd.reduce(
        [config.log_every, config.eval_every, config.checkpoint_every]
    )
    limit = min(int(divisor), limit)
    return max(n for n in range(1, limit + 1) if divisor % n == 0)


def train(
    experiment: Experiment, runs: Sequence[RunDirectory], options: Options
) -> list[Outcome]:
    """Trains runs to their end, all at once, from where they were left.

    Args:
      experiment: what to train.
      runs: their open directories; the configs differ in traced fields alone.
      options: devices, places and what to tell.

    Returns:
      For each run how it ended. `STOPPED` means saved, and ready to go on.

    Raises:
      SaveError: if a checkpoint could not be written.
      UserError: if the batch cannot be split over the devices.
    """
    return _Training(experiment, runs, options).train()


class _Training:
    """One call of `train`: the runs, where they are, and what is not yet written."""

    def __init__(self, experiment, runs, options):
        self.experiment: Experiment = experiment
        self.runs: Sequence[RunDirectory] = runs
        self.options: Options = options
        self.points = len(runs) if len(runs) > 1 else None
        configs = [run.config for run in runs]
        self.config = stack(configs) if self.points else to_arrays(configs[0])
        if self.points:
            sharding = options.layout.points(self.points)
            self.config = options.layout.place(self.config, sharding)
        elif not processes.alone():
            self.config = options.layout.place(self.config, options.layout.replicated)
        self.ends = np.cumsum(experiment.steps(configs[0])).tolist()
        self.outcomes: list[Outcome | None] = [None] * len(runs)
        self.latest: list[dict[str, Any]] = []
        self.data: dict[int, Data] = {}
        self.seconds = 0.0
        self.started = time.monotonic()

    def train(self) -> list[Outcome]:
        if self.experiment.assets is not None:
            for run in self.runs:
                run.keep(self.experiment.assets(run.config))
        step, state = self._resume()
        stage_index = self._stage_of(step)
        self.bar = tqdm(
            total=self.ends[-1],
            initial=step,
            unit="step",
            disable=not self.options.progress,
            dynamic_ncols=True,
        )
        with self.bar, contextlib.ExitStack() as closing:
            closing.callback(self._close_data)
            for index in range(stage_index, len(self.experiment.stages)):
                restored = step > 0 and index == stage_index
                state = self._stage(index, state, step if restored else None)
                if state is None:
                    break
        return self.outcomes

    def _resume(self) -> tuple[int, PyTree | None]:
        """Opens the runs where all of them can go on: step and state."""
        options = self.options
        place = resume(self.runs, self._abstract, options.layout, options.say)
        self.seconds, self.latest = place.seconds, list(place.latest)
        if place.step:
            stage = self.experiment.stages[self._stage_of(place.step)]
            options.say(f"resuming at step {place.step} ({stage.name})")
        return place.step, place.state

    def _stage(self, index: int, state: PyTree, step: int | None) -> PyTree | None:
        """Runs one stage to its end; returns None if no run is left to go on.

        Args:
          index: its number.
          state: where the stage before has ended; where this one was left, with `step`.
          step: where this one was left; None if it is to begin.
        """
        stage = self.experiment.stages[index]
        last = self.ends[index]
        first = last - self.experiment.steps(self.runs[0].config)[index]
        data = self._data(index)
        compiled = self._program(index)
        resident = self._resident(data)
        pending: list[tuple[int, PyTree]] = []
        if step is None:
            step, state = first, compiled.init(self.config, state)
            self._evaluate(compiled, stage, data, resident, state, step)
        config = self.runs[0].config
        block = dispatch_length(config, self.options.steps_per_call)
        while step < last and self._going():
            if self.options.stop():
                self._drain(stage, first, pending)
                if step > first:
                    self._save(compiled, stage, state, step)
                return self._end_all(STOPPED, step, f"stopped and saved at step {step}")
            count = min(block - (step - first) % block, last - step)
            inputs = self._inputs(data.train, step - first, count)
            state, metrics = compiled.step(self.config, state, resident[None], inputs)
            if pending:  # At most one dispatch runs while the host goes ahead.
                jax.block_until_ready(pending[-1][1])
            step += count
            local = step - first
            pending.append((step, metrics))
            self.bar.update(count)
            evaluates = local % config.eval_every == 0 or step == last
            saves = local % config.checkpoint_every == 0 or step == last
            if evaluates or saves:
                self._drain(stage, first, pending)
            elif (local - count) % config.log_every == 0:
                self._drain(stage, first, pending, keep=1)
            if evaluates and self._going():
                self._evaluate(compiled, stage, data, resident, state, step)
            if saves and self._going():
                self._save(compiled, stage, state, step)
        if not self._going():
            return None
        if step == self.ends[-1]:
            for run in self.runs:
                run.checkpoints.wait()
            return self._end_all(DONE, step, f"finished {step} steps")
        return state

    def _resident(self, data: Data) -> dict[str | None, PyTree]:
        """Puts the arrays that stay on the device there: of training, and by set."""
        sets: dict[str | None, Batches] = {None: data.train, **data.evaluation}
        layout = self.options.layout
        return {
            name: layout.place(batches.resident, layout.replicated)
            for name, batches in sets.items()
        }

    def _inputs(self, batches: Batches, first: int, count: int) -> PyTree:
        layout = self.options.layout
        size = batches.batch_size
        inputs = [
            batches.train_inputs(run.config.seed, first, count) for run in self.runs
        ]
        if self.points:
            whole = [layout.whole(each, size, axis=1) for each in inputs]
            stacked = jax.tree.map(lambda *xs: np.stack(xs), *whole)
            if layout.mesh.size == 1:
                return stacked  # The compiled step takes it from the host, faster.
            return layout.place(stacked, layout.points(self.points))
        if layout.mesh.size == 1:
            return inputs[0]
        layout.require_divides(size)
        return layout.split(inputs[0], size, axis=1)

    def _eval_inputs(self, batches: Batches) -> Iterator[PyTree]:
        """Yields the host's part of evaluation batches, split where they can be."""
        layout, size = self.options.layout, batches.batch_size
        for inputs in batches.eval_inputs():
            if layout.mesh.size == 1:
                yield inputs
            elif self.points or not layout.divides(size):
                yield layout.place(
                    layout.whole(inputs, size, axis=0), layout.replicated
                )
            else:
                yield layout.split(inputs, size, axis=0)

    def _going(self) -> bool:
        return any(outcome is None for outcome in self.outcomes)

    def _each(self, tree: PyTree):
        """Yields (number, directory, its part of the tree) of the runs still going."""
        for number, run in enumerate(self.runs):
            if self.outcomes[number] is None:
                take = functools.partial(_take, number if self.points else None)
                yield number, run, jax.tree.map(take, tree)

    def _drain(self, stage: Stage, first: int, pending: list, keep: int = 0) -> None:
        """Checks the metrics of finished dispatches, writes the rows that are due."""
        due = pending[: len(pending) - keep]
        del pending[: len(due)]
        every = self.runs[0].config.log_every
        for end, metrics in jax.device_get(due):
            for number, run, stacked in self._each(metrics):
                count = len(next(iter(stacked.values())))
                for i, step in enumerate(range(end - count + 1, end + 1)):
                    row = {f"train/{name}": x[i] for name, x in stacked.items()}
                    if name := first_infinite(row):
                        self._diverge(number, step, name)
                        break
                    if (step - first) % every == 0 or step in self.ends:
                        run.write(step, stage.name, row)
                        self._show(number, row)

    def _evaluate(
        self,
        compiled: Program,
        stage: Stage,
        data: Data,
        resident: Mapping[str | None, PyTree],
        state: PyTree,
        step: int,
    ) -> None:
        merged = {}
        for name, batches in data.evaluation.items():
            parts = [
                compiled.evaluate(
                    self.config, state, batches.assemble, resident[name], inputs
                )
                for inputs in self._eval_inputs(batches)
            ]
            merged[name] = jax.device_get(parts)
        shown = [] if data.shown is None else [data.shown]
        observed = compiled.observe and jax.device_get(
            compiled.observe(self.config, state, *shown)
        )
        for number, run, (parts, seen) in self._each((merged, observed)):
            row = _compute(parts)
            if seen is not None:
                run.write_artifact(step, stage.name, seen)
                if stage.score is not None:
                    found = stage.score(run.config, seen)
                    row |= {f"observed/{name}": x for name, x in found.items()}
            if name := first_infinite(row):
                self._diverge(number, step, name)
            else:
                run.write(step, stage.name, row)
                self._show(number, row)

    def _show(self, number: int, row: Mapping[str, Any]) -> None:
        self.latest[number] |= {k: np.asarray(v).tolist() for k, v in row.items()}
        main = self.experiment.main_metric
        going = [self.latest[number] for number, _, _ in self._each(())]
        values = [latest[main] for latest in going if main in latest]
        if values:
            self.bar.set_postfix({main: f"{np.mean(values):.4g}"}, refresh=False)

    def _save(self, compiled: Program, stage: Stage, state: PyTree, step: int) -> None:
        copy, finite = compiled.snapshot(state)
        if self.points:
            copy = jax.device_get(copy)
        seconds = self.seconds + time.monotonic() - self.started
        for number, run, (part, is_finite) in self._each((copy, finite)):
            if not is_finite:
                self._diverge(number, step, "a parameter or another part of the state")
                continue
            about = {"stage": stage.name, "rows": run.row_count, "seconds": seconds}
            run.checkpoints.save(step, part, about)

    def _diverge(self, number: int, step: int, metric: str) -> None:
        run = self.runs[number]
        run.checkpoints.wait()
        saved = run.checkpoints.steps()
        last = (
            f"the last good checkpoint is step {saved[-1]}" if saved else "none saved"
        )
        text = f"{metric} is not finite at step {step}; {last}"
        self._end(number, Outcome(DIVERGED, step, text), metric=metric)

    def _end_all(self, status: str, step: int, text: str) -> None:
        for number, _, _ in self._each(()):
            self._end(number, Outcome(status, step, text))

    def _end(self, number: int, outcome: Outcome, **more: Any) -> None:
        run = self.runs[number]
        self.outcomes[number] = outcome
        if outcome.status == STOPPED:
            run.stop()
            return
        run.finish(
            {
                "status": outcome.status,
                "step": outcome.step,
                "text": outcome.text,
                **more,
                "seconds": round(self.seconds + time.monotonic() - self.started, 3),
                "trained_together": len(self.runs),
                "metrics": self.latest[number],
                **self.options.provenance,
            }
        )

    def _abstract(self, step: int) -> PyTree[jax.ShapeDtypeStruct]:
        """Returns the shapes and shardings of the state at a step."""
        last = self._stage_of(step)
        shapes = None
        for index in range(last + 1):
            previous = () if shapes is None else (shapes,)
            init = self._program(index).init
            shapes = jax.eval_shape(init, self.config, *previous)
        return self._program(last).place_shapes(shapes)

    def _stage_of(self, step: int) -> int:
        return next(i for i, end in enumerate(self.ends) if step <= end)

    def _close_data(self) -> None:
        """Ends the reading of streamed data, of all stages."""
        for data in self.data.values():
            for batches in (data.train, *data.evaluation.values()):
                batches.close()

    def _data(self, index: int) -> Data:
        if index not in self.data:
            stage = self.experiment.stages[index]
            config = self.runs[0].config
            self.data[index] = stage.data(config, self.options.data_dir)
        return self.data[index]

    def _program(self, index: int) -> Program:
        return program(
            self.experiment.stages[index],
            index,
            self.options.layout,
            self.points,
            self._data(index).train,
        )


def _take(number: int | None, leaf: Any) -> Any:
    if number is None:
        return leaf
    # A number, too, stays an array.
    return leaf[number, ...]


def _compute(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Merges the metrics of the batches of each set, and names them set/metric.

    A metric that computes a mapping is written as set/key; its own name is left out.
    """
    row = {}
    for name, batches in parts.items():
        if not batches:
            raise UserError(f"the evaluation set {name!r} holds no examples")
        for metric, first in batches[0].items():
            rest = [batch[metric] for batch in batches[1:]]
            total = functools.reduce(lambda a, b: a.merge(b), rest, first)
            found = total.compute()
            named = found if isinstance(found, Mapping) else {metric: found}
            for key, value in named.items():
                if f"{name}/{key}" in row:
                    raise ValueError(f"two metrics compute {name}/{key}")
                row[f"{name}/{key}"] = value
    return row
