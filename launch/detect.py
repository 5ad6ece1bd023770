"""Finds objects in photographs with a trained run: python -m launch.detect --run=DIR

`--run` is the folder of a run, finished or stopped, of an experiment that detects
objects; `--image` a photograph of any size, and may be given again. What is found with
a score of `--least_score` or more is printed as a table, with corners in pixels of the
photograph, and drawn on it: into `--out`, a PNG file (with several photographs a number
is added to its name). The score is the detector's own, not a probability that all
detectors mean alike.

    python -m launch.run --experiment=detection.ssd
    python -m launch.detect --run=runs/detection.ssd/runs/default --image=photo.jpg
"""

import importlib
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import UInt8

from dl_core.errors import UserError
from launch import app, registry, trained

FLAGS = flags.FLAGS
_LONGEST = 2**16
"""Pixels on a side that matplotlib does not draw any more."""
_LEGIBLE, _LARGE = 600, 4_000
"""Small photographs are drawn this many pixels wide and high, but not this many."""


def define_flags(argv: Sequence[str]) -> None:
    """Defines the flags; other commands that use this module have theirs."""
    flags.DEFINE_string("run", None, "Folder of a trained run that detects objects.")
    flags.DEFINE_multi_string("image", [], "A photograph; may be given several times.")
    flags.DEFINE_string("out", "detections.png", "The PNG file that is drawn.")
    flags.DEFINE_float("least_score", 0.5, "Detections of a lower score are left out.")


def main(args: list[str]) -> None:
    """Detects, prints and draws what the flags say."""
    if args:
        raise UserError(f"{args[0]!r} is not a flag; see --help")
    if not FLAGS.run:
        raise UserError("--run is missing: the folder of a trained run")
    if not FLAGS.image:
        raise UserError("--image is missing: a photograph to find objects in")
    from dl_core.train.detection import names_of

    outs = out_files(FLAGS.out, len(FLAGS.image))
    images = read_images(FLAGS.image)
    module, config, state = restored(pathlib.Path(FLAGS.run))
    names = names_of(config)
    detector = Detector(module, config, state)
    for path, image, out in zip(FLAGS.image, images, outs, strict=True):
        found = detector(image)
        found = found.take(found.scores >= FLAGS.least_score)
        print(path)
        for line in table(found, names):
            print(line)
        draw(image, found, names, out)
        print(f"drawn in {out}")


def out_files(out: str, count: int) -> list[pathlib.Path]:
    """Returns the file to draw each photograph into.

    Raises:
      UserError: if it is not a PNG file, or its folder does not exist.
    """
    path = pathlib.Path(out).expanduser()
    if path.suffix.lower() != ".png":
        raise UserError(f"--out={out}: expected the name of a PNG file, such as a.png")
    if not path.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {path.parent}")
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i + 1}") for i in range(count)]


