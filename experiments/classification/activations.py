r"""Seven activations: their curves, the units they close, how fast a network learns.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural
networks", NIPS 2012, figure 1: a four-layer convolutional network reaches 25 % training
error on CIFAR-10 six times faster with ReLU than with tanh, without regularisation, the
learning rate of each chosen "to make training as fast as possible". So here: the rates
are swept, and each activation is shown at the one that is fastest on the training data.

    python -m launch.sweep --experiment=classification.activations \
        --sweep=rates --executor=vmap
    python -m launch.figures --experiment=classification.activations

The paper gives neither the layers, the batch, the momentum, the initial weights nor the
rates of that network. Here it has three convolutions with stride 2 and a linear layer,
the batch and momentum of the paper's large network (section 5), and for every
activation weights of variance 1 / fan-in. `--preset=paper` is all of CIFAR-10, and
wider layers. The default is digits, where 25 % takes a fraction of an epoch; hence 5 %
beside it.

A unit is a channel of a convolution. It is *closed* at a place of an image where its
derivative is smaller than 0.005: ReLU below 0, sigmoid beyond ±5.3, tanh beyond ±3.3,
ELU and softplus below −5.3, GELU below −3.3 and in a sliver at its minimum, leaky ReLU
(of slope 0.01) nowhere. It is *dead* if it is closed everywhere in every test image.

Look for: on digits the claim does not hold. tanh and ELU reach 25 % first, tanh at a
rate at which it then saturates and stays; to 5 % ReLU is ahead of tanh by little more
than the spread, and GELU of both. The sigmoid lies at chance for two epochs, where it
leaves it at all. ReLU is closed at most places and learns all the same; at the fastest
rates hardly a unit is dead, at 0.3 a large part is, but none with leaky ReLU or tanh.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Batches, Data
from dl_core.data.named import named_batches
from dl_core.nn.conv import Conv
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.state import TrainState

Activation = Literal["sigmoid", "tanh", "softplus", "relu", "leaky_relu", "elu", "gelu"]

ACTIVATIONS = {
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "softplus": nn.softplus,
    "relu": nn.relu,
    "leaky_relu": functools.partial(nn.leaky_relu, negative_slope=0.01),
    "elu": nn.elu,
    "gelu": functools.partial(nn.gelu, approximate=False),  # With erf.
}
CLOSED = 0.005
"""A unit is closed where its derivative is smaller than this."""
THRESHOLDS = (25, 5)
"""Training errors, in per cent, to which the epochs are counted."""


@config
class Model:
    """Three convolutions and a linear layer."""

    activation: Activation = static("relu", "What follows each convolution.")
    width: int = static(16, "Channels of the first layer; then twice that.", at_least=1)
    kernel_size: int = static(3, "Side of the windows.", at_least=1)


@config
class Dataset:
    """Which images."""

    name: str = static("mnist_subset", "TFDS data set of images in ten classes.")
    examples: int = static(12_000, "Training images: an epoch.", at_least=1)
    side: int = static(28, "Height and width of the images.", at_least=1)
    channels: int = static(1, "Channels of the images.", at_least=1)


@config
class Optimizer:
    """Stochastic gradient descent with momentum."""

    learning_rate: float = traced(0.03, "Step size.", above=0)
    momentum: float = traced(0.9, "Decay of the velocity.", at_least=0, below=1)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(300, "Training steps.", at_least=1)
    batch_size: int = static(128, "Examples in a training batch.", at_least=1)
    log_every: int = static(5, "Steps between rows of train metrics.", at_least=1)
    eval_every: int = static(30, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(300, "Steps between checkpoints.", at_least=1)
    model: Model = nested(Model)
    data: Dataset = nested(Dataset)
    optimizer: Optimizer = nested(Optimizer)


PRESETS = {
    "smoke": {"steps": 12, "eval_every": 6, "log_every": 3, "checkpoint_every": 6}
    | {"batch_size": 8, "model.width": 2},
    "paper": {"steps": 15_640, "eval_every": 391, "checkpoint_every": 3_910}
    | {"model.width": 32, "model.kernel_size": 5, "data.name": "cifar10"}
    | {"data.examples": 50_000, "data.side": 32, "data.channels": 3},  # 40 epochs.
}


class Network(nn.Module):
    """The convolutional network: four layers with weights."""

    model: Model

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch 10"], dict[str, Array]]:
        """Returns the logits, and what each layer's activations receive, by name."""
        x, endpoints = images, {}
        for layer, scale in enumerate((1, 2, 2)):
            features = scale * self.model.width
            x = Conv(features, self.model.kernel_size, stride=2)(x)
            endpoints[f"activation_input_{layer}"] = x
            x = ACTIVATIONS[self.model.activation](x)
        return nn.Dense(10)(x.reshape(len(x), -1)), endpoints


