"""What is told at the end of a sweep: a line a point, the counts, what to do next."""

import collections
from collections.abc import Mapping

from dl_core.train.records import FINISHED
from launch import commands
from launch.execute import exit_code as _exit_code
from launch.points import Sweep
from launch.search import Search


def exit_code(statuses: Mapping[int, str]) -> int:
    """Returns the exit code of a sweep, to which a point that diverged is a result."""
    return _exit_code(["done" if s == "diverged" else s for s in statuses.values()])


def print_summary(sweep: Sweep, statuses: Mapping[int, str]) -> None:
    """Prints a line a selected point, the counts, and what to do next."""
    from dl_core.results import Run

    metric = sweep.metric
    labels = {point.number: point.label for point in sweep.selected}
    width = max(map(len, labels.values()))
    print(f"{'point':<5}  {'':<{width}}  {'status':<10}  {metric:>14}  {'seconds':>8}")
    for point in sweep.selected:
        label, status = labels[point.number], statuses[point.number]
        line = f"{point.number:>5}  {label:<{width}}  {status:<10}"
        if (point.path / "DONE").exists():
            run = Run.read(point.path)
            known = run.diverged or metric in run.result["metrics"]
            value = run.final(metric) if known else None
            shown = "-" if value is None or isinstance(value, list) else f"{value:.4g}"
            line += f"  {shown:>14}  {run.result['seconds']:>8.1f}"
        print(line.rstrip())
    counts = collections.Counter(statuses.values())
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if isinstance(sweep, Search):
        _print_best(sweep)
    if not set(counts) <= set(FINISHED):
        print("the same command again runs what is not done")
    elif not isinstance(sweep, Search):
        print(f"draw it: {commands.of_sweep('launch.figures', sweep)}")


def _print_best(search: Search) -> None:
    """Prints the best point of a search so far, and the command that runs it."""
    if found := search.best():
        best, value = found
        print(f"best: point {best.number}, {best.label}, {search.metric} {value:.4g}")
        print(f"run it: {commands.of_config(search, best.changes)}")
