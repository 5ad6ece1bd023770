"""Figures of detectors: detections beside the truth, precision over recall, errors."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from dl_core.metrics import detection_errors
from dl_core.metrics.detection_coco import RECALLS
from dl_core.metrics.detection_errors import KINDS, RIGHT
from dl_core.metrics.detection_pairs import Found, Truth
from dl_core.pictures import mean_and_range, seed_points
from dl_core.results import Run, Runs

_LOOKS = {
    "right": ("C2", "-", "right"),
    "wrong": ("C3", "-", "wrong"),
    "ignored": ("0.5", "-", "does not count"),
    "missed": ("C1", "--", "missed"),
    "truth": ("C0", "-", "the truth"),
}
"""Colour, line and words of a box."""
_COLUMNS = 3


def detections_beside_truth(
    seen: Mapping[str, np.ndarray], names: Sequence[str], *, least_score: float = 0.5
) -> Figure:
    """Draws images with what is in them, and below each what was found.

    A detection is right or wrong as COCO has it at an IoU of 0.5, of those that are
    drawn; an object that none of these has is drawn dashed among them.

    Args:
      seen: what `dl_core.train.detection.kept` keeps, as of `Run.last_artifacts`; empty
        where a run diverged.
      names: of the classes.
      least_score: of the detections that are drawn.
    """
    if not seen:
        return _nothing("the run diverged before anything was kept")
    count = len(seen["image"])
    height, width = seen["image"].shape[1:3]
    rows = 2 * -(-count // _COLUMNS)
    size = 3.6 * _COLUMNS, (3.6 * height / width + 0.1) * rows + 0.7
    fig, axes = plt.subplots(
        rows, _COLUMNS, figsize=size, layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for number in range(count):
        row, column = divmod(number, _COLUMNS)
        above, below = axes[2 * row : 2 * row + 2, column]
        one = {name: array[number] for name, array in seen.items()}
        for ax in (above, below):
            ax.imshow(picture(one["image"]))
        for box, label in zip(one["boxes"], one["labels"], strict=True):
            if label >= 0:
                draw_box(above, box, names[label], *_LOOKS["truth"][:2])
        for box, text, look in _judged(one, names, least_score):
            draw_box(below, box, text, *_LOOKS[look][:2])
    handles = [
        Line2D([], [], color=color, ls=style, label=words)
        for look, (color, style, words) in _LOOKS.items()
        if look != "ignored" or seen["difficult"].any()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
    fig.suptitle(f"detections of a score of {least_score:g} and above", fontsize=10)
    return fig


def precision_recall(
    groups: Runs | Mapping[str, Runs], names: Sequence[str], *, data: str = "test"
) -> Figure:
    """Draws precision over recall at an IoU of 0.5, a plot a class.

    Lines are means over seeds, bands their range; the average precisions are in the
    legend, as mean over seeds.

    Args:
      groups: runs, or such by label.
      names: of the classes.
      data: the evaluation set.
    """
    fig, axes = plt.subplots(
        1,
        len(names),
        figsize=(3.2 * len(names), 3.4),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    metric = f"{data}/precision"
    for number, (label, runs) in enumerate(_labelled(groups).items()):
        ended = [run.result["metrics"] for run in runs if not run.diverged]
        curves = [row[metric] for row in ended if metric in row]
        if not curves:
            continue
        of_classes = np.array(curves, float).swapaxes(0, 1)
        for ax, values in zip(axes[0], of_classes, strict=True):
            if (values < 0).any():  # There are no objects of the class.
                continue
            text = f"{label}: {100 * values.mean():.1f} %".removeprefix(": ")
            mean_and_range(ax, RECALLS, values, color=f"C{number}", label=text)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(title="AP at IoU 0.5", fontsize=8, title_fontsize=8)
    axes[0, 0].set_ylabel("precision (mean and range over seeds)")
    return fig


def errors(groups: Runs | Mapping[str, Runs], *, data: str = "test") -> Figure:
    """Draws how much average precision each kind of error costs, a point a seed.

    Args:
      groups: runs, or such by label.
      data: the evaluation set.
    """
    labelled = _labelled(groups)
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for number, (label, runs) in enumerate(labelled.items()):
        for place, kind in enumerate(KINDS):
            values = [_final(run, f"{data}/error_{kind}") for run in runs]
            at = place + 0.7 * ((number + 0.5) / len(labelled) - 0.5)
            text = label if place == 0 else ""
            seed_points(ax, at, 100 * np.array(values), f"C{number}", text)
    ax.set(xticks=range(len(KINDS)), xticklabels=KINDS)
    ax.margins(y=0.15)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("AP at IoU 0.5 that errors cost, %")
    ax.set_title("a point a seed, a bar their mean", fontsize=10)
    ax.grid(alpha=0.3, axis="y")
    if any(labelled):
        fig.legend(loc="outside right upper", fontsize=8)
    return fig


def draw_box(
    ax: plt.Axes,
    box: Float[np.ndarray, "4"],
    text: str,
    color: str,
    style: str = "-",
    size: float = 6,
) -> None:
    """Draws a box and what it is.

    Args:
      ax: which shows the image, and nothing outside of it.
      box: xyxy in pixels, where 0 is the edge of the first pixel.
      text: at its upper left corner.
      color: of both.
      style: of the line.
      size: of the text, in points.
    """
    # imshow has the centre of the first pixel at 0.
    left, top, right, low = (float(x) - 0.5 for x in box)
    shape = {"fill": False, "lw": size / 5, "ec": color, "ls": style}
    ax.add_patch(Rectangle((left, top), right - left, low - top, **shape))
    around = {"facecolor": color, "edgecolor": "none", "pad": size / 8, "alpha": 0.75}
    looks = {"color": "white", "size": size, "va": "bottom", "bbox": around}
    # A box at the upper edge has its text inside.
    place = max(top, ax.get_ylim()[1])
    looks["va"] = "top" if place - ax.get_ylim()[1] < 1 else "bottom"
    ax.text(max(left, -0.5), place, text, clip_on=True, parse_math=False, **looks)


def picture(
    image: Float[np.ndarray, "height width 3"],
) -> Float[np.ndarray, "height width 3"]:
    """Returns an image of a detector's input, from -2 to 2, as `imshow` takes it."""
    return np.clip(image / 4 + 0.5, 0, 1)


