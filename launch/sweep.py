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
from launch import app, registry
from launch import flags as shared

FLAGS = flags.FLAGS
shared.define_run_flags()
shared.define_sweep_flag()
flags.adopt_module_key_flags(shared)
_EXECUTORS = {"local": "pool", "vmap": "together"}
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
flags.DEFINE_integer(
    "slots",
    None,
    "Processes at once (local: one a GPU, or half the cores; vmap: none, all groups in "
    "this one).",
    lower_bound=1,
)
flags.DEFINE_enum(
    "vmap_mode",
    "auto",
    ["auto", "together", "in_turn"],
    "With vmap: train a group's points all at once, or in turn through the one "
    "compiled program (auto: in turn on CPUs, together elsewhere).",
)


def main(args: list[str]) -> int:
    """Runs the sweep that the flags choose."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    if FLAGS.sweep is None:
        known = registry.outline(registry.check(FLAGS.experiment)).sweeps
        raise UserError(f"--sweep is missing; there are {', '.join(known)}")
    from launch import commands
    from launch.points import chosen_sweep

    sweep = chosen_sweep(FLAGS.sweep)
    if FLAGS.index is not None:
        return _one(sweep)
    if FLAGS.dry_run:
        for point in sweep.selected:
            print(commands.shell(commands.of_point(sweep, point.number)))
        return app.DONE
    sweep.write(extend=FLAGS.extend)
    executor = importlib.import_module(f"launch.{_EXECUTORS[FLAGS.executor]}")
    return executor.run(sweep)


def _one(sweep) -> int:
    """Runs the point that `--index` names, in this process; returns the exit code."""
    from launch import commands
    from launch.execute import execute, exit_code

    places = dict(enumerate(sweep.selected))
    if FLAGS.points is None:
        places = {point.number: point for point in sweep.selected}
    if FLAGS.index not in places:
        raise UserError(
            f"--index={FLAGS.index}: {sweep.name} has the points 0 to {len(places) - 1}"
        )
    point = places[FLAGS.index]
    if FLAGS.dry_run:
        print(commands.shell(commands.of_point(sweep, point.number)))
        return app.DONE
    sweep.write(extend=FLAGS.extend)
    runs = [(point.path, point.config)]
    return exit_code(execute(sweep.experiment, runs, together=False))


if __name__ == "__main__":
    app.run(main, shared.define_config_flags)
    sys.exit()
