"""Draws what detectors find against the time they take: python -m launch.detectors

Every experiment that detects objects has a sweep `seeds`, of its default network. Its
average precision is taken from these runs, which are to lie under `--workdir`; the time
of an image is measured here, one photograph at a time and the detectors in turn, so
that whatever else the machine does touches all of them. Where a detector looks at
proposals, the search for them is measured by itself.

    for name in rcnn fast_rcnn faster_rcnn yolo ssd retinanet; do
        python -m launch.sweep --experiment=detection.$name --sweep=seeds \
            --executor=vmap
    done
    python -m launch.detectors

Writes a figure (PNG and SVG) and a JSON file with its numbers into
`<workdir>/detectors`; `--publish` puts figure and numbers beside the experiments, too.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from dl_core.errors import UserError
from dl_core.files import write_atomically, write_json
from launch import app, registry
from launch import flags as shared

FLAGS = shared.FLAGS
flags.declare_key_flag("workdir")
flags.declare_key_flag("preset")
flags.DEFINE_integer("images", 8, "Test photographs that are timed.", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "Measurements of each photograph.", lower_bound=1)
flags.DEFINE_bool("publish", False, "Put the figure beside the experiments, too.")

SWEEP = "seeds"
_METRIC = "test/ap50"
_CLOSE = 1.5
"""Points of AP below which a label goes left, where the one above it is right."""
_LOOKS = {
    "rcnn": ("R-CNN", "C3"),
    "fast_rcnn": ("Fast R-CNN", "C1"),
    "faster_rcnn": ("Faster R-CNN", "C8"),
    "yolo": ("YOLO", "C0"),
    "ssd": ("SSD", "C2"),
    "retinanet": ("RetinaNet", "C4"),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A detector's average precision, and the milliseconds of an image."""

    name: str
    precision: tuple[float, ...]
    """AP at IoU 0.5 on the test photographs, one number a seed."""
    search: float
    """Milliseconds for the search for proposals; 0 where there is none."""
    network: float
    """Milliseconds for all the rest."""

    @property
    def total(self) -> float:
        """Milliseconds of an image."""
        return self.search + self.network


