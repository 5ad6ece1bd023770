"""The benchmark of vmapped sweeps: points a minute, three ways to run 32 small runs.

all at once   one process, one program, all runs stacked (`--vmap_mode=together`)
in turn       one process and its one program, run by run (`--vmap_mode=in_turn`)
separate      a process each, as many at a time as `--executor=local` starts

Whole processes are timed, with all that a user waits for: start, data, compilation,
evaluations, checkpoints. Of the separate ones a few are run, each being like the next.
`python -m launch.benchmark_vmap WAY NUMBER COUNT STEPS FOLDER` is the process that runs
one of `CASES` in one way.
"""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from dl_core.errors import UserError

POINTS, SEPARATE = 32, 4
"""Runs of a sweep, and how many of them are run in separate processes."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A small sweep: 4 learning rates × 8 seeds of an experiment."""

    experiment: str
    share: float
    """Of `--steps`, what a run takes."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, steps: int) -> dict[str, Any]:
        """Returns what the runs of the sweep share."""
        steps = max(1, round(self.share * steps))
        ends = dict.fromkeys(("steps", "eval_every", "checkpoint_every"), steps)
        return {**ends, **self.changes}


CASES = (
    Case("classification.batch_norm", 1.0),
    Case("convolution.pooling", 0.2, {"data.test": 200}),
)
WAYS = {"together": "all at once", "in_turn": "in turn", "separate": "separate"}


def run(steps: int) -> None:
    """Prints for each case the points a minute of each way, and their ratios.

    Args:
      steps: of a run of the first case; the others take a share of it.
    """
    for number, case in enumerate(CASES):
        taken = case.config(steps)["steps"]
        print(f"{case.experiment}, {POINTS} runs of {taken} steps")
        seconds = {}
        for way, name in WAYS.items():
            count = SEPARATE if way == "separate" else POINTS
            seconds[way] = _timed(way, number, count, steps) / count
            print(
                f"  {name:<11}  {60 / seconds[way]:8.1f} points a minute  "
                f"({count} in {count * seconds[way]:.1f} s)",
                flush=True,
            )
        for way in ("in_turn", "separate"):
            ratio = seconds[way] / seconds["together"]
            print(f"  {WAYS[way]} / all at once: {ratio:.2f}")


def _timed(way: str, number: int, count: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "launch.benchmark_vmap", way]
        words += [str(n) for n in (number, count, steps)]
        start = time.perf_counter()
        done = subprocess.run([*words, folder], capture_output=True, text=True)
        taken = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"vmap: {way} failed: {done.stderr[-2_000:]}")
    return taken


def _work(args: list[str]) -> int:
    """Runs one case in one way; returns the exit code."""
    from dl_core.config import replace, to_dict
    from dl_core.files import write_json
    from dl_core.sweep import product
    from launch import execute, pool, registry, summary
    from launch.points import Point, Sweep

    way, number, count, steps, place = args
    case, folder = CASES[int(number)], pathlib.Path(place)
    experiment = registry.load(case.experiment)
    base = replace(experiment.config_class(), case.config(int(steps)))
    rates = {"optimizer.learning_rate": (1e-4, 3e-4, 1e-3, 3e-3), "seed": range(8)}
    runs = folder / case.experiment / "runs"
    points = [
        Point(i, changes, replace(base, changes), runs / str(i))
        for i, changes in enumerate(product(**rates)[: int(count)])
    ]
    sweep = Sweep(experiment, way, runs, base, points, points)
    if way != "separate":
        places = [(point.path, point.config) for point in points]
        together = way == "together"
        return execute.exit_code(execute.execute(experiment, places, together=together))
    jobs = []
    for point in points:
        path = folder / f"{point.number}.json"
        write_json(path, to_dict(point.config))
        words = [sys.executable, "-m", "launch.run", f"--config={path}"]
        words += [f"--experiment={case.experiment}", f"--name={point.number}"]
        jobs.append(pool.Job([point], [*words, f"--workdir={folder}"], point.log))
    statuses = pool.run_jobs(sweep, jobs, pool.default_slots())
    return summary.exit_code(statuses)


if __name__ == "__main__":
    from launch import app
    from launch import flags as shared

    shared.define_run_flags()
    app.run(_work)
