"""Runs a sweep: python -m launch.sweep --experiment=NAME --sweep=SWEEP

Each point is an ordinary run in a directory of its own. Points that are done are
skipped, so the same command again runs what is missing. Where they run is chosen by
`--executor`: a bounded pool of processes (local), this process and one compiled program
for all points that differ only in traced fields and seeds (vmap), a job array (slurm),
or a manifest for a cluster (kubernetes). `--index=I` runs one point alone: what the
task I of a cluster's job array calls.
"""

import importlib
import sys

from absl import flags

from dl_core.errors import UserError
from launch import app, kubernetes, processes, registry, search_space, slurm, snapshot
from launch import flags as shared
from launch.point_numbers import numbers_text

FLAGS = flags.FLAGS
shared.define_run_flags()
shared.define_sweep_flag()
flags.adopt_module_key_flags(shared)
for module in (search_space, slurm, kubernetes):
    flags.adopt_module_key_flags(module)
_EXECUTORS = {
    "local": "pool",
    "vmap": "together",
    "slurm": "slurm",
    "kubernetes": "kubernetes",
}
flags.DEFINE_enum("executor", "local", list(_EXECUTORS), "How to run the points.")
flags.DEFINE_string(
    "points", None, "Of these points alone, by number, such as 0-3,7 (default: all)."
)
flags.DEFINE_integer(
    "index",
    None,
    "Run the point of this number alone; with --points, the one at this place of them, "
    "from 0.",
    lower_bound=0,
)
flags.DEFINE_bool(
    "extend", False, "Add points to a sweep that has begun; none is renumbered."
)
flags.DEFINE_bool(
    "snapshot", False, "Run a copy of the files that git tracks, made once for a sweep."
)
flags.DEFINE_integer(
    "slots",
    None,
    "local, vmap: Processes at once (default: one a GPU, or half the cores; with vmap, "
    "none beside this one).",
    lower_bound=1,
)
flags.DEFINE_enum(
    "vmap_mode",
    "auto",
    ["auto", "together", "in_turn"],
    "vmap: Train a group's points all at once, or in turn through the one compiled "
    "program (auto: in turn on CPUs, together elsewhere).",
)
flags.DEFINE_float(
    "memory_gib",
    None,
    "vmap: Memory of a device that points trained all at once may take (default: "
    "nearly all that is free); a group that needs more is split.",
    lower_bound=0.0,
)


def main(args: list[str]) -> int:
    """Runs the sweep that the flags choose."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    search_space.check_flags()
    _check_flags()
    if FLAGS.sweep is None and not FLAGS.search:
        known = registry.outline(registry.check(FLAGS.experiment)).sweeps
        raise UserError(f"--sweep is missing; there are {', '.join(known)}")
    sweep = _chosen()
    _choose_code(sweep)
    if FLAGS.index is not None or (FLAGS.executor == "vmap" and FLAGS.slots is None):
        processes.join()
    elif processes.are_many():
        raise UserError(
            "each of these processes would run the whole sweep: start one, or give "
            "--index, or --executor=vmap without --slots, and all make one run"
        )
    if FLAGS.index is not None:
        return _one(sweep)
    if FLAGS.executor == "kubernetes" and sweep.cancelled():
        raise UserError(f"{sweep.folder} is cancelled: remove its file CANCELLED first")
    executor = importlib.import_module(f"launch.{_EXECUTORS[FLAGS.executor]}")
    if FLAGS.dry_run:
        return _dry_run(sweep, executor)
    if FLAGS.executor != "kubernetes":
        processes.by_first(lambda: sweep.write(extend=FLAGS.extend))
    return executor.run(sweep)


def _check_flags() -> None:
    """Refuses what another executor would understand, and this one would pass over."""
    for flag in (FLAGS[name] for name in FLAGS if FLAGS[name].present):
        help_text = flag.help.rpartition(">: ")[2]  # Without an enum's values.
        executors = help_text.partition(":")[0].split(", ")
        if not set(executors) <= set(_EXECUTORS):
            continue
        if FLAGS.index is not None:
            raise UserError(f"--{flag.name} means nothing to the one point of --index")
        if FLAGS.executor not in executors:
            raise UserError(
                f"--{flag.name} means nothing to --executor={FLAGS.executor}; "
                f"{flag.help}"
            )


def _dry_run(sweep, executor) -> int:
    """Prints what would run, by the executor's own words or point by point."""
    from launch import commands

    if hasattr(executor, "dry_run"):
        executor.dry_run(sweep)
    else:
        for point in sweep.selected:
            print(commands.shell(commands.of_point(sweep, point.number)))
    return app.DONE


def _chosen():
    """Returns the sweep or search that the flags choose."""
    if not FLAGS.search:
        from launch.points import chosen_sweep

        return chosen_sweep(FLAGS.sweep)
    from launch.search import chosen_search

    if FLAGS.executor == "vmap":
        raise UserError(
            "--executor=vmap compiles the points' values together, and a search "
            "proposes each when it starts: give another executor"
        )
    return chosen_search()


def _choose_code(sweep) -> None:
    """Goes on with the sweep's own copy of the code, if it has or is to have one."""
    snapshot.enter(sweep.folder, extends=FLAGS.extend and not FLAGS.search)
    if FLAGS.snapshot and not (FLAGS.dry_run or FLAGS.validate):
        if FLAGS.executor == "kubernetes":
            raise UserError("--snapshot: pods run the code that is in their --image")
        processes.by_first(lambda: sweep.write(extend=FLAGS.extend))
        snapshot.take(sweep.folder)
        snapshot.enter(sweep.folder)


def _one(sweep) -> int:
    """Runs the point that `--index` names, in this process; returns the exit code."""
    from launch import commands
    from launch.execute import execute
    from launch.summary import exit_code

    places = dict(enumerate(sweep.selected))
    if FLAGS.points is None:
        places = {point.number: point for point in sweep.selected}
    if FLAGS.index not in places:
        raise UserError(
            f"--index={FLAGS.index}: {sweep.name} has the points {numbers_text(places)}"
        )
    point = places[FLAGS.index]
    if FLAGS.dry_run:
        print(commands.shell(commands.of_point(sweep, point.number)))
        return app.DONE
    processes.by_first(lambda: _go_on(sweep))
    point = sweep.begin(point)
    runs = [(point.path, point.config)]
    (status,) = execute(
        sweep.experiment, runs, together=False, cancelled=sweep.cancelled
    )
    if processes.is_first():
        sweep.end()
    return exit_code({point.number: status})


def _go_on(sweep) -> None:
    if sweep.cancelled():
        raise UserError(
            f"{sweep.folder} is cancelled; the command of the whole sweep revives it"
        )
    sweep.write(extend=FLAGS.extend)


if __name__ == "__main__":
    app.run(main, shared.define_config_flags)
    sys.exit()
