r"""Batch normalisation steadies a sigmoid's inputs and makes large rates usable.

Ioffe & Szegedy, "Batch normalization: accelerating deep network training by reducing
internal covariate shift", ICML 2015, section 4.1 and figure 1: three hidden layers of
100 sigmoid units on MNIST, 60 examples a batch, stochastic gradient descent, with and
without normalisation before each sigmoid. The paper gives neither the learning rate nor
the width of the "small random Gaussian" initial weights; here the first is swept and
the second is 0.1.

    python -m launch.sweep --experiment=classification.batch_norm \
        --sweep=learning_rates --executor=vmap
    python -m launch.figures --experiment=classification.batch_norm

Look for: without normalisation a sigmoid of the last hidden layer receives nearly the
same number for every image during the first thousand steps (the 15th, 50th and 85th
percentiles lie together), and its inputs drift from zero as it begins to learn; with
normalisation they spread within a few hundred steps and stay centred. The normalised
network is ahead at small learning rates and still learns at one at which the other
fails; at the best rate both end alike. `--preset=paper` is the paper's 50,000 steps on
all of MNIST.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Batches, Data
from dl_core.data.named import named_batches
from dl_core.pictures import mean_and_range
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean, Percentiles, classification
from dl_core.train.state import TrainState


@config
class Network:
    """The multilayer perceptron."""

    normalization: Literal["none", "batch"] = static(
        "batch", "What comes before each sigmoid."
    )
    width: int = static(100, "Units in a hidden layer.", at_least=1)
    depth: int = static(3, "Hidden layers.", at_least=1)
    initial_std: float = traced(
        0.1, "Standard deviation of the initial weights.", above=0
    )


@config
class Dataset:
    """Which images."""

    name: str = static(
        "mnist_subset", "TFDS data set of images and labels; mnist is all of MNIST."
    )


@config
class Optimizer:
    """Stochastic gradient descent."""

    learning_rate: float = traced(0.1, "Step size.", above=0)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(3_000, "Training steps.", at_least=1)
    batch_size: int = static(60, "Examples in a training batch.", at_least=1)
    eval_every: int = static(100, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(1_500, "Steps between checkpoints.", at_least=1)
    model: Network = nested(Network)
    data: Dataset = nested(Dataset)
    optimizer: Optimizer = nested(Optimizer)


PRESETS = {
    "smoke": {"steps": 20, "eval_every": 10, "log_every": 5, "checkpoint_every": 10},
    "paper": {
        "steps": 50_000,
        "eval_every": 500,
        "checkpoint_every": 10_000,
        "data.name": "mnist",
    },
}


class Perceptron(nn.Module):
    """Sigmoid layers, each optionally normalised before it, and a linear one."""

    model: Network

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch pixels"], *, train: bool
    ) -> tuple[Float[Array, "batch 10"], dict[str, Array]]:
        """Returns the logits, and the input of each layer's sigmoids by name."""
        normalized = self.model.normalization == "batch"
        small = nn.initializers.normal(1.0)

        def scaled(key, shape, dtype=jnp.float32):
            return self.model.initial_std * small(key, shape, dtype)

        x, endpoints = images, {}
        for layer in range(self.model.depth):
            # The normalisation has a bias of its own (section 3.2).
            x = nn.Dense(self.model.width, use_bias=not normalized, kernel_init=scaled)(
                x
            )
            if normalized:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.99)(x)
            endpoints[f"sigmoid_input_{layer}"] = x
            x = nn.sigmoid(x)
        return nn.Dense(10, kernel_init=scaled)(x), endpoints


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; the learning rate may be traced."""
    return optax.sgd(config.optimizer.learning_rate)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training images in batches, and the test images."""

    def batches(split: str, size: int) -> Batches:
        shapes = {"image": (28, 28, 1), "label": ()}
        return named_batches(
            config.data.name, split, data_dir, size, shapes, to_vectors
        )

    return Data(batches("train", config.batch_size), {"test": batches("test", 1_000)})