def main(args: list[str]) -> None:
    """Measures every detector, prints a table, and draws it."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    found = measure()
    for line in table(found):
        print(line)
    for path in write(found):
        print(path)


def detectors() -> list[str]:
    """Returns the names of the experiments that are compared."""
    return [f"detection.{name}" for name in _LOOKS]


def measure() -> list[Measured]:
    """Reads the runs of every detector, and times one of each in turn.

    Raises:
      UserError: if a run of one of the sweeps is missing.
    """
    from dl_core.data.blood_cells import photographs

    runs = {name: finished(name) for name in detectors()}
    stoppers = {name: _Timed(runs[name][0].folder) for name in runs}
    images = list(photographs("test")[: FLAGS.images])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for stopper in stoppers.values():
        stopper(images[0])  # Compiles.
    for _ in range(FLAGS.repeats):
        for image in images:
            for name, stopper in stoppers.items():
                times[name].append(stopper(image))
    return [
        Measured(
            name.split(".")[1],
            tuple(runs[name].final(_METRIC).tolist()),
            *(1_000 * np.median(times[name], axis=0)).tolist(),
        )
        for name in runs
    ]


def finished(name: str) -> Any:
    """Returns the runs of a detector's sweep over seeds.

    Raises:
      UserError: if one is missing.
    """
    from dl_core.results import Run, Runs

    experiment = registry.load(name)
    preset = FLAGS.preset or "default"
    label = SWEEP if preset == "default" else f"{SWEEP}-{preset}"
    folder = pathlib.Path(FLAGS.workdir, name, "sweeps", label)
    runs = Runs(Run.read(done.parent) for done in sorted(folder.glob("*/DONE")))
    if len(runs) < len(experiment.sweeps[SWEEP]):
        given = "" if preset == "default" else f" --preset={preset}"
        raise UserError(
            f"the sweep {SWEEP} of {name} is not whole in {folder} ({len(runs)} of "
            f"{len(experiment.sweeps[SWEEP])} runs): run python -m launch.sweep "
            f"--experiment={name} --sweep={SWEEP}{given} --executor=vmap"
        )
    return runs


class _Timed:
    """Detects in a photograph with a trained run; returns the seconds of both parts."""

    def __init__(self, folder: pathlib.Path):
        from launch.detect import Detector, restored

        self.detector = Detector(*restored(folder))

    def __call__(self, image: np.ndarray) -> tuple[float, float]:
        import jax

        from launch.detect import to_batch

        start = time.perf_counter()
        batch = to_batch(self.detector.config, [image])
        middle = time.perf_counter()
        jax.block_until_ready(self.detector.detect(self.detector.state, batch))
        end = time.perf_counter()
        if "proposals" in batch:
            return middle - start, end - middle
        return 0.0, end - start


def table(found: Sequence[Measured]) -> list[str]:
    """Returns the lines of a table, the slowest detector first."""
    from dl_core.results import mean_and_spread

    lines = [f"{'':14}{'AP50, %':16}{'ms an image':>12}  of which the search"]
    for each in sorted(found, key=lambda each: -each.total):
        precision = mean_and_spread(each.precision, scale=100)
        search = f"{each.search:.1f}" if each.search else "-"
        lines.append(
            f"{_LOOKS[each.name][0]:14}{precision:16}{each.total:12.1f}  {search:>19}"
        )
    return lines


def draw(found: Sequence[Measured]) -> Any:
    """Draws average precision against time, with the spread over seeds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
    above = np.inf
    shown = [each for each in found if np.isfinite(each.precision).any()]
    for each in sorted(shown, key=lambda each: -np.nanmean(each.precision)):
        label, color = _LOOKS[each.name]
        values = 100 * np.array(each.precision)
        values = values[np.isfinite(values)]
        side, align = (-10, "right") if above - values.mean() < _CLOSE else (10, "left")
        above = values.mean()
        ax.plot([each.total] * len(values), values, "o", color=color, ms=4, alpha=0.5)
        ax.plot(each.total, values.mean(), "_", color=color, ms=16, mew=2.5)
        ax.annotate(
            label,
            (each.total, values.mean()),
            (side, -3),
            textcoords="offset points",
            ha=align,
            color=color,
        )
        if each.search:
            ax.plot([each.network, each.total], [values.mean()] * 2, ":", color=color)
            ax.plot(each.network, values.mean(), "|", color=color, ms=10)
    ax.set(
        xscale="log",
        xlabel="milliseconds an image",
        ylabel="AP at IoU 0.5 on test photographs, %",
    )
    ax.margins(x=0.25)
    ax.set_title(
        "a point a seed, a bar their mean; dotted: the search for proposals",
        fontsize=10,
    )
    ax.grid(alpha=0.3)
    return fig


def write(found: Sequence[Measured]) -> list[pathlib.Path]:
    """Writes the figure and its numbers; returns the files."""
    import matplotlib.pyplot as plt

    folder = pathlib.Path(FLAGS.workdir, "detectors")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"detectors.{kind}" for kind in ("png", "svg", "json")]
    with plt.rc_context({"svg.hashsalt": "detectors", "figure.dpi": 120}):
        figure = draw(found)
        figure.savefig(paths[0])
        figure.savefig(paths[1], metadata={"Date": None})
        plt.close(figure)
    write_json(paths[2], numbers(found))
    if FLAGS.publish:
        for path in (paths[0], paths[2]):
            copy = registry.results_folder("detection.ssd") / path.name
            write_atomically(copy, path.read_bytes())
            paths.append(copy)
    return paths


def numbers(found: Sequence[Measured]) -> Mapping[str, Any]:
    """Returns what was measured, and on what, as it is written."""
    from launch.execute import provenance

    return {
        **provenance(),
        # Without the places: what is published names no machine.
        "command": "python -m launch.detectors",
        "preset": FLAGS.preset or "default",
        "images": FLAGS.images,
        "repeats": FLAGS.repeats,
        "detectors": [dataclasses.asdict(each) for each in found],
    }


if __name__ == "__main__":
    app.run(main)
    sys.exit()
