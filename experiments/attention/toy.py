"""Attention finds what belongs together however far apart; convolutions do not.

Fleuret, "Deep learning" (EE-559 of EPFL), lecture 13.2: sequences of 100 positions with
two triangles and two boxes, to be drawn again so that both shapes of a pair have the
mean of their heights (`dl_core.data.shapes`). Five layers, windows of five positions:
five convolutions, or four and an attention layer in the middle, softmax(Q Kᵀ) V with
queries, keys and values of the context and products that are not scaled.

    python -m launch.sweep --experiment=attention.toy --sweep=networks --executor=vmap
    python -m launch.figures --experiment=attention.toy

Look for: the convolutions see 21 positions, so they cannot know the other shape of a
pair and draw every shape at a height that is best on average. Where pairs are of one
type, attention goes from a shape to the other one of its type, wherever it is (a row of
the matrix is bright where its position looks), and the test error is less than a tenth
of the convolutions': 0.25 ± 0.03 against 2.62 ± 0.06 after 3,000 steps, five seeds.
Where pairs are the two shapes on the left and the two on the right, what a shape looks
like does not tell with which it belongs: attention hardly helps, 2.49 ± 0.04 against
2.77 ± 0.05, before it is told the digits of the position as seven more inputs, 1.56 ±
0.07, and these are not learned to the end in so few steps.
Dashed: the variance of the targets' noise, below which no error can be.

All networks are of one size: those with attention are as wide as they can be without
having more parameters than the convolutions. `--preset=paper` has the course's widths,
64 for each, by which the convolutions have 62,337 parameters and attention 54,081, and
its 250 epochs of 25,000 sequences in batches of 100. The course's figure shows the sum
of an epoch's 250 training errors, here the mean error of 1,000 other sequences. Its
code asks for heights that differ within the pair of triangles twice, here they differ
within both pairs.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, PyTree
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from dl_core.config import RunConfig, config, nested, static
from dl_core.data import shapes
from dl_core.data.batches import Data, InMemory
from dl_core.data.shapes import Shapes
from dl_core.errors import UserError
from dl_core.nn.attention import ContextualAttention
from dl_core.nn.conv import Conv
from dl_core.nn.positions import binary
from dl_core.pictures import mean_and_range
from dl_core.results import Run, Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState

NAMES = {
    "convolution": "convolutions",
    "attention": "with attention",
    "positions": "attention and positions",
}
_COLORS = {"convolution": "C3", "attention": "C0", "positions": "C2"}
_TASKS = {"type": "pairs of one type", "place": "left pair, right pair"}
_LAYERS, _BITS, _SHOWN = 5, 7, 3


@config
class Network:
    """Five layers over the positions."""

    name: Literal["convolution", "attention", "positions"] = static(
        "attention",
        "All convolutions; attention in the middle; positions as input too.",
    )
    channels: int = static(32, "Channels of the convolutional network.", at_least=2)
    same_size: bool = static(
        True,
        "Whether networks with attention are as wide as the convolutions' number of "
        "parameters allows, rather than as wide as those.",
    )
    kernel_size: int = static(5, "Positions of a window.", at_least=1)

    @property
    def width(self) -> int:
        """Channels of the hidden layers."""
        if not self.same_size:
            return self.channels
        most, width = self.size("convolution", self.channels), 1
        while self.size(self.name, width + 1) <= most:
            width += 1
        return width

    def size(self, name: str, width: int) -> int:
        """Returns the parameters of a network of so many channels."""
        inputs = 1 + _BITS * (name == "positions")
        hidden = (self.kernel_size * width + 1) * width
        middle = hidden if name == "convolution" else 3 * width**2
        first = (self.kernel_size * inputs + 1) * width
        return first + 2 * hidden + middle + self.kernel_size * width + 1


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(3_000, "Training steps.", at_least=1)
    batch_size: int = static(25, "Sequences in a training batch.", at_least=1)
    eval_every: int = static(250, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(1_500, "Steps between checkpoints.", at_least=1)
    data: Shapes = nested(Shapes)
    model: Network = nested(Network)
    optimizer: Optimizer = nested(Optimizer, learning_rate=2e-3)


PRESETS = {
    "smoke": {
        "steps": 4,
        "eval_every": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "batch_size": 4,
        "data.train": 50,
        "data.test": 10,
        "model.channels": 4,
    },
    "paper": {
        "steps": 62_500,
        "batch_size": 100,
        "eval_every": 1_250,
        "checkpoint_every": 6_250,
        "model.channels": 64,
        "model.same_size": False,
        "optimizer.learning_rate": 1e-3,
    },
}


class Model(nn.Module):
    """Convolutions with ReLUs, the third of them attention where that is wanted."""

    network: Network

    @nn.compact
    def __call__(self, x: Float[Array, "batch length"]) -> Float[Array, "batch length"]:
        """Returns the sequences with their heights made equal."""
        # As torch initialises its layers.
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        network, width = self.network, self.network.width
        x = x[..., None]
        if network.name == "positions":
            digits = binary(x.shape[1], _BITS)
            digits = jnp.broadcast_to(digits, (len(x), *digits.shape))
            x = jnp.concatenate([x, digits], axis=-1)
        for layer in range(_LAYERS - 1):
            if layer == 2 and network.name != "convolution":
                x = ContextualAttention(width, width, kernel_init=init)(x)
            else:
                x = nn.relu(Conv(width, network.kernel_size, kernel_init=init)(x))
        return Conv(1, network.kernel_size, kernel_init=init)(x)[..., 0]


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training and test sequences, the same for all seeds."""
    if config.model.name == "positions" and config.data.length > 2**_BITS:
        raise UserError(
            f"--config.data.length={config.data.length}: {_BITS} binary digits tell at "
            f"most {2**_BITS} positions apart"
        )
    arrays = shapes.read(config.data)
    return Data(
        InMemory(arrays["train"], config.batch_size),
        {"test": InMemory(arrays["test"], 250)},
    )


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    variables = Model(config.model).init(key, jnp.zeros((1, config.data.length)))
    return TrainState.create(variables, config.optimizer.make())


