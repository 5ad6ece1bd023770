"""Draws figures from finished runs: python -m launch.figures --experiment=NAME

A figure is drawn from the results of its sweep, all of it or not at all, as PNG and SVG
with a JSON file beside them that says which runs made it.
"""

import pathlib
import sys

from absl import flags

from dl_core.errors import UserError, nearest
from launch import app
from launch import flags as shared

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(shared)
flags.DEFINE_string(
    "figure", None, "Which figure (default: every one whose sweep is complete)."
)


def main(args: list[str]) -> int:
    """Draws the figures that the flags choose."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    experiment, _, _ = shared.chosen()
    figures = experiment.figures
    if FLAGS.figure is not None and FLAGS.figure not in figures:
        raise UserError(
            f"--figure={FLAGS.figure}: {experiment.name} has the figures "
            f"{', '.join(figures)}{nearest(FLAGS.figure, figures)}"
        )
    if FLAGS.figure is not None:
        print(*draw(experiment, FLAGS.figure), sep="\n")
        return app.DONE
    refused = []
    for name in figures:
        try:
            print(*draw(experiment, name), sep="\n")
        except UserError as error:
            refused.append(str(error))
    for sentence in refused:
        print(f"not drawn: {sentence}", file=sys.stderr)
    return app.MISUSED if len(refused) == len(figures) else app.DONE


def draw(experiment, name: str) -> list[pathlib.Path]:
    """Draws one figure into its sweep's folder.

    Args:
      experiment: the experiment.
      name: one of its figures.

    Returns:
      The PNG and the SVG file.

    Raises:
      UserError: if the sweep is not complete.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from dl_core.config import fingerprint
    from dl_core.files import write_json
    from dl_core.results import Run, Runs
    from launch.execute import command_line
    from launch.points import chosen_sweep

    function = experiment.figures[name]
    sweep = chosen_sweep(function.sweep)
    require_complete(sweep, f"the figure {name}")
    runs = Runs(Run.read(point.path) for point in sweep.points)
    folder = sweep.folder / "figures"
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    if FLAGS.dry_run:
        return paths
    folder.mkdir(exist_ok=True)
    # The same results give the same bytes: no dates, no random identifiers.
    with plt.rc_context({"svg.hashsalt": name, "figure.dpi": 120}):
        drawn = function(runs)
        drawn.savefig(paths[0])
        drawn.savefig(paths[1], metadata={"Date": None})
        plt.close(drawn)
    made_by = {
        "figure": name,
        "sweep": sweep.name,
        "command": command_line(),
        "runs": [
            {
                "folder": str(run.folder),
                "config": fingerprint(run.config),
                **{
                    k: run.result.get(k) for k in ("status", "step", "commit", "device")
                },
            }
            for run in runs
        ],
    }
    write_json(folder / f"{name}.json", made_by)
    return paths


def require_complete(sweep, purpose: str) -> None:
    """Checks that a sweep has nothing left to do.

    Raises:
      UserError: if it has, naming the points and the command that runs them.
    """
    left = sweep.unfinished()
    if not left:
        return
    from launch import commands

    shown = ", ".join(f"{p.path.name} ({p.label}: {p.status()})" for p in left[:3])
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    raise UserError(
        f"{purpose} needs the whole sweep {sweep.name}, of which {len(left)} of "
        f"{len(sweep.points)} points are not done: {shown}{more}; complete it with: "
        f"{commands.of_sweep('launch.sweep', sweep)}"
    )


if __name__ == "__main__":
    app.run(main, shared.define_config_flags)
    sys.exit()
