r"""Localising one object: a box regressed from the frozen features of a classifier.

Sermanet et al., "OverFeat: integrated recognition, localization and detection using
convolutional networks", ICLR 2014, section 4. First a network is trained to classify
images of one object each. Then its convolution layers are frozen, and a second head
after them is trained to give the object's box, by the squared error of its sides. One
head has one box for all classes (single-class regression), another has a last layer
with a box for each class, of which that of the true class is trained and that of the
predicted class is used (per-class regression). Both are trained in the same run on the
same frozen features; their losses share no parameters.

    python -m launch.sweep --experiment=detection.localization --sweep=examples \
        --executor=vmap
    python -m launch.figures --experiment=detection.localization

Look for: the error of ILSVRC's localisation task, the share of images whose class is
wrong or whose box has an IoU below 0.5 with the true one, against the number of
training images, for both heads. The box of a class learns from a tenth of the images
alone: with 2,000 it is wrong in a half of the test images, where one box for all is in
a third; with 500 neither is good, and with 8,000 they are close. The dashed line is the
share of wrong classes, below which no head comes.

The images are digits of MNIST in clutter instead of ImageNet. The paper has one window
slide over the image at several scales and merges the boxes; here the network sees the
whole image once, and one class and one box are given instead of five
(`detection.overfeat` slides). Adam takes the place of SGD. `--preset=paper` is wider,
on larger images, and trains for longer.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dl_core.config import RunConfig, config, nested, static
from dl_core.data.batches import Data, InMemory
from dl_core.data.digit_scenes import SceneConfig, generate, read_digits
from dl_core.experiment import Stage
from dl_core.models.detection.localizer import CLASSES, Classifier, Network, Regressor
from dl_core.ops.boxes import iou
from dl_core.pictures import seed_points
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean, classification
from dl_core.train.optimizers import FallingAdam
from dl_core.train.state import TrainState


@config
class Dataset(SceneConfig):
    """The scenes: of one digit each, drawn once; the same in every run."""

    examples: int = static(8_000, "Scenes to train on.", at_least=1)
    evaluated: int = static(1_000, "Scenes to validate, and to test on.", at_least=1)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(600, "Training steps of the classifier.", at_least=1)
    box_steps: int = static(1_000, "Training steps of the boxes.", at_least=1)
    batch_size: int = static(32, "Examples in a training batch.", at_least=1)
    eval_every: int = static(500, "Steps between evaluations.", at_least=1)
    model: Network = nested(Network)
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
        "model.hidden": 8,
        "data.examples": 8,
        "data.evaluated": 8,
        "data.height": 24,
        "data.width": 32,
    },
    "paper": {
        "steps": 20_000,
        "box_steps": 20_000,
        "batch_size": 128,
        "eval_every": 2_000,
        "model.width": 64,
        "model.depth": 4,
        "model.hidden": 1_024,
        "data.examples": 100_000,
        "data.evaluated": 10_000,
        "data.height": 96,
        "data.width": 96,
        "data.largest": 80.0,
        "data.clutter": 16,
    },
}


HEADS = {"single": 1, "per_class": CLASSES}
"""Boxes that each of the two heads gives."""


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training scenes in batches, the others, and some to be shown."""
    chosen = config.data
    count = {"train": chosen.examples} | dict.fromkeys(_HELD_OUT, chosen.evaluated)
    fields = {split: scenes(split, n, chosen, data_dir) for split, n in count.items()}
    train = InMemory(fields["train"], config.batch_size, to_numbers)
    held_out = {
        split: InMemory(fields[split], min(chosen.evaluated, 250), to_numbers)
        for split in _HELD_OUT
    }
    shown = {name: x[:_SHOWN] for name, x in fields["test"].items()}
    return Data(train, held_out, shown)