def predict(
    config: Config, params: PyTree, inputs: Float[Array, "batch length"]
) -> Float[Array, "batch length"]:
    """Returns what the network draws; it sees inputs of mean 0 and deviation 1."""
    return Model(config.model).apply({"params": params}, _normalised(config, inputs))


def _normalised(config: Config, inputs: Array) -> Array:
    train = shapes.read(config.data)["train"]["inputs"]
    return (inputs - train.mean()) / train.std()


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean squared error."""

    def loss(params):
        return (
            (predict(config, params, batch["inputs"]) - batch["targets"]) ** 2
        ).mean()

    return state.descend(loss, config.optimizer.make())


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the mean squared error."""
    errors = (predict(config, state.params, batch["inputs"]) - batch["targets"]) ** 2
    return {"error": Mean.of(errors.mean(axis=1), batch["mask"])}


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Returns the first test sequences, what is drawn for them, and what is seen."""
    test = shapes.read(config.data)["test"]
    chosen = {name: jnp.asarray(x[:_SHOWN]) for name, x in test.items()}
    drawn, kept = Model(config.model).apply(
        {"params": state.params},
        _normalised(config, chosen["inputs"]),
        mutable=["intermediates"],
    )
    weights = jax.tree.leaves(kept)
    return {**chosen, "drawn": drawn, **({"weights": weights[0]} if weights else {})}


MAIN_METRIC = "test/error"
_NAME, _PAIRS = "model.name", "data.pairs"

SWEEPS = {
    "networks": product(
        **{_PAIRS: tuple(_TASKS), _NAME: tuple(NAMES), "seed": range(5)}
    ),
}


@figure(sweep="networks")
def errors(runs: Runs) -> Figure:
    """Test error of each network over training, for both ways to make pairs."""
    groups = runs.by(_PAIRS)
    fig, axes = plt.subplots(
        1,
        len(groups),
        figsize=(9, 3.8),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, (pairs, group) in zip(axes[0], groups.items(), strict=True):
        for name, same in group.by(_NAME).items():
            steps, values = same.curves(MAIN_METRIC)
            later = steps > 0
            mean_and_range(
                ax,
                steps[later],
                values[:, later],
                color=_COLORS[name],
                label=NAMES[name],
            )
        ax.axhline(
            shapes.LEAST_ERROR,
            color="grey",
            ls="--",
            lw=1,
            label="noise of the targets",
        )
        ax.set(xscale="log", yscale="log", xlabel="step", title=_TASKS[pairs])
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.xaxis.set_minor_formatter("")
    axes[0, 0].set_ylabel("test squared error (mean and range over seeds)")
    axes[0, 0].legend(fontsize=8)
    return fig


@figure(sweep="networks")
def predictions(runs: Runs) -> Figure:
    """What each network draws for one test sequence, of one seed."""
    tasks, names = runs.by(_PAIRS), runs.values(_NAME)
    fig, axes = plt.subplots(
        len(tasks),
        len(names),
        figsize=(4 * len(names), 2.6 * len(tasks)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, (pairs, task) in zip(axes, tasks.items(), strict=True):
        row[0].set_ylabel(f"{_TASKS[pairs]}\nheight")
        for ax, name in zip(row, names, strict=True):
            seen = _last(task.where(**{_NAME: name})[0])
            if seen is None:
                ax.text(0.5, 0.5, "diverged", ha="center", transform=ax.transAxes)
                continue
            ax.fill_between(
                range(len(seen["inputs"][0])),
                seen["inputs"][0],
                color="0.85",
                label="input",
            )
            ax.plot(seen["targets"][0], color="black", lw=1, label="target")
            ax.plot(seen["drawn"][0], color=_COLORS[name], lw=1.6, label="network")
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(NAMES[name])
        if ax.lines:
            ax.legend(fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("position")
    return fig


@figure(sweep="networks")
def matrices(runs: Runs) -> Figure:
    """Which positions each position of one test sequence sees, of one seed."""
    runs = Runs(run for run in runs if run.config[_NAME] != "convolution")
    groups = runs.by(_PAIRS, _NAME)
    fig, axes = plt.subplots(
        2,
        len(groups),
        figsize=(3.1 * len(groups), 4.4),
        layout="constrained",
        sharex=True,
        height_ratios=(1, 3),
        squeeze=False,
    )
    for (above, ax), ((pairs, name), group) in zip(axes.T, groups.items(), strict=True):
        above.set_title(f"{_TASKS[pairs]}\n{NAMES[name]}", fontsize=10)
        seen = _last(group[0])
        if seen is None:
            ax.text(0.5, 0.5, "diverged", ha="center", transform=ax.transAxes)
            continue
        weights = seen["weights"][0]
        above.fill_between(range(len(weights)), seen["inputs"][0], color="0.6", lw=0)
        # Many weights of a flat stretch are as much as few of a peak: show the root.
        ax.imshow(
            np.sqrt(weights), cmap="magma", aspect="auto", interpolation="nearest"
        )
        ax.set_xlabel("position that is seen")
    axes[0, 0].set_ylabel("input")
    axes[1, 0].set_ylabel("position that sees")
    return fig


def _last(run: Run) -> Any:
    """Returns what was observed at the end, or None if the run diverged."""
    return None if run.diverged else run.last_artifacts()


FIGURES = {"errors": errors, "predictions": predictions, "matrices": matrices}


def summary(runs: Runs) -> str:
    """Returns the test error of each network for both ways to make pairs."""
    parts = []
    for pairs, task in runs.by(_PAIRS).items():
        finals = [
            f"{mean_and_spread(group.final(MAIN_METRIC))} {NAMES[name]}"
            for name, group in task.by(_NAME).items()
        ]
        parts.append(f"{_TASKS[pairs]}: {', '.join(finals)}")
    return (
        f"Test squared error after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds; {'; '.join(parts)}."
    )
