"""`--executor=vmap`: one compiled program for all points that differ in traced fields.

Points that share their static fields are a group. A group's points train all at once,
stacked, on accelerators, and in turn through the one program on CPUs (`--vmap_mode`).
All at once they begin at one step, so points that were stopped at another are a group
of their own, and they must fit the memory, or the group is split (`--memory_gib`). A
point that diverges is marked and counts no more; its part of the program runs on empty.
Groups run one after another in this process, or with `--slots` in a pool of processes.
"""

import collections
import math
from collections.abc import Sequence

from absl import flags

from dl_core.errors import UserError
from launch import commands, pool, processes
from launch.execute import data_dir, execute, say
from launch.points import Point, Sweep
from launch.summary import exit_code, print_summary

FLAGS = flags.FLAGS


def run(sweep: Sweep) -> int:
    """Runs the unfinished points, a program for each group; returns the exit code."""
    # Chosen by one process, since what is left may change meanwhile.
    chosen = processes.by_first(lambda: _groups(sweep.left()))
    by_number = {point.number: point for point in sweep.selected}
    groups = [[by_number[number] for number in numbers] for numbers in chosen]
    if FLAGS.slots is not None:
        jobs = [
            pool.Job(points, commands.of_group(sweep, numbers), points[0].log)
            for points, numbers in zip(groups, chosen, strict=True)
        ]
        statuses = pool.run_jobs(sweep, jobs, FLAGS.slots)
    else:
        statuses = _run_here(sweep, groups)
    if processes.is_first():
        print_summary(sweep, statuses)
    return exit_code(statuses)


def _groups(points: Sequence[Point]) -> list[list[int]]:
    """Groups points that one compiled program can run, from where they are."""
    from dl_core.config import group_key

    groups: dict[object, list[int]] = collections.defaultdict(list)
    for point in points:
        groups[group_key(point.config), _step(point)].append(point.number)
    return list(groups.values())


def _step(point: Point) -> int:
    """Returns the step of the point's last checkpoint, or 0."""
    saved = (point.path / "checkpoints").glob("[0-9]*")
    return max((int(path.name) for path in saved if path.name.isdigit()), default=0)


def _fitting(sweep: Sweep, points: Sequence[Point]) -> list[Sequence[Point]]:
    """Splits a group so that each part fits the memory."""
    from dl_core.train import loop, memory
    from dl_core.train.layout import make_layout

    limit = FLAGS.memory_gib and int(FLAGS.memory_gib * 2**30)
    try:
        count = memory.points_at_once(
            sweep.experiment,
            [point.config for point in points],
            make_layout(FLAGS.devices, FLAGS.model_axis, fsdp=FLAGS.fsdp),
            data_dir(),
            FLAGS.steps_per_call or loop.default_steps_per_call(),
            limit,
        )
    except (OSError, UserError):  # Training meets it too, and says what is wrong.
        return [points]
    if count < len(points):
        parts = math.ceil(len(points) / count)
        gib = FLAGS.memory_gib or memory.available() / 2**30
        say(
            f"{len(points)} points at once do not fit {gib:.3g} GiB of memory: {parts} "
            f"groups of at most {count}, one after another"
        )
    return [points[i : i + count] for i in range(0, len(points), count)]


def _run_here(sweep: Sweep, groups: Sequence[Sequence[Point]]) -> dict[int, str]:
    import jax

    mode = FLAGS.vmap_mode
    if mode == "auto":
        mode = "in_turn" if jax.default_backend() == "cpu" else "together"
    processes.by_first(sweep.revive)
    statuses = {point.number: point.status() for point in sweep.selected}
    if mode == "together":
        groups = [part for points in groups for part in _fitting(sweep, points)]
    for points in groups:
        if "stopped" in statuses.values() or processes.by_first(sweep.cancelled):
            statuses |= {point.number: "stopped" for point in points}
            continue
        ended = execute(
            sweep.experiment,
            [(point.path, point.config) for point in points],
            together=mode == "together",
            cancelled=sweep.cancelled,
        )
        statuses |= {p.number: s for p, s in zip(points, ended, strict=True)}
    return statuses
