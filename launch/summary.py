"""What is told at the end of a sweep: a line a point, the counts, what to do next."""

import collections
from collections.abc import Mapping

from dl_core.train.run_directory import FINISHED
from launch import commands
from launch.execute import exit_code as _exit_code
from launch.points import Sweep


def exit_code(statuses: Mapping[int, str]) -> int:
    """Returns the exit code of a sweep, to which a point that diverged is a result."""
    return _exit_code(["done" if s == "diverged" else s for s in statuses.values()])


def print_summary(sweep: Sweep, statuses: Mapping[int, str]) -> None:
    """Prints a line a selected point, the counts, and what to do next."""
    from dl_core.results import Run

    metric = sweep.experiment.main_metric
    width = max(len(point.label) for point in sweep.selected)
    print(f"{'point':<5}  {'':<{width}}  {'status':<10}  {metric:>14}  {'seconds':>8}")
    for point in sweep.selected:
        line = (
            f"{point.number:>5}  {point.label:<{width}}  {statuses[point.number]:<10}"
        )
        if (point.path / "DONE").exists():
            run = Run.read(point.path)
            line += f"  {run.final(metric):>14.4g}  {run.result['seconds']:>8.1f}"
        print(line)
    counts = collections.Counter(statuses.values())
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if set(counts) <= set(FINISHED):
        print(f"draw it: {commands.of_sweep('launch.figures', sweep)}")
    else:
        print("the same command again runs what is not done")
