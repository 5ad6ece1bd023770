"""What several figures draw alike: images, texts, curves, finals by seed."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.transforms
import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure

from dl_core.results import Runs


def mosaic(
    images: Float[np.ndarray, "n height width channels"], columns: int, gap: int = 1
) -> Float[np.ndarray, "rows columns 3"]:
    """Lays images of values from -1 to 1 out in rows, as `imshow` takes them.

    Args:
      images: grey (one channel) or coloured (three).
      columns: images in a row; the last row is filled up with white.
      gap: white pixels between images.

    Returns:
      One picture of values from 0 to 1.
    """
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    colours = np.clip((np.repeat(images, 3 // images.shape[-1], axis=-1) + 1) / 2, 0, 1)
    padded = np.ones((rows * columns, height + gap, width + gap, 3))
    padded[:count, :height, :width] = colours
    grid = padded.reshape(rows, columns, height + gap, width + gap, 3)
    picture = grid.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), -1, 3)
    return picture[: picture.shape[0] - gap, : picture.shape[1] - gap]


def table_of_mosaics(
    rows: Mapping[str, Sequence[tuple[str, np.ndarray | None]]], columns: int
) -> Figure:
    """Draws a mosaic in each cell of a table.

    Args:
      rows: label of a row -> its cells: a title, which the first row shows, and images
        as `mosaic` takes them, or None for a run that diverged.
      columns: images in a row of a mosaic.
    """
    width = max(len(row) for row in rows.values())
    fig, axes = plt.subplots(
        len(rows),
        width,
        figsize=(1.9 * width, 1.15 * len(rows) + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for number, (label, row) in enumerate(rows.items()):
        line = axes[number]
        line[0].set_ylabel(label, fontsize=8)
        for ax in line:
            ax.set(xticks=[], yticks=[])
        for ax, (title, images) in zip(line, row, strict=False):
            ax.set_title(title if number == 0 else "", fontsize=9)
            if images is None:
                ax.text(0.5, 0.5, "diverged", ha="center", transform=ax.transAxes)
            else:
                ax.imshow(mosaic(images, columns))
    return fig


def texts(
    columns: Sequence[tuple[str, str, str]],
    *,
    width: int = 34,
    lines: int = 26,
) -> Figure:
    """Shows texts side by side, as they are written by machine.

    Args:
      columns: of each text its title, the title's colour, and the text.
      width: letters of a line.
      lines: lines that are shown.
    """
    fig, axes = plt.subplots(
        1,
        len(columns),
        figsize=(3 * len(columns), 3.8),
        layout="constrained",
        squeeze=False,
    )
    style = {"family": "monospace", "size": 7.5, "parse_math": False, "va": "top"}
    for ax, (title, color, text) in zip(axes[0], columns, strict=True):
        parts = [
            part
            for line in text.splitlines()
            for part in textwrap.wrap(line, width, break_on_hyphens=False) or [""]
        ]
        ax.text(0, 1, "\n".join(parts[:lines]), **style)
        ax.set_title(title, color=color, loc="left")
        ax.axis("off")
    return fig


def table_of_texts(
    rows: Mapping[str, Sequence[str]], columns: Sequence[str], title: str
) -> Figure:
    """Draws a table of texts of a line.

    Args:
      rows: label of a row -> its cells.
      columns: the heads of the columns.
      title: of the figure.
    """
    fig, ax = plt.subplots(figsize=(11, 1.2 + 0.3 * len(rows)), layout="constrained")
    ax.axis("off")
    table = ax.table(
        list(rows.values()),
        rowLabels=list(rows),
        colLabels=columns,
        cellLoc="left",
        loc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.4)
    ax.set_title(title)
    return fig


def principal_plane(
    ax: plt.Axes, groups: Sequence[Mapping[str, Float[np.ndarray, " dimension"]]]
) -> float:
    """Draws named vectors in the plane of their two principal components.

    Args:
      ax: where.
      groups: the vectors by name; each group has a colour of its own.

    Returns:
      The share of the variance that the plane has; NaN, and nothing is drawn, where
      fewer than three vectors are given, which span none.
    """
    vectors = np.array([vector for group in groups for vector in group.values()])
    if len(vectors) < 3:
        return float("nan")
    left, scale, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    points = iter(left[:, :2] * scale[:2])
    for number, group in enumerate(groups):
        for name, point in zip(group, points, strict=False):
            ax.plot(*point, ".", color=f"C{number}", ms=3)
            looks = {"color": f"C{number}", "fontsize": 8}
            ax.annotate(name, point, (0, 0), textcoords="offset points", **looks)
    ax.set(xlabel="first component", ylabel="second component")
    ax.margins(0.12)
    _untangle(ax)
    return float((scale[:2] ** 2).sum() / (scale**2).sum())


def _untangle(ax: plt.Axes) -> None:
    """Moves the labels of points to where they hide no other, if there is such a place.

    A label is beside its point, above or below it.
    """
    sides = [(4, "left"), (-4, "right"), (0, "center")]
    places = [(x, y, align) for y in (-3, 5, -11, 13, -19) for x, align in sides]
    ax.figure.draw_without_rendering()
    taken = [
        matplotlib.transforms.Bbox.from_bounds(x - 2, y - 2, 4, 4)
        for line in ax.lines
        for x, y in ax.transData.transform(line.get_xydata())
    ]
    for text in ax.texts:
        boxes = []
        for x, y, align in places:
            text.set(position=(x, y), ha=align)
            boxes.append(text.get_window_extent())
        hidden = [sum(box.overlaps(other) for other in taken) for box in boxes]
        best = int(np.argmin(hidden))
        x, y, align = places[best]
        text.set(position=(x, y), ha=align)
        taken.append(boxes[best])


def mean_and_range(
    ax: plt.Axes,
    x: Sequence[float] | Shaped[np.ndarray, " points"],
    values: Float[np.ndarray, "runs points"],
    style: str = "-",
    *,
    color: str,
    alpha: float = 0.2,
    **looks: Any,
) -> None:
    """Draws the mean over runs as a line, and the range of the runs as a band.

    Args:
      ax: where.
      x: the places, such as steps.
      values: a row a run, as of `Runs.curves`; there may be no places.
      style: of the line.
      color: of both.
      alpha: opacity of the band.
      **looks: of the line, such as its label.
    """
    ax.plot(x, values.mean(0), style, color=color, **looks)
    ax.fill_between(x, values.min(0), values.max(0), color=color, alpha=alpha, lw=0)


def seed_points(
    ax: plt.Axes, at: float, values: Float[np.ndarray, " seeds"], color: str, label: str
) -> None:
    """Draws a point for each seed above a place, a bar at their mean.

    Args:
      ax: where.
      at: the place.
      values: NaN for a run that diverged; how many did is written above.
      color: of all of it.
      label: of the bar, in a legend.
    """
    finite = values[np.isfinite(values)]
    ax.plot([at] * len(finite), finite, "o", ms=3.5, color=color, alpha=0.6)
    mean = finite.mean() if len(finite) else np.nan
    ax.plot([at], [mean], "_", ms=14, mew=2.5, color=color, label=label)
    if lost := len(values) - len(finite):
        place = ax.get_xaxis_transform()
        text = {"color": color, "ha": "center", "va": "top", "fontsize": 7}
        ax.text(at, 0.99, f"{lost} div.", transform=place, **text)


def finals(
    runs: Runs, field: str, label: str, measures: Mapping[str, tuple[str, float, str]]
) -> Figure:
    """Draws what runs end with against a field, a plot for each measure.

    Args:
      runs: the runs.
      field: the dotted path; its values lie evenly, in the order of the sweep.
      label: of the field.
      measures: label -> metric, what multiplies it, and colour.
    """
    fig, axes = plt.subplots(
        1,
        len(measures),
        figsize=(4 * len(measures), 3.6),
        layout="constrained",
        squeeze=False,
    )
    groups = runs.by(field)
    for ax, (name, measure) in zip(axes[0], measures.items(), strict=True):
        metric, scale, color = measure
        for place, group in enumerate(groups.values()):
            seed_points(ax, place, scale * group.final(metric), color, "mean")
        ax.set(xticks=range(len(groups)), xticklabels=list(groups))
        ax.set(xlabel=label, ylabel=name)
        ax.grid(alpha=0.3, axis="y")
    fig.suptitle("a point a seed, a bar their mean")
    return fig
