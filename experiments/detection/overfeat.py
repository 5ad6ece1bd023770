r"""OverFeat: a classifier slid over an image at a fine stride and at several scales.

Sermanet et al., "OverFeat: integrated recognition, localization and detection using
convolutional networks", ICLR 2014, sections 3 and 4. A network is trained on windows of
images: which digit is in the middle and of the window's size, or none. Its fully
connected layers are convolutions, so that it slides over a larger image and shares what
the windows have in common. That happens every 12 pixels (coarse), or every 4 (fine),
with the last pooling done at each of its offsets, and on the image resized to several
scales. A class's score is its best probability of a scale, averaged over the scales.
Then the convolution layers are frozen, and a head on them is trained to give each
window's box by the squared error of its sides. The boxes of all places that agree with
the best place's are averaged, weighted by the probability of the class.

    python -m launch.sweep --experiment=detection.overfeat --sweep=seeds \
        --executor=vmap
    python -m launch.figures --experiment=detection.overfeat

Look for: the error of ILSVRC's localisation task, the share of images whose class is
wrong or whose box has an IoU below 0.5 with the true one, against the number of scales,
at both strides. The digits' sides vary by a factor of 2 and the windows show them at
sizes of a factor of 1.35, so at one scale many of them do not fit. As the paper's, the
errors fall with the number of scales. The finer stride helps at one scale, and from
two on does not: more places are also more chances for clutter. One network does it
all: nothing but how it is slid differs.

The scenes are drawn as those of `detection.localization`, whose network sees each as a
whole, at once; but the training windows here are cut from fresh ones without end. The
paper trains the classifier without a background and on one scale, and merges the boxes
greedily by a score of their distance and overlap; it gives five classes, each with a
box, and here it is one. Adam takes the place of SGD. `--preset=paper` is wider, on
larger images, and trains for longer.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dl_core.config import RunConfig, config, nested, static
from dl_core.data.batches import Data
from dl_core.data.digit_scenes import SceneBatches, SceneConfig, generate, read_digits
from dl_core.data.digit_windows import BACKGROUND, WindowConfig, cut
from dl_core.experiment import Stage
from dl_core.models.detection.overfeat import (
    COARSE,
    FINE,
    POOL,
    Head,
    Places,
    Scales,
    WindowClassifier,
    WindowNetwork,
    decide,
    slide,
    survey,
)
from dl_core.ops.boxes import iou
from dl_core.pictures import mean_and_range
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean, classification
from dl_core.train.optimizers import FallingAdam
from dl_core.train.state import TrainState

CLASSES = BACKGROUND + 1
"""The digits and, after them, the background."""


@config
class Dataset(SceneConfig):
    """The scenes, of one digit each."""

    evaluated: int = static(1_000, "Scenes to test on.", at_least=1)
    validated: int = static(200, "Scenes to validate on.", at_least=1)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(1_500, "Training steps of the classifier.", at_least=1)
    box_steps: int = static(600, "Training steps of the boxes.", at_least=1)
    batch_size: int = static(64, "Windows in a training batch.", at_least=1)
    eval_every: int = static(1_500, "Steps between evaluations.", at_least=1)
    model: WindowNetwork = nested(WindowNetwork)
    scales: Scales = nested(Scales)
    windows: WindowConfig = nested(WindowConfig)
    data: Dataset = nested(Dataset, height=48, width=48, largest=40.0, clutter=4)
    optimizer: FallingAdam = nested(
        FallingAdam, learning_rate=2e-3, beta1=0.9, falls=True
    )


PRESETS = {
    "smoke": {
        "steps": 6,
        "box_steps": 6,
        "batch_size": 4,
        "eval_every": 6,
        "log_every": 2,
        "checkpoint_every": 2,
        "model.width": 2,
        "model.hidden": 4,
        "scales.counts": (1, 3),
        "data.evaluated": 8,
        "data.validated": 8,
        "data.height": 24,
        "data.width": 32,
    },
    "paper": {
        "steps": 50_000,
        "box_steps": 20_000,
        "batch_size": 128,
        "eval_every": 10_000,
        "model.width": 64,
        "model.hidden": 1_024,
        "model.places": 5,
        "data.evaluated": 10_000,
        "data.validated": 2_000,
        "data.height": 96,
        "data.width": 96,
        "data.largest": 80.0,
        "data.smallest": 40.0,
        "data.clutter": 16,
        "windows.shortest": 38.0,
        "windows.longest": 52.0,
    },
}


def window_data(config: Config, data_dir: Any) -> Data:
    """Returns windows to train on without end, and others."""
    train, *held_out = (
        SceneBatches(read_digits(split, data_dir), to_windows, config.batch_size, count)
        for split, count in (("train", 1), ("validation", 10), ("test", 20))
    )
    return Data(train, dict(zip(("validation", "test"), held_out, strict=True)))


def scene_data(config: Config, data_dir: Any) -> Data:
    """Returns the windows to train on, whole scenes, and some of these to be shown."""
    digits = {split: read_digits(split, data_dir) for split in ("validation", "test")}
    counts = config.data.validated, config.data.evaluated
    size = scenes_at_once(config)
    held_out = {
        split: SceneBatches(digits[split], to_scenes, size, count // size)
        for split, count in zip(digits, counts, strict=True)
    }
    shown = draw_scenes(config.data, jax.random.key(0), digits["test"], _SHOWN)
    return Data(window_data(config, data_dir).train, held_out, jax.device_get(shown))


def scenes_at_once(config: Config) -> int:
    """Returns how many scenes an evaluation batch has: all batches are full."""
    return math.gcd(config.data.evaluated, config.data.validated, 100)


def draw_scenes(
    scene: SceneConfig, key: Any, digits: Any, count: int
) -> dict[str, Array]:
    """Returns scenes of one digit each, their numbers between 0 and 1."""
    drawn = generate(scene, key, digits, count)
    return {
        "image": drawn["image"].astype(jnp.float32) / 255,
        "box": drawn["boxes"][:, 0],
        "label": drawn["labels"][:, 0],
    }


def to_scenes(config: Config, digits: Any, key: Any) -> dict[str, Array]:
    """Returns a batch of whole scenes."""
    return draw_scenes(config.data, key, digits, scenes_at_once(config))


def to_windows(config: Config, digits: Any, key: Any) -> dict[str, Array]:
    """Returns a batch of windows, each of a scene of its own."""
    to_scenes, to_places = jax.random.split(key)
    return cut(
        draw_scenes(config.data, to_scenes, digits, config.batch_size),
        to_places,
        config.windows,
        side=config.model.window,
        scales=(config.scales.smallest, config.scales.largest),
        border=COARSE,
    )


def classifier(config: Config) -> WindowClassifier:
    """Returns the network of a window's class."""
    return WindowClassifier(config.model, CLASSES)


