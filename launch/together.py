"""`--executor=vmap`: one compiled program for all points that differ in traced fields.

Points that share their static fields are a group. A group's points train all at once,
stacked, on accelerators, and in turn through the one program on CPUs (`--vmap_mode`).
Groups run one after another in this process, or with `--slots` in a pool of processes.
"""

import collections
from collections.abc import Sequence

from absl import flags

from launch import commands, pool
from launch.execute import execute
from launch.points import Point, Sweep
from launch.summary import exit_code, print_summary

FLAGS = flags.FLAGS


def run(sweep: Sweep) -> int:
    """Runs the unfinished points, a program for each group; returns the exit code."""
    groups = _groups(sweep.left())
    if FLAGS.slots is not None:
        jobs = []
        for points in groups:
            numbers = [point.number for point in points]
            command = commands.of_group(sweep, numbers)
            jobs.append(pool.Job(points, command, points[0].log))
        statuses = pool.run_jobs(sweep, jobs, FLAGS.slots)
    else:
        statuses = _run_here(sweep, groups)
    print_summary(sweep, statuses)
    return exit_code(statuses)


def _groups(points: Sequence[Point]) -> list[list[Point]]:
    """Groups points that one compiled program can run."""
    from dl_core.config import group_key

    groups: dict[object, list[Point]] = collections.defaultdict(list)
    for point in points:
        groups[group_key(point.config)].append(point)
    return list(groups.values())


def _run_here(sweep: Sweep, groups: Sequence[Sequence[Point]]) -> dict[int, str]:
    import jax

    mode = FLAGS.vmap_mode
    if mode == "auto":
        mode = "in_turn" if jax.default_backend() == "cpu" else "together"
    statuses = {point.number: point.status() for point in sweep.selected}
    for points in groups:
        if "stopped" in statuses.values() or sweep.cancelled():
            break
        ended = execute(
            sweep.experiment,
            [(point.path, point.config) for point in points],
            together=mode == "together",
        )
        statuses |= {p.number: s for p, s in zip(points, ended, strict=True)}
    return statuses
