"""Runs a sweep: python -m launch.sweep --experiment=NAME --sweep=SWEEP

Each point is an ordinary run in a directory of its own. Points that are done are
skipped, so the same command again runs what is missing. `--executor=local` runs a
bounded pool of processes; `--executor=vmap` runs in this process, one compiled program
for all points that differ only in traced fields and seeds. `--index=I` runs one point
alone: what the task I of a cluster's job array calls.
"""

import sys

from absl import flags

from dl_core.errors import UserError
from launch import app, registry
from launch import flags as shared

FLAGS = flags.FLAGS
shared.define_run_flags()
shared.define_sweep_flag()
flags.adopt_module_key_flags(shared)
flags.DEFINE_enum("executor", "local", ["local", "vmap"], "How to run the points.")
flags.DEFINE_integer("index", None, "Run this point alone.", lower_bound=0)
flags.DEFINE_integer(
    "slots",
    None,
    "With local: processes at once (default: one a GPU, or half the cores).",
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
    from launch import executors
    from launch.points import chosen_sweep

    sweep = chosen_sweep(FLAGS.sweep)
    if FLAGS.index is not None and FLAGS.index >= len(sweep.points):
        raise UserError(
            f"--index={FLAGS.index}: {FLAGS.sweep} has the points 0 to "
            f"{len(sweep.points) - 1}"
        )
    if FLAGS.dry_run:
        for point in sweep.points:
            print(executors.shell_command(point))
        return app.DONE
    sweep.write()
    if FLAGS.index is not None:
        return executors.one(sweep, sweep.points[FLAGS.index])
    statuses = {"local": executors.local, "vmap": executors.vmap}[FLAGS.executor](sweep)
    executors.print_summary(sweep, statuses)
    return executors.exit_code(statuses)


if __name__ == "__main__":
    app.run(main, shared.define_config_flags)
    sys.exit()