def read_images(paths: Sequence[str]) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Returns the photographs, the right way up.

    Raises:
      UserError: if one is not a whole image, or too large to be drawn.
    """
    from dl_core.data.detection import read_image

    images = []
    for path in paths:
        image = read_image(path)
        height, width = image.shape[:2]
        if max(height, width) >= _LONGEST:
            raise UserError(
                f"--image={path} has {width:,} × {height:,} pixels: expected fewer "
                f"than {_LONGEST:,} on a side"
            )
        images.append(image)
    return images


def restored(folder: pathlib.Path) -> tuple[types.ModuleType, Any, Any]:
    """Returns a run's experiment (its module), config, and newest state.

    Raises:
      UserError: if there is no such run, it is damaged, detects nothing, has not saved
        a state of its last stage, or the state cannot be read.
    """
    import jax

    from dl_core.config import to_arrays

    def check(name: str) -> None:
        if not hasattr(_module(name), "detect"):
            raise UserError(
                f"--run={folder} is of {name}, which does not detect objects"
            )

    experiment, config = trained.read_config(folder, check)

    def shapes_of(step: int) -> Any:
        if step <= sum(experiment.steps(config)[:-1]):
            raise UserError(
                f"--run={folder}: it has saved no checkpoint of its last stage, "
                f"{experiment.stages[-1].name}, yet"
            )
        previous = ()
        for stage in experiment.stages:
            shapes = jax.eval_shape(
                stage.init, to_arrays(config), jax.random.key(0), *previous
            )
            previous = (shapes,)
        return shapes

    _, state = trained.restore(folder, shapes_of)
    return _module(experiment.name), config, state


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"experiments.{registry.check(name)}")


def to_batch(
    config: Any, images: Sequence[UInt8[np.ndarray, "height width 3"]]
) -> dict[str, np.ndarray]:
    """Returns what an experiment's `detect` reads of photographs, and their `scale`.

    Args:
      config: of the run. Where it has `proposals`, these are searched anew.
      images: of any sizes, as `dl_core.data.detection.read_image` has them.
    """
    from dl_core.data.boxed_images import resize
    from dl_core.data.detection import to_input

    inputs = [to_input(image, config.data) for image in images]
    batch = {
        "image": np.stack([each for each, _ in inputs]),
        "scale": np.stack([scale for _, scale in inputs]),
    }
    if hasattr(config, "proposals"):
        from dl_core.ops.proposals import selective_search

        size = config.data.height, config.data.width
        shape = len(images), config.proposals.most
        batch["proposals"] = np.zeros((*shape, 4), np.float32)
        batch["proposal_mask"] = np.zeros(shape, bool)
        for row, image in enumerate(images):
            found = selective_search(resize(image, size), config.proposals)
            batch["proposals"][row, : len(found)] = found
            batch["proposal_mask"][row, : len(found)] = True
    return batch


class Detector:
    """A trained detector, compiled once for photographs of all sizes."""

    def __init__(self, module: types.ModuleType, config: Any, state: Any):
        """Args: as `restored` returns them."""
        import jax

        from dl_core.config import to_arrays

        self.config, self.state = config, state
        arrays = to_arrays(config)
        self.detect = jax.jit(lambda state, batch: module.detect(arrays, state, batch))

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Any:
        """Returns what is in a photograph, in its pixels, by falling score.

        Returns:
          A `dl_core.metrics.detection_pairs.Found`.
        """
        from dl_core.metrics.detection_pairs import Found

        batch = to_batch(self.config, [image])
        scale = np.tile(batch.pop("scale")[0], 2)
        boxes, scores, labels = map(np.asarray, self.detect(self.state, batch))
        real = labels[0] >= 0
        height, width = image.shape[:2]
        corners = np.clip(boxes[0, real] * scale, 0, [width, height] * 2)
        found = Found(
            np.zeros(real.sum(), int), corners, scores[0, real], labels[0, real]
        )
        return found.ranked()


def table(found: Any, names: Sequence[str]) -> list[str]:
    """Returns the lines that say what is where in a photograph."""
    if not len(found.labels):
        return ["nothing is found with such a score"]
    width = max(len("label"), *map(len, names))
    corners = ("x_min", "y_min", "x_max", "y_max")
    lines = [f"{'label':{width}}  score" + "".join(f"{name:>9}" for name in corners)]
    for _, box, score, label in zip(*found, strict=True):
        numbers = "".join(f"{x:9.1f}" for x in box)
        lines.append(f"{names[label]:{width}}  {score:5.2f}{numbers}")
    return lines


def draw(
    image: UInt8[np.ndarray, "height width 3"],
    found: Any,
    names: Sequence[str],
    out: pathlib.Path,
) -> None:
    """Draws a photograph with the boxes, names and scores of what is found.

    It keeps its pixels; a small one is enlarged a whole number of times, as names would
    not be legible else.

    Raises:
      UserError: if the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from dl_core.pictures_detection import draw_box

    height, width = image.shape[:2]
    times = min(_LEGIBLE // min(height, width), _LARGE // max(height, width))
    shape = np.array([width, height]) * max(1, times)
    fig = plt.figure(figsize=shape / 100, dpi=100)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.imshow(image, interpolation="nearest", aspect="auto")
    ax.axis("off")
    size = max(8.0, shape.min() / 80)
    for _, box, score, label in list(zip(*found, strict=True))[::-1]:
        draw_box(ax, box, f"{names[label]} {score:.2f}", f"C{label % 10}", size=size)
    try:
        fig.savefig(out, dpi=100)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from None
    finally:
        plt.close(fig)


if __name__ == "__main__":
    app.run(main, define_flags)
    sys.exit()