def derivative(
    activation: Activation, x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns the slope of an activation at each number."""
    return jax.jvp(ACTIVATIONS[activation], (x,), (jnp.ones_like(x),))[1]


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; its numbers may be traced."""
    return optax.sgd(config.optimizer.learning_rate, config.optimizer.momentum)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training images in batches, and the test images."""
    side, channels = config.data.side, config.data.channels
    shapes = {"image": (side, side, channels), "label": ()}

    def batches(split: str, size: int) -> Batches:
        name = config.data.name
        return named_batches(name, split, data_dir, size, shapes, standardise)

    train = batches(f"train[:{config.data.examples}]", config.batch_size)
    return Data(train, {"test": batches("test", 500)})


def standardise(
    config: Config, batch: dict[str, Shaped[Array, "batch ..."]], key: Any
) -> dict[str, Array]:
    """Gives the numbers of each image mean 0 and variance 1."""
    images = batch["image"].astype(jnp.float32)
    images = nn.standardize(images, axis=(1, 2, 3), epsilon=1e-5)
    return {"image": images, "label": batch["label"]}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the state before training, with no threshold reached."""
    images = jnp.zeros((1, config.data.side, config.data.side, config.data.channels))
    variables = Network(config.model).init(key, images)
    progress = {
        "errors": jnp.ones(10),
        "epochs": jnp.zeros(len(THRESHOLDS)),
        "reached": jnp.zeros(len(THRESHOLDS), bool),
    }
    return TrainState.create(
        {**variables, "progress": progress}, make_optimizer(config)
    )


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy.

    `error` is that of the last ten batches, each before its own update; `epochs_to_P`
    counts the epochs until it is P %, and goes on counting while `reached_P` is 0.
    """

    def loss_fn(params):
        logits, _ = Network(config.model).apply({"params": params}, batch["image"])
        labels = batch["label"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss.mean(), (logits.argmax(-1) != labels).mean()

    (loss, error), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    progress = advance(
        state.collections["progress"],
        error,
        (state.step + 1) * config.batch_size / config.data.examples,
    )
    state = state.apply_gradients(
        gradients, make_optimizer(config), {"progress": progress}
    )
    metrics = {"loss": loss, "error": progress["errors"].mean()}
    for i, percent in enumerate(THRESHOLDS):
        metrics[f"epochs_to_{percent}"] = progress["epochs"][i]
        metrics[f"reached_{percent}"] = progress["reached"][i].astype(jnp.float32)
    return state, metrics


def advance(
    progress: dict[str, Array], error: Float[Array, ""], epochs: Float[Array, ""]
) -> dict[str, Array]:
    """Returns the progress with one more batch's error, after so many epochs."""
    errors = jnp.append(progress["errors"][1:], error)
    now = errors.mean() <= jnp.array(THRESHOLDS) / 100
    return {
        "errors": errors,
        "epochs": jnp.where(progress["reached"], progress["epochs"], epochs),
        "reached": progress["reached"] | now,
    }


@struct.dataclass
class ShareAlways(Mean):
    """The share of units for which something holds in every example."""

    def compute(self) -> float:
        """Returns the share."""
        return float((super().compute() == 1).mean())


def eval_step(config: Config, state: TrainState, batch: dict[str, Array]) -> dict:
    """Measures the accuracy, the closed places and the dead units (see above)."""
    logits, endpoints = Network(config.model).apply(
        {"params": state.params}, batch["image"]
    )
    labels, mask = batch["label"], batch["mask"]
    closed = [
        (jnp.abs(derivative(config.model.activation, x)) < CLOSED).astype(jnp.float32)
        for x in endpoints.values()
    ]
    share = jnp.concatenate([c.mean((1, 2)) for c in closed], axis=-1)
    always = jnp.concatenate([c.min((1, 2)) for c in closed], axis=-1)
    return {
        "accuracy": Mean.of((logits.argmax(-1) == labels).astype(jnp.float32), mask),
        "closed": Mean.of(share.mean(-1), mask),
        "dead": ShareAlways.of(always, mask),
    }


MAIN_METRIC = "train/error"
_ACTIVATION, _RATE = "model.activation", "optimizer.learning_rate"
_LARGE = 0.3
"""A rate of the sweep, several times the fastest of most activations."""

SWEEPS = {
    "rates": product(
        **{
            _ACTIVATION: tuple(ACTIVATIONS),
            _RATE: (0.01, 0.03, 0.1, 0.3, 1.0),
            "seed": range(3),
        }
    ),
}

_NAMES = {name: name for name in ("sigmoid", "tanh", "softplus")}
_NAMES |= {"relu": "ReLU", "leaky_relu": "leaky ReLU", "elu": "ELU", "gelu": "GELU"}
_COLORS = {name: f"C{i}" for i, name in enumerate(ACTIVATIONS)}


def epochs_to(runs: Runs, percent: int) -> Float[np.ndarray, " runs"]:
    """Returns each run's epochs to a training error; infinite if it is not reached."""
    reached = runs.final(f"train/reached_{percent}") == 1
    return np.where(reached, runs.final(f"train/epochs_to_{percent}"), np.inf)


def fastest(runs: Runs, *percents: int) -> Runs:
    """Returns the runs at the learning rate of fewest epochs to a training error.

    A rate at which more seeds get there comes before all at which fewer do. Where rates
    are alike in this, the next of `percents` tells.
    """

    def rank(group: Runs) -> list[float]:
        return [np.minimum(epochs_to(group, p), 1e9).mean() for p in percents]

    return min(runs.by(_RATE).values(), key=rank)


@figure(sweep="rates")
def curves(runs: Runs) -> Figure:
    """Each activation and its derivative; shaded where it is closed."""
    fig, axes = plt.subplots(1, 7, figsize=(15, 2.9), layout="constrained", sharey=True)
    x = jnp.linspace(-7, 7, 1_401)
    for ax, (name, activation) in zip(axes, ACTIVATIONS.items(), strict=True):
        slope = derivative(name, x)
        closed = np.abs(slope) < CLOSED
        ax.axhline(0, color="grey", lw=0.5)
        ax.fill_between(x, -2, 3, where=closed, color="grey", alpha=0.25, lw=0)
        ax.plot(x, activation(x), color=_COLORS[name], label="f(x)")
        ax.plot(x, slope, "--", color=_COLORS[name], label="f′(x)")
        ax.set(title=_NAMES[name], ylim=(-1.3, 2.3), xlim=(-7, 7), xlabel="x")
        ax.legend(loc="upper left", fontsize=8)
    return fig


def _plot(ax: Axes, x: np.ndarray, y: np.ndarray, name: str, more: str = "") -> None:
    """Draws the mean over runs of an activation's curve, and their range."""
    ax.plot(x, y.mean(0), color=_COLORS[name], label=_NAMES[name] + more)
    ax.fill_between(x, y.min(0), y.max(0), color=_COLORS[name], alpha=0.15, lw=0)


@figure(sweep="rates")
def training_speed(runs: Runs) -> Figure:
    """Training error over epochs at the fastest rates, and the epochs at all rates."""
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    epoch = runs[0].config["data.examples"] / runs[0].config["batch_size"]
    last = runs[0].config["steps"] / epoch
    for name, group in runs.by(_ACTIVATION).items():
        chosen = fastest(group, *THRESHOLDS[::-1])
        steps, errors = chosen.curves("train/error")
        rate = f", rate {chosen[0].config[_RATE]:g}"
        _plot(axes[0], steps / epoch, 100 * errors, name, rate)
        for ax, percent in zip(axes[1:], THRESHOLDS, strict=True):
            times = {r: epochs_to(g, percent) for r, g in group.by(_RATE).items()}
            means = [each.mean() for each in times.values()]
            ax.plot(list(times), means, color=_COLORS[name])
            for r, each in times.items():
                ax.plot([r] * len(each), each, "o", color=_COLORS[name], ms=3)
    for ax, percent in zip(axes[1:], THRESHOLDS, strict=True):
        axes[0].axhline(percent, color="grey", ls=":", lw=1)
        ax.set(xscale="log", yscale="log", ylim=(10 / epoch, 1.1 * last))
        ax.set_xlabel("learning rate")
        ax.set_ylabel(f"epochs to {percent} % training error")
        ax.set_title("a point a seed; a line where all get there")
    axes[0].set(xlabel="epochs", ylabel="error in the last ten batches, %")
    axes[0].set(ylim=(0, 100), title=f"at the rate fastest to {THRESHOLDS[-1]} %")
    axes[0].legend(fontsize=8)
    return fig


@figure(sweep="rates")
def closed_units(runs: Runs) -> Figure:
    """Closed places and dead units over training, at the fastest and a large rate."""
    fig, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained", sharey="row")
    for name, group in runs.by(_ACTIVATION).items():
        chosen = fastest(group, *THRESHOLDS[::-1]), group.where(**{_RATE: _LARGE})
        for column, same in zip(axes.T, chosen, strict=True):
            for ax, metric in zip(column, ("test/closed", "test/dead"), strict=True):
                steps, shares = same.curves(metric)
                _plot(ax, steps, 100 * shares, name)
    axes[0, 0].set(ylabel="closed places, %", title="at the fastest learning rates")
    axes[0, 1].set_title(f"all at learning rate {_LARGE:g}")
    axes[1, 0].set(ylabel="dead units, %", xlabel="step")
    axes[1, 1].set(xlabel="step")
    axes[0, 0].legend(fontsize=8)
    return fig


FIGURES = {
    "curves": curves,
    "training_speed": training_speed,
    "closed_units": closed_units,
}


def summary(runs: Runs) -> str:
    """Returns the epochs to both errors at the fastest rates, and the dead units."""
    times, dead = [], []
    for name, group in runs.by(_ACTIVATION).items():
        taken = [_words(epochs_to(fastest(group, p), p)) for p in THRESHOLDS]
        times.append(f"{_NAMES[name]} {' and '.join(taken)}")
        shares = group.where(**{_RATE: _LARGE}).final("test/dead")
        dead.append(f"{_NAMES[name]} {mean_and_spread(shares, scale=100, unit=' %')}")
    easy, hard = THRESHOLDS
    return (
        f"Epochs to {easy} % and to {hard} % training error, each at the fastest of "
        f"{len(runs.values(_RATE))} rates, {len(runs.values('seed'))} seeds: "
        f"{'; '.join(times)}. Units dead in the end at rate {_LARGE:g}: "
        f"{', '.join(dead)}."
    )


def _words(times: Float[np.ndarray, " runs"]) -> str:
    there = int(np.isfinite(times).sum())
    if there == len(times):
        return mean_and_spread(times)
    return f"only in {there} of {len(times)} runs" if there else "in no run"
