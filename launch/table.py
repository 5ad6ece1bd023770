"""Prints what was measured beside what was published: python -m launch.table

For every task of an experiment's `TABLE`: each network's mean and spread over the seeds
that were run, the paper's number, and for what was not run the command that runs it.
Runs under `--workdir` count where there are any, else the published results.
`--experiment=NAME` leaves the other experiments out.
"""

import pathlib
from collections.abc import Iterator

from absl import flags

from launch import app, publish, registry
from launch import flags as shared

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(shared)


def main(args: list[str]) -> None:
    """Prints the table of all experiments that have one, or of the chosen one."""
    from dl_core.errors import UserError

    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    chosen = FLAGS.experiment and registry.check(FLAGS.experiment)
    experiments = [registry.load(n) for n in registry.names() if chosen in (None, n)]
    if not any(experiment.table for experiment in experiments):
        raise UserError(f"--experiment={chosen}: it has no published table beside it")
    for experiment in experiments:
        for row in experiment.table:
            lines = told(experiment, row, measured(experiment, row))
            print(*lines, sep="\n", end="\n\n")


def told(experiment, row, runs) -> Iterator[str]:
    """Yields the lines of one task.

    Args:
      experiment: the experiment.
      row: one of its `TABLE`.
      runs: those that are this row, as `dl_core.results.Runs`.
    """
    yield f"{row.task} ({row.metric}{row.unit}, {row.better} is better)"
    groups = runs.by("model.name")
    points = experiment.sweeps[row.sweep]
    names = dict.fromkeys(
        [*row.published, *(p.get("model.name") for p in points), *groups]
    )
    missing = False
    for name in filter(None, names):
        ours = groups.get(name)
        missing = missing or ours is None
        yield "".join(
            f"  {part:<{width}}"
            for part, width in (
                (name.upper(), 6),
                (_ours(row, ours), 34),
                (_published(row, name), 20),
                (_verdict(row, name, ours), 0),
            )
        ).rstrip()
    if missing:
        preset = "" if row.preset == "default" else f" --preset={row.preset}"
        yield (
            f"  not run: python -m launch.sweep --experiment={experiment.name} "
            f"--sweep={row.sweep}{preset}"
        )


def measured(experiment, row):
    """Returns the finished runs of a row: those in the working folder, or published.

    Args:
      experiment: the experiment.
      row: one of its `TABLE`.
    """
    from dl_core.results import Run, Runs

    label = row.sweep if row.preset == "default" else f"{row.sweep}-{row.preset}"
    folder = pathlib.Path(FLAGS.workdir, experiment.name, "sweeps", label)
    runs = Runs(Run.read(done.parent) for done in sorted(folder.glob("*/DONE")))
    if not runs and label in (found := publish.published(experiment.name)):
        runs = publish.as_runs(found[label])
    return runs.where(**row.where)


def _ours(row, runs) -> str:
    from dl_core.results import mean_and_spread

    if runs is None:
        return "not run"
    values = runs.final(row.metric)
    seeds = f"{len(values)} seed" + ("s" if len(values) > 1 else "")
    return f"{mean_and_spread(values, scale=row.scale)} ({seeds})"


def _published(row, name: str) -> str:
    return f"published {row.published[name]:g}" if name in row.published else ""


def _verdict(row, name: str, runs) -> str:
    if runs is None or name not in row.published:
        return ""
    ours, theirs = row.scale * runs.final(row.metric).mean(), row.published[name]
    ahead = ours <= theirs if row.better == "lower" else ours >= theirs
    return "at or better" if ahead else "behind"


if __name__ == "__main__":
    app.run(main, shared.define_config_flags)