@functools.lru_cache(maxsize=6)
def scenes(
    split: str, count: int, scene: SceneConfig, data_dir: Any
) -> dict[str, Shaped[np.ndarray, "count ..."]]:
    """Returns scenes: the first ones are the same, however many there are."""
    digits = read_digits(split, data_dir)
    draw = jax.jit(lambda key: generate(scene, key, digits, _DRAWN))
    keys = jax.random.split(jax.random.key(sum(split.encode())), -(-count // _DRAWN))
    parts = [jax.device_get(draw(key)) for key in keys]
    drawn = {
        name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]
    }
    return {
        "image": drawn["image"],
        "box": drawn["boxes"][:, 0],
        "label": drawn["labels"][:, 0],
    }


def sides(config: Config) -> Float[Array, " 4"]:
    """Returns what the sides of boxes are measured in: the image's width and height."""
    return jnp.array([config.data.width, config.data.height] * 2, jnp.float32)


def to_numbers(config: Config, batch: dict[str, Array], key: Any) -> dict[str, Array]:
    """Turns images of bytes into numbers between 0 and 1, and boxes as well."""
    images = batch["image"].astype(jnp.float32) / 255
    return {**batch, "image": images, "box": batch["box"] / sides(config)}


def init_classifier(config: Config, key: jax.Array) -> TrainState:
    """Returns the classifier before training."""
    images = jnp.zeros((1, config.data.height, config.data.width, 1))
    variables = Classifier(config.model).init(key, images)
    return TrainState.create(variables, config.optimizer.make(config.steps))


def train_classifier(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss(params):
        logits = Classifier(config.model).apply({"params": params}, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["label"]
        ).mean()

    return state.descend(loss, config.optimizer.make(config.steps))


def evaluate_classifier(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the loss and the accuracy."""
    logits = Classifier(config.model).apply({"params": state.params}, batch["image"])
    return classification(logits, batch["label"], batch["mask"])


def init_boxes(config: Config, key: jax.Array, previous: TrainState) -> TrainState:
    """Returns both heads before training, beside the classifier, which is frozen."""
    frozen = {"classifier": previous.params}
    images = jnp.zeros((1, config.data.height, config.data.width, 1))
    features, _ = look(config, frozen, images)
    heads = {
        name: Regressor(config.model.hidden, boxes).init(key, features)["params"]
        for name, boxes in HEADS.items()
    }
    optimizer = config.optimizer.make(config.box_steps)
    return TrainState.create({"params": heads, **frozen}, optimizer)


def look(
    config: Config, collections: Any, images: Float[Array, "batch height width 1"]
) -> tuple[Float[Array, "batch features"], Float[Array, "batch 10"]]:
    """Returns the frozen classifier's features and logits."""
    model, variables = Classifier(config.model), {"params": collections["classifier"]}
    features = model.apply(variables, images, method="features")
    return features, model.apply(variables, features, method="classify")


def boxes_of(
    config: Config,
    params: Any,
    name: str,
    features: Float[Array, "batch features"],
    labels: Int[Array, " batch"],
) -> Float[Array, "batch 4"]:
    """Returns the boxes of a head: those of the given classes, where it has several."""
    head = Regressor(config.model.hidden, HEADS[name])
    boxes = head.apply({"params": params[name]}, features)
    chosen = jnp.minimum(labels, HEADS[name] - 1)
    return jnp.take_along_axis(boxes, chosen[:, None, None], axis=1)[:, 0]


def train_boxes(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step of both heads, each down its squared error."""
    features, _ = look(config, state.collections, batch["image"])

    def loss(params):
        errors = [
            boxes_of(config, params, name, features, batch["label"]) - batch["box"]
            for name in HEADS
        ]
        return sum((error**2).sum(-1).mean() for error in errors)

    return state.descend(loss, config.optimizer.make(config.box_steps))


def evaluate_boxes(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures, of each head, how often the box is wrong, and the box or the class."""
    features, logits = look(config, state.collections, batch["image"])
    found = logits.argmax(-1)
    wrong = found != batch["label"]
    metrics = {"class_error": Mean.of(wrong.astype(jnp.float32), batch["mask"])}
    for name in HEADS:
        boxes = boxes_of(config, state.params, name, features, found)
        overlap = iou(boxes, batch["box"])
        missed = overlap < 0.5
        for key, values in {
            "error": missed | wrong,
            "box_error": missed,
            "iou": overlap,
        }.items():
            numbers = values.astype(jnp.float32)
            metrics[f"{name}_{key}"] = Mean.of(numbers, batch["mask"])
    return metrics


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Returns some test images, with the true class and box and those found."""
    batch = to_numbers(config, shown, key)
    features, logits = look(config, state.collections, batch["image"])
    found = logits.argmax(-1)
    boxes = {
        name: sides(config) * boxes_of(config, state.params, name, features, found)
        for name in HEADS
    }
    return {**shown, "found": found, **boxes}


STAGES = (
    Stage(init_classifier, train_classifier, evaluate_classifier, data, name="classes"),
    Stage(
        init_boxes,
        train_boxes,
        evaluate_boxes,
        data,
        observe,
        name="boxes",
        steps=lambda config: config.box_steps,
    ),
)
MAIN_METRIC = "test/single_error"
_SHOWN = 8
_HELD_OUT = ("validation", "test")
_DRAWN = 500
_EXAMPLES = "data.examples"

SWEEPS = {
    "examples": product(**{_EXAMPLES: (500, 2_000, 8_000), "seed": range(5)}),
}

_LOOKS = {"single": ("one box for all classes", "C0"), "per_class": ("per class", "C1")}


@figure(sweep="examples")
def errors(runs: Runs) -> Figure:
    """Localisation error, and that of boxes alone, by the number of training images."""
    groups = runs.by(_EXAMPLES)
    titles = {"error": "class or box wrong", "box_error": "box wrong (IoU < 0.5)"}
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for place, group in enumerate(groups.values()):
            for shift, (name, (label, color)) in zip(
                (-0.1, 0.1), _LOOKS.items(), strict=True
            ):
                values = 100 * group.final(f"test/{name}_{measure}")
                seed_points(ax, place + shift, values, color, label)
        ax.set(xticks=range(len(groups)), xticklabels=[f"{n:,}" for n in groups])
        ax.set(xlabel="training images", title=title, xlim=(-0.5, len(groups) - 0.5))
        ax.grid(alpha=0.3, axis="y")
    for place, group in enumerate(groups.values()):
        lower = 100 * group.final("test/class_error")
        mean = lower[np.isfinite(lower)].mean() if np.isfinite(lower).any() else np.nan
        axes[0].plot(
            [place - 0.3, place + 0.3], [mean] * 2, "k--", lw=1, label="class wrong"
        )
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    fig.legend(unique.values(), unique, loc="outside lower center", ncols=3)
    axes[0].set(ylabel="test error in %", ylim=(0, None))
    fig.suptitle("a point a seed, a bar their mean")
    return fig


@figure(sweep="examples")
def pictures(runs: Runs) -> Figure:
    """The first test images with the true box and those of both heads."""
    groups = runs.by(_EXAMPLES)
    fig, axes = plt.subplots(
        len(groups),
        _SHOWN,
        figsize=(1.5 * _SHOWN, 1.75 * len(groups) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for line, (examples, group) in zip(axes, groups.items(), strict=True):
        line[0].set_ylabel(f"{examples:,} images")
        seen = group[0].last_artifacts()
        for number, ax in enumerate(line):
            ax.set(xticks=[], yticks=[])
            if not seen:
                ax.text(0.5, 0.5, "diverged", ha="center", transform=ax.transAxes)
                continue
            image = seen["image"][number, ..., 0]
            height, width = image.shape
            ax.imshow(image, cmap="gray", extent=(0, width, height, 0))
            outline(ax, seen["box"][number], "w", "true box")
            for name, (label, color) in _LOOKS.items():
                outline(ax, seen[name][number], color, label)
            right = seen["found"][number] == seen["label"][number]
            ax.set_title(
                f"{seen['found'][number]}", color="k" if right else "C3", fontsize=9
            )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside lower center", ncols=3, facecolor="lightgrey"
    )
    fig.suptitle("the class found, red where it is wrong, and boxes (first seed)")
    return fig


def outline(ax: plt.Axes, box: Any, color: str, label: str) -> None:
    """Draws a box."""
    x, y, right, bottom = box
    ax.add_patch(
        Rectangle((x, y), right - x, bottom - y, fill=False, ec=color, label=label)
    )


FIGURES = {"errors": errors, "pictures": pictures}


def summary(runs: Runs) -> str:
    """Returns the localisation error of both heads at each number of images."""
    parts = []
    for examples, group in runs.by(_EXAMPLES).items():
        single, per_class = (
            mean_and_spread(group.final(f"test/{name}_error"), scale=100, unit=" %")
            for name in HEADS
        )
        parts.append(f"{single} and {per_class} with {examples:,} images")
    seeds = len(runs.values("seed"))
    return (
        "Test localisation error of one box for all classes and of a box for each, "
        f"{seeds} seeds: {'; '.join(parts)}."
    )