def _judged(
    one: Mapping[str, np.ndarray], names: Sequence[str], least_score: float
) -> list[tuple[np.ndarray, str, str]]:
    """Returns boxes, texts and looks of detections and missed objects."""
    shown = (one["found_labels"] >= 0) & (one["found_scores"] >= least_score)
    fields = (one[f"found_{name}"][shown] for name in Found._fields[1:])
    found = Found(np.zeros(shown.sum(), int), *fields)
    real = one["labels"] >= 0
    fields = (one[name][real] for name in ("boxes", "labels", "difficult"))
    truth = Truth(np.zeros(real.sum(), int), *fields)
    judged = detection_errors.errors(found, truth, len(names))
    missed = zip(truth.boxes[judged.missed], truth.labels[judged.missed], strict=True)
    drawn = [(box, names[label], "missed") for box, label in missed]
    rows = zip(*judged.found[1:], judged.kind, strict=True)
    for box, score, label, kind in rows:
        text = f"{names[label]} {100 * score:.0f}"
        if kind >= 0:
            text += f" ({KINDS[kind]})"
        look = "right" if kind == RIGHT else "wrong" if kind >= 0 else "ignored"
        drawn.append((box, text, look))
    return drawn


def _labelled(groups: Runs | Mapping[str, Runs]) -> Mapping[str, Runs]:
    return groups if isinstance(groups, Mapping) else {"": groups}


def _final(run: Run, metric: str) -> float:
    return (
        float(run.result["metrics"].get(metric, np.nan)) if not run.diverged else np.nan
    )


def _nothing(text: str) -> Figure:
    fig, ax = plt.subplots(figsize=(6, 2))
    ax.text(0.5, 0.5, text, ha="center")
    ax.axis("off")
    return fig