def init_classifier(config: Config, key: jax.Array) -> TrainState:
    """Returns the classifier before training."""
    side = config.model.window
    variables = classifier(config).init(key, jnp.zeros((1, side, side, 1)))
    return TrainState.create(variables, config.optimizer.make(config.steps))


def train_classifier(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss(params):
        logits = classifier(config).apply({"params": params}, batch["image"])[:, 0, 0]
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["label"]
        ).mean()

    return state.descend(loss, config.optimizer.make(config.steps))


def evaluate_classifier(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the loss and the accuracy on windows."""
    logits = classifier(config).apply({"params": state.params}, batch["image"])
    return classification(logits[:, 0, 0], batch["label"], batch["mask"])


def box_head(config: Config) -> Head:
    """Returns the network of a window's box; before training all boxes are alike."""
    return Head(config.model, 4, nn.initializers.zeros)


def init_boxes(config: Config, key: jax.Array, previous: TrainState) -> TrainState:
    """Returns the boxes' head before training, beside the classifier: frozen."""
    places, width = config.model.places, 4 * config.model.width
    pooled = jnp.zeros((1, places, places, width))
    variables = box_head(config).init(key, pooled)
    optimizer = config.optimizer.make(config.box_steps)
    return TrainState.create({**variables, "classifier": previous.params}, optimizer)


def look(
    config: Config,
    state: TrainState,
    images: Float[Array, "batch height width 1"],
    *,
    fine: bool = True,
    params: Any = None,
) -> tuple[Float[Array, "batch rows columns 11"], Float[Array, "batch rows columns 4"]]:
    """Returns the logits of each window, and its box in sides of the window.

    Args:
      config: of the experiment.
      state: the classifier, and the head's parameters.
      images: windows, or larger.
      fine: whether windows are 4 pixels apart, or 12.
      params: the head's, in place of the state's.
    """
    network = classifier(config)
    frozen = {"params": state.collections["classifier"]}
    head = {"params": state.params if params is None else params}
    features = network.apply(frozen, images, method="features")

    def both(pooled):
        logits = network.apply(frozen, pooled, method="classify")
        boxes = box_head(config).apply(head, pooled)
        return jnp.concatenate([logits, boxes], axis=-1)

    said = slide(both, features, fine=fine)
    middle = jnp.array([0.25, 0.25, 0.75, 0.75])  # What an untrained head says.
    return said[..., :CLASSES], middle + said[..., CLASSES:]


def train_boxes(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step of the head down the squared error on windows with a digit."""
    shows = batch["label"] != BACKGROUND

    def loss(params):
        _, boxes = look(config, state, batch["image"], fine=False, params=params)
        errors = jnp.sum((boxes[:, 0, 0] - batch["box"]) ** 2, axis=-1)
        return jnp.sum(errors * shows) / jnp.maximum(shows.sum(), 1)

    return state.descend(loss, config.optimizer.make(config.box_steps))


def survey_scenes(
    config: Config,
    state: TrainState,
    images: Float[Array, "batch height width 1"],
    scale: float,
) -> Places:
    """Returns what is said of each window of scenes at a scale, at the fine stride."""
    say = functools.partial(look, config, state)
    return survey(say, images, config.model.window, scale)


def ways(
    config: Config, state: TrainState, images: Float[Array, "batch height width 1"]
) -> dict[tuple[str, int], tuple[Array, Array, Array]]:
    """Returns what is found (`decide`) at each stride and with each number of scales.

    Every scale is gone over once, by the fine stride, which has the coarse places too.
    """
    scales = {count: config.scales.factors(count) for count in config.scales.counts}
    fine = {
        scale: survey_scenes(config, state, images, scale)
        for scale in sorted(set().union(*scales.values()))
    }
    coarse = {scale: places.thinned() for scale, places in fine.items()}
    return {
        (stride, count): decide([places[scale] for scale in scales[count]])
        for stride, places in {"coarse": coarse, "fine": fine}.items()
        for count in config.scales.counts
    }


def evaluate_scenes(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures how often the class is wrong, and the class or the box, each way."""
    metrics = {}
    found_by = ways(config, state, batch["image"])
    for (stride, count), (found, first, merged) in found_by.items():
        wrong = found != batch["label"]
        for key, values in {
            "class_error": wrong,
            "best_error": wrong | (iou(first, batch["box"]) < 0.5),
            "error": wrong | (iou(merged, batch["box"]) < 0.5),
        }.items():
            numbers = values.astype(jnp.float32)
            metrics[f"{stride}_{count}_{key}"] = Mean.of(numbers, batch["mask"])
    return metrics


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Returns scenes, what is found in them, and its probability at each window."""
    most = max(config.scales.counts)
    found, _, merged = ways(config, state, shown["image"])["fine", most]
    seen = {**shown, "found": found, "merged": merged}
    for number, scale in enumerate(config.scales.factors(_MAPS)):
        places = survey_scenes(config, state, shown["image"], scale)
        chosen = found[:, None, None, None]
        seen[f"map_{number}"] = jnp.take_along_axis(places.probabilities, chosen, -1)
        seen[f"windows_{number}"] = places.windows
    return seen


STAGES = (
    Stage(
        init_classifier,
        train_classifier,
        evaluate_classifier,
        window_data,
        name="classes",
    ),
    Stage(
        init_boxes,
        train_boxes,
        evaluate_scenes,
        scene_data,
        observe,
        name="boxes",
        steps=lambda config: config.box_steps,
    ),
)
MAIN_METRIC = "test/fine_1_error"
_SHOWN = 4
_MAPS = 3

SWEEPS = {"seeds": product(seed=range(5))}

_LOOKS = {
    "coarse": (f"every {COARSE} pixels", "C1"),
    "fine": (f"every {FINE} pixels", "C0"),
}


def counts_of(runs: Runs) -> tuple[int, ...]:
    """Returns the numbers of scales that were tried."""
    return tuple(runs[0].config["scales.counts"])


@figure(sweep="seeds")
def errors(runs: Runs) -> Figure:
    """Errors by the number of scales, at the coarse and at the fine stride."""
    counts = counts_of(runs)
    titles = {"error": "class or box wrong", "class_error": "class wrong"}
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)

    def draw(ax: plt.Axes, measure: str, style: str, **looks: Any) -> None:
        finals = [runs.final(f"test/{measure.format(count)}") for count in counts]
        values = 100 * np.stack(finals, axis=1)
        values = values[np.isfinite(values).all(1)]
        if len(values):
            mean_and_range(ax, range(len(counts)), values, style, **looks)

    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for stride, (label, color) in _LOOKS.items():
            draw(ax, f"{stride}_{{}}_{measure}", "o-", color=color, label=label)
            if measure == "error":
                looks = {"color": color, "label": f"{label}, best place alone"}
                draw(ax, f"{stride}_{{}}_best_error", ":", alpha=0.0, **looks)
        ax.set(xticks=range(len(counts)), xticklabels=counts)
        ax.set(xlabel="scales", title=title)
        ax.grid(alpha=0.3, axis="y")
    axes[0].set(ylabel="test error in %", ylim=(0, None))
    if axes[0].lines:
        axes[0].legend(title="windows")
    fig.suptitle("one network, slid in different ways: mean and range over seeds")
    return fig


@figure(sweep="seeds")
def maps(runs: Runs) -> Figure:
    """Test scenes, and beside them the probability of the digit found, everywhere."""
    scales = Scales(
        smallest=runs[0].config["scales.smallest"],
        largest=runs[0].config["scales.largest"],
    ).factors(_MAPS)
    fig, axes = plt.subplots(
        _SHOWN,
        _MAPS + 2,
        figsize=(1.8 * (_MAPS + 2), 1.7 * _SHOWN + 0.8),
        layout="constrained",
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    seen = next((run.last_artifacts() for run in runs if not run.diverged), {})
    if not seen:
        fig.suptitle("every run diverged")
        return fig
    middle = _MAPS // 2
    drawn = [("coarse", middle)] + [("fine", number) for number in range(_MAPS)]
    for number, line in enumerate(axes):
        image = seen["image"][number, ..., 0]
        height, width = image.shape
        line[0].imshow(image, cmap="gray", extent=(0, width, height, 0))
        outline(line[0], seen["box"][number], "w", "true box")
        outline(line[0], seen["merged"][number], "C1", "box found")
        found, right = seen["found"][number], seen["label"][number]
        line[0].set_ylabel(f"found: {found}", color="k" if found == right else "C3")
        for ax, (stride, scale) in zip(line[1:], drawn, strict=True):
            step = {"coarse": POOL, "fine": 1}[stride]
            values = seen[f"map_{scale}"][number, ::step, ::step, 0]
            looked = seen[f"windows_{scale}"]
            middles = (looked[..., :2] + looked[..., 2:]) / 2
            half = step * (middles[1, 1] - middles[0, 0]) / 2
            middles = middles[::step, ::step]
            (left, top), (right, bottom) = middles[0, 0] - half, middles[-1, -1] + half
            shown = ax.imshow(values, vmin=0, vmax=1, extent=(left, right, bottom, top))
            ax.set(xlim=(0, width), ylim=(height, 0), facecolor="0.8")
    for ax, (stride, scale) in zip(axes[0, 1:], drawn, strict=True):
        ax.set_title(f"{_LOOKS[stride][0]}, ×{scales[scale]:.2f}", fontsize=9)
    axes[0, 0].set_title("scene", fontsize=9)
    label = "probability of the digit found, at the middle of the window"
    fig.colorbar(shown, ax=axes[:, 1:], location="bottom", label=label, aspect=60)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside upper center", ncols=2, facecolor="lightgrey"
    )
    return fig


def outline(ax: plt.Axes, box: Any, color: str, label: str) -> None:
    """Draws a box."""
    x, y, right, bottom = box
    ax.add_patch(
        Rectangle((x, y), right - x, bottom - y, fill=False, ec=color, label=label)
    )


FIGURES = {"errors": errors, "maps": maps}


def summary(runs: Runs) -> str:
    """Returns the localisation error of both strides with few and with many scales."""
    counts = counts_of(runs)
    parts = []
    for stride, (label, _) in _LOOKS.items():
        few, many = (
            mean_and_spread(
                runs.final(f"test/{stride}_{count}_error"), scale=100, unit=" %"
            )
            for count in (counts[0], counts[-1])
        )
        parts.append(f"{few} and {many} with windows {label}")
    return (
        f"Test localisation error with {counts[0]} and with {counts[-1]} scales, "
        f"{len(runs)} seeds: {'; '.join(parts)}."
    )
