r"""Max, average, strided or no pooling: accuracy, and how far a digit may be moved.

Pooling is said to make a network's answer indifferent to small shifts and distortions
of its input. Here the same two convolutions of digits are followed by max pooling of
2×2 or average pooling, or have the stride 2 themselves and no pooling (as in
Springenberg, Dosovitskiy, Brox & Riedmiller, "Striving for simplicity: the all
convolutional net", 2015), or neither; a dense layer then reads all that is left. They
learn from digits as they are, and are tested on digits shifted, turned and scaled.
(Scherer, Müller & Behnke, "Evaluation of pooling operations in convolutional
architectures for object recognition", 2010, compare maximum and mean.)

    python -m launch.sweep --experiment=convolution.pooling \
        --sweep=kinds --executor=vmap
    python -m launch.figures --experiment=convolution.pooling

Two numbers for each size of a change: the accuracy, and how often the answer stays what
it was for the digit as it is, right or wrong. Shifts go right, down, left and up, turns
both ways, a quarter or half of the test set each; new pixels are interpolated
bilinearly without smoothing, and black outside.

Look for: max pooling keeps most of its accuracy under shifts and changes of scale, then
average pooling, and the stride least; under turns they hardly differ. Without pooling
the network does nearly as well as with the maximum, so pooling is not what it takes:
its dense layer has 16 times as many weights (126,698 parameters of the network in place
of 9,098), which learn each place by itself.

Neither paper has this experiment; `--preset=paper` is a wider network on all of MNIST
for longer. Other sets of 28×28 grey pixels will do too
(`--config.data.name=fashion_mnist`); the digits in the figures stay the same.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Batches, Data
from dl_core.data.digits import first_digits
from dl_core.data.named import named_batches
from dl_core.nn.conv import Conv
from dl_core.ops import augment
from dl_core.ops.pooling import avg_pool, max_pool
from dl_core.pictures import mean_and_range
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.state import TrainState

SIZES = {
    "shift": (0, 1, 2, 3, 4, 5, 6, 8),
    "angle": (0, 10, 20, 30, 45, 60, 75, 90),
    "scale": (0.5, 0.6, 0.75, 0.9, 1, 1.1, 1.25, 1.5),
}
"""By how many pixels, degrees, and times the test images are changed."""


@config
class Model:
    """Two convolutions, and what makes their outputs smaller."""

    pooling: Literal["max", "average", "strided", "none"] = static(
        "max", "What halves the sides after, or with, each convolution."
    )
    width: int = static(8, "Channels of the first; the second has twice.", at_least=1)


@config
class Dataset:
    """Which images."""

    name: str = static(
        "mnist_subset", "TFDS data set of images and labels, 28×28 and grey."
    )
    test: int = static(2_000, "Test images, each changed in every way.", at_least=1)


@config
class Optimizer:
    """Adam."""

    learning_rate: float = traced(3e-3, "Step size.", above=0)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(600, "Training steps.", at_least=1)
    batch_size: int = static(64, "Images in a training batch.", at_least=1)
    eval_every: int = static(600, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(600, "Steps between checkpoints.", at_least=1)
    model: Model = nested(Model)
    data: Dataset = nested(Dataset)
    optimizer: Optimizer = nested(Optimizer)


PRESETS = {
    "smoke": {
        "steps": 10,
        "batch_size": 8,
        "eval_every": 10,
        "checkpoint_every": 5,
        "model.width": 1,
        "data.test": 20,
    },
    "paper": {
        "steps": 20_000,
        "eval_every": 5_000,
        "checkpoint_every": 5_000,
        "model.width": 32,
        "data.name": "mnist",
        "data.test": 10_000,
    },
}


class Network(nn.Module):
    """Two convolutions of 3×3, each made smaller, and a dense layer."""

    model: Model

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 1"]
    ) -> Float[Array, "batch 10"]:
        """Returns the logits."""
        x, pooling = images, self.model.pooling
        for features in (self.model.width, 2 * self.model.width):
            stride = 2 if pooling == "strided" else 1
            x = nn.relu(Conv(features, 3, stride=stride)(x))
            if pooling == "max":
                x = max_pool(x, 2)
            elif pooling == "average":
                x = avg_pool(x, 2)
        return nn.Dense(10)(x.reshape(len(x), -1))


def moved(
    images: Float[Array, "batch height width 1"],
    shift: Float[Array, ""],
    angle: Float[Array, ""],
    scale: Float[Array, ""],
) -> Float[Array, "batch height width 1"]:
    """Returns images scaled and turned about their centre, then shifted.

    Images 0, 4, … are shifted right, the next down, left, up. The first two of four
    turn clockwise, the others the other way. Pixels are interpolated bilinearly, and
    those from outside are 0.

    Args:
      images: one channel.
      shift: in pixels.
      angle: in degrees.
      scale: of lengths; above 1 the images grow.
    """
    size = images.shape[1:3]
    way = jnp.arange(len(images)) % 4
    turns = -angle * jnp.where(way < 2, 1, -1)
    right = shift * jnp.array([1.0, 0.0, -1.0, 0.0])[way]
    down = shift * jnp.array([0.0, 1.0, 0.0, -1.0])[way]

    def move(image, turn, right, down):
        matrix = augment.compose(
            augment.scaling(scale, scale, size),
            augment.rotation(turn, size),
            augment.translation(right, down),
        )
        return augment.warp(image, matrix)

    return jax.vmap(move)(images, turns, right, down)


def all_moved(
    images: Float[Array, "batch height width 1"],
) -> dict[str, Float[Array, "sizes batch height width 1"]]:
    """Returns the images changed in each way by each of `SIZES`."""
    rest = {"shift": 0.0, "angle": 0.0, "scale": 1.0}
    changed = {}
    for name, sizes in SIZES.items():
        each = [jnp.full(len(sizes), value) for value in rest.values()]
        each[list(rest).index(name)] = jnp.array(sizes, jnp.float32)
        changed[name] = jax.vmap(moved, (None, 0, 0, 0))(images, *each)
    return changed


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; the learning rate may be traced."""
    return optax.adam(config.optimizer.learning_rate)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training images in batches, and the test images."""

    def batches(split: str, size: int) -> Batches:
        shapes = {"image": (28, 28, 1), "label": ()}
        return named_batches(config.data.name, split, data_dir, size, shapes, scaled)

    test = batches(f"test[:{config.data.test}]", min(100, config.data.test))
    return Data(batches("train", config.batch_size), {"test": test})


def scaled(
    config: Config, batch: dict[str, UInt8[Array, "batch ..."]], key: Any
) -> dict[str, Array]:
    """Turns bytes into numbers between 0 and 1."""
    return {**batch, "image": batch["image"].astype(jnp.float32) / 255}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    variables = Network(config.model).init(key, jnp.zeros((1, 28, 28, 1)))
    return TrainState.create(variables, make_optimizer(config))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss_fn(params):
        logits = Network(config.model).apply({"params": params}, batch["image"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return loss.mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(gradients, make_optimizer(config)), {"loss": loss}


def answers(
    config: Config, state: TrainState, images: Float[Array, "*batch 28 28 1"]
) -> Int[Array, "*batch"]:
    """Returns the most likely class of each image."""
    flat = images.reshape(-1, *images.shape[-3:])
    logits = Network(config.model).apply({"params": state.params}, flat)
    return logits.argmax(-1).reshape(images.shape[:-3])


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the accuracy, as it is and for each change; how often answers stay."""
    images, labels, mask = batch["image"], batch["label"], batch["mask"]

    def share(hits):
        return Mean.of(hits.astype(jnp.float32).T, mask)

    plain = answers(config, state, images)
    metrics = {"accuracy": share(plain == labels)}
    for name, changed in all_moved(images).items():
        found = answers(config, state, changed)
        metrics[f"accuracy_by_{name}"] = share(found == labels)
        metrics[f"same_by_{name}"] = share(found == plain)
    return metrics


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Returns ten digits changed in each way, and the answers to them."""
    seen = {}
    for name, images in all_moved(jnp.asarray(first_digits())).items():
        seen |= {name: images, f"{name}_answers": answers(config, state, images)}
    return seen


MAIN_METRIC = "test/accuracy"
SWEEPS = {
    "kinds": product(
        **{
            "model.pooling": ("max", "average", "strided", "none"),
            "seed": range(3),
        }
    ),
}

_LOOKS = {
    "max": ("max pooling", "C0"),
    "average": ("average pooling", "C1"),
    "strided": ("stride 2", "C2"),
    "none": ("no pooling", "C3"),
}
_AXES = {
    "shift": "shift, pixels",
    "angle": "turn, degrees",
    "scale": "scale, times",
}


@figure(sweep="kinds")
def invariance(runs: Runs) -> Figure:
    """Accuracy, and answers that stay, against the size of a shift, turn, scale."""
    fig, axes = plt.subplots(
        2, 3, figsize=(11, 6.6), layout="constrained", sharex="col", sharey="row"
    )
    for kind, group in runs.by("model.pooling").items():
        words, color = _LOOKS[kind]
        for column, (name, sizes) in zip(axes.T, SIZES.items(), strict=True):
            for ax, metric in zip(column, ("accuracy", "same"), strict=True):
                values = 100 * _finals(group, metric, name)
                values = values[np.isfinite(values).all(axis=1)]
                if not len(values):
                    continue
                mean_and_range(ax, sizes, values, ".-", color=color, label=words)
            column[1].set_xlabel(_AXES[name])
    axes[0, 0].set(ylabel="test accuracy, %", ylim=(0, 101))
    axes[1, 0].set(ylabel="answers that stay, %", ylim=(0, 101))
    lines, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside lower center", ncols=max(len(labels), 1))
    fig.suptitle(f"after {runs[0].config['steps']:,} steps: mean and range over seeds")
    return fig


def _finals(runs: Runs, metric: str, name: str) -> Float[np.ndarray, "runs sizes"]:
    """Returns a metric at the end for each size of a change; NaN where it diverged."""
    path, lost = f"test/{metric}_by_{name}", [np.nan] * len(SIZES[name])
    found = [lost if run.diverged else run.result["metrics"][path] for run in runs]
    return np.array(found, float)


@figure(sweep="kinds")
def examples(runs: Runs) -> Figure:
    """A digit changed in each way, and which networks (of the first seed) know it."""
    digit = 4
    firsts = {kind: group[0] for kind, group in runs.by("model.pooling").items()}
    seen = {
        kind: run.last_artifacts() for kind, run in firsts.items() if not run.diverged
    }
    columns = len(SIZES["shift"])
    fig, axes = plt.subplots(
        len(SIZES), columns, figsize=(1.4 * columns, 6.8), layout="constrained"
    )
    for row, (name, sizes) in zip(axes, SIZES.items(), strict=True):
        for number, (ax, size) in enumerate(zip(row, sizes, strict=True)):
            ax.set(xticks=[], yticks=[], xlabel=" ")  # Room for answers.
            ax.set_title(f"{size:g}", fontsize=9)
            for place, (kind, arrays) in enumerate(seen.items()):
                pixels = arrays[name][number, digit, ..., 0]
                ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)
                answer = arrays[f"{name}_answers"][number, digit]
                ax.text(
                    (2 * place + 1) / (2 * len(seen)),
                    -0.05,
                    f"{answer}",
                    color=_LOOKS[kind][1],
                    weight="bold" if answer == digit else "normal",
                    alpha=1 if answer == digit else 0.45,
                    ha="center",
                    va="top",
                    transform=ax.transAxes,
                )
        row[0].set_ylabel(_AXES[name])
    for kind in seen:
        words, color = _LOOKS[kind]
        axes[0, 0].plot([], [], "s", color=color, label=words)
    fig.legend(loc="outside lower center", ncols=4, title="answers (right ones bold)")
    config = runs[0].config
    fig.suptitle(f"after {config['steps']:,} steps, seed {config['seed']}", fontsize=10)
    return fig


FIGURES = {"invariance": invariance, "examples": examples}


def summary(runs: Runs) -> str:
    """Returns the accuracy as it is, shifted, turned and scaled, for each kind."""
    shown = {"shift": (2, "px"), "angle": (30, "°"), "scale": (0.75, "×")}
    parts = []
    for kind, group in runs.by("model.pooling").items():
        numbers = [group.final(MAIN_METRIC)]
        for name, (size, _) in shown.items():
            at = SIZES[name].index(size)
            numbers.append(_finals(group, "accuracy", name)[:, at])
        words = (mean_and_spread(n, scale=100, unit=" %") for n in numbers)
        parts.append(f"{_LOOKS[kind][0]} {', '.join(words)}")
    changes = ", ".join(
        f"{name} {size:g} {unit}" for name, (size, unit) in shown.items()
    )
    return (
        f"Test accuracy after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds, of digits as they are and with {changes}: "
        f"{'; '.join(parts)}."
    )