def to_vectors(
    config: Config, batch: dict[str, UInt8[Array, "batch ..."]], key: Any
) -> dict[str, Array]:
    """Turns images of bytes into vectors of numbers between 0 and 1."""
    images = batch["image"]
    pixels = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return {"image": pixels, "label": batch["label"]}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    images = jnp.zeros((1, 28 * 28))
    variables = Perceptron(config.model).init(key, images, train=False)
    return TrainState.create(variables, make_optimizer(config))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss_fn(params):
        (logits, _), updates = Perceptron(config.model).apply(
            {"params": params, **state.collections},
            batch["image"],
            train=True,
            mutable=list(state.collections),
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return loss.mean(), updates

    (loss, updates), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(gradients, make_optimizer(config), updates)
    return state, {"loss": loss}


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean | Percentiles]:
    """Measures the loss, the accuracy, and what one sigmoid of the last layer receives.

    The sigmoid is the first of its layer: units are exchangeable, so it is a typical
    one, as in the paper's figure.
    """
    logits, endpoints = Perceptron(config.model).apply(
        {"params": state.params, **state.collections}, batch["image"], train=False
    )
    labels, mask = batch["label"], batch["mask"]
    inputs = endpoints[f"sigmoid_input_{config.model.depth - 1}"][:, 0]
    return {
        **classification(logits, labels, mask),
        "sigmoid_input": Percentiles(inputs, mask, (15.0, 50.0, 85.0)),
    }


MAIN_METRIC = "test/accuracy"
_NORMALIZATION, _RATE = "model.normalization", "optimizer.learning_rate"

SWEEPS = {
    "learning_rates": product(
        **{
            _NORMALIZATION: ("none", "batch"),
            _RATE: (0.1, 1.0, 10.0, 100.0),
            "seed": range(3),
        }
    ),
}

_LOOKS = {"none": ("without", "C3"), "batch": ("with", "C0")}


@figure(sweep="learning_rates")
def covariate_shift(runs: Runs) -> Figure:
    """Accuracy over steps, and percentiles of a sigmoid's inputs, as in figure 1."""
    runs = runs.where(**{_RATE: 0.1})
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, group in runs.by(_NORMALIZATION).items():
        words, color = _LOOKS[name]
        steps, accuracy = group.curves(MAIN_METRIC)
        label = f"{words} batch norm"
        mean_and_range(axes[0], steps, accuracy, color=color, label=label)
    axes[0].set(xlabel="step", ylabel="test accuracy", ylim=(0, 1))
    axes[0].set_title("learning rate 0.1: mean and range over seeds")
    axes[0].legend(loc="lower right")
    for ax, (name, group) in zip(
        axes[1:], runs.by(_NORMALIZATION).items(), strict=True
    ):
        words, color = _LOOKS[name]
        steps, percentiles = group[0].series("test/sigmoid_input")
        for column, style in enumerate((":", "-", ":")):
            ax.plot(steps, percentiles[:, column], style, color=color)
        ax.set(xlabel="step", ylabel="input to a sigmoid", ylim=(-3, 3))
        seed = group[0].config["seed"]
        ax.set_title(f"{words} batch norm: 15, 50, 85 % (seed {seed})")
    return fig


@figure(sweep="learning_rates")
def learning_rates(runs: Runs) -> Figure:
    """Test accuracy at the end, for each learning rate, seed by seed."""
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, group in runs.by(_NORMALIZATION).items():
        words, color = _LOOKS[name]
        rates = group.values(_RATE)
        finals = [group.where(**{_RATE: r}).final(MAIN_METRIC) for r in rates]
        ax.plot(
            rates, [f.mean() for f in finals], color=color, label=f"{words} batch norm"
        )
        for rate, values in zip(rates, finals, strict=True):
            ax.plot([rate] * len(values), values, "o", color=color, ms=4, alpha=0.6)
    ax.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", ylim=(0, 1))
    ax.set_title(f"after {runs[0].config['steps']:,} steps (a point a seed)")
    ax.legend(loc="lower left")
    return fig


FIGURES = {"covariate_shift": covariate_shift, "learning_rates": learning_rates}


def summary(runs: Runs) -> str:
    """Returns test accuracy with and without normalisation at every learning rate."""
    parts = []
    for rate in runs.values(_RATE):
        with_, without = (
            _accuracies(runs.where(**{_RATE: rate, _NORMALIZATION: name}))
            for name in ("batch", "none")
        )
        parts.append(f"rate {rate:g}: {with_} with, {without} without")
    seeds = len(runs.values("seed"))
    return (
        f"Test accuracy after {runs[0].config['steps']:,} steps, {seeds} seeds, batch "
        f"normalisation at learning {'; '.join(parts)}."
    )


def _accuracies(runs: Runs) -> str:
    """Returns mean and spread, or, where seeds end far apart, every seed's accuracy."""
    percent = 100 * runs.final(MAIN_METRIC)
    if len(percent) and np.ptp(percent) >= 10:
        return ", ".join(f"{value:.0f}" for value in percent) + " % (a number a seed)"
    return mean_and_spread(percent, unit=" %")
