"""Runs one experiment, or goes on with it: python -m launch.run --experiment=NAME

Each config has a directory of its own; running a finished one again does nothing, an
unfinished one resumes. `--config.FIELD=VALUE` sets a field (`--helpfull` lists them).
"""

import pathlib
import sys

from absl import flags

from dl_core.errors import UserError
from launch import app, processes
from launch import flags as shared

FLAGS = flags.FLAGS
shared.define_run_flags()
flags.adopt_module_key_flags(shared)


def main(args: list[str]) -> int:
    """Runs the experiment that the flags choose."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    processes.join()
    experiment, config, _ = shared.chosen()
    from dl_core.config import leaves

    path = directory(experiment, config)
    if FLAGS.dry_run:
        print(f"would run {experiment.name} in {path}:")
        for leaf in leaves(config).values():
            print(f"  {leaf.path} = {leaf.value}")
        return app.DONE
    from launch.execute import execute, exit_code

    return exit_code(execute(experiment, [(path, config)], together=False))


def directory(experiment, config) -> pathlib.Path:
    """Returns the run's directory: named by its preset, and by what differs from it."""
    from dl_core.config import fingerprint
    from dl_core.files import inside

    preset = FLAGS.preset or "default"
    changed = config != experiment.preset(preset)
    name = FLAGS.name or (f"{preset}-{fingerprint(config)}" if changed else preset)
    return inside(pathlib.Path(FLAGS.workdir), experiment.name, "runs", name)


if __name__ == "__main__":
    app.run(main, shared.define_config_flags)
    sys.exit()
