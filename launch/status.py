"""Tells how far sweeps are: python -m launch.status FOLDER…

A line a point: what it changes, its status, its last step, the experiment's main metric
(or `--metric`), how long ago it last wrote, and why it failed. Without a folder, a line
for every sweep under `--workdir`. The files in the folder say all; Slurm is asked where
the sweep was submitted to it, for what waits or runs where this machine cannot see it.
"""

import ast
import pathlib
import time
from collections.abc import Iterator, Mapping

from absl import flags

from dl_core.errors import UserError, nearest
from launch import app, registry, sweep_folder
from launch import flags as shared
from launch.sweep_folder import Point, Progress, SweepFolder, counts

FLAGS = flags.FLAGS
flags.declare_key_flag("workdir", flag_values=shared.FLAGS)
flags.DEFINE_string(
    "metric", None, "Show this metric (default: the experiment's main one)."
)


def main(args: list[str]) -> None:
    """Prints how far the given sweeps are, or all there are."""
    if args:
        for number, sweep in enumerate(sweep_folder.given(args)):
            lines = table(sweep)
            print(*([""] if number else []), *lines, sep="\n")
        return
    folders = sweep_folder.under(pathlib.Path(FLAGS.workdir))
    if not folders:
        raise UserError(f"--workdir={FLAGS.workdir}: there are no sweeps in it")
    width = max(len(str(folder)) for folder in folders)
    for folder in folders:
        try:
            told = counts(sweep_folder.read(folder).statuses())
        except UserError as error:
            told = f"error: {error}"
        print(f"{folder!s:<{width}}  {told}")


def table(sweep: SweepFolder) -> Iterator[str]:
    """Yields a line a point, and the counts."""
    ended = sweep.statuses()
    progress = {point.number: point.progress() for point in sweep.points}
    metric = _metric(sweep, progress)
    labels = max((len(point.label) for point in sweep.points), default=0)
    yield f"{sweep.path}{' (cancelled)' if sweep.cancelled.exists() else ''}"
    yield (
        f"{'point':<5}  {'':<{labels}}  {'status':<10}  {'step':>13}  {metric:>14}  "
        f"{'last row':>10}"
    )
    for point in sweep.points:
        status, reached = ended[point.number], progress[point.number]
        value = reached.numbers.get(metric) if reached else None
        line = (
            f"{point.number:>5}  {point.label:<{labels}}  {status:<10}  "
            f"{_step(point, reached):>13}  "
            f"{f'{value:.4g}' if isinstance(value, int | float) else '':>14}  "
            f"{_age(point.written()):>10}"
        )
        if status == "failed":
            line += f"  {point.error()}"
        yield line.rstrip()
    yield counts(ended)


def main_metric(experiment: str) -> str | None:
    """Returns an experiment's main metric, where its source says it in plain text."""
    if experiment not in registry.names():
        return None
    topic, module = experiment.split(".")
    tree = ast.parse((registry.ROOT / topic / f"{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            (target,) = node.targets
            if target.id == "MAIN_METRIC":
                return node.value.value
    return None


def _metric(sweep: SweepFolder, progress: Mapping[int, Progress | None]) -> str:
    """Returns the metric to show: `--metric`, the main one, or the first evaluated."""
    measured = list(dict.fromkeys(n for p in progress.values() if p for n in p.numbers))
    if FLAGS.metric is not None:
        if FLAGS.metric not in measured:
            hint = nearest(FLAGS.metric, measured)
            raise UserError(
                f"--metric={FLAGS.metric}: no run of {sweep.path} has measured it{hint}"
            )
        return FLAGS.metric
    evaluated = [name for name in measured if not name.startswith("train/")]
    return main_metric(sweep.experiment) or next(iter(evaluated), "")


def _step(point: Point, reached: Progress | None) -> str:
    if reached is None:
        return ""
    # A further stage's steps come after those of the first.
    more = isinstance(point.steps, int) and reached.step <= point.steps
    return f"{reached.step}/{point.steps}" if more else str(reached.step)


def _age(written: float | None) -> str:
    if written is None:
        return ""
    seconds = max(0.0, time.time() - written)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


if __name__ == "__main__":
    app.run(main, sweep_folder.flags_anywhere)
