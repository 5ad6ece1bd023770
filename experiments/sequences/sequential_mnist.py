r"""Digits read pixel by pixel, in order or shuffled: a TCN against LSTM, GRU and RNN.

Le, Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified linear
units", 2015 (arXiv:1504.00941): an image is read as one sequence of its pixels, row by
row, and classified after the last. In the permuted task the pixels of all images are
shuffled by one permutation, drawn from the fixed seed 92,716, the same in every run:
what was near is then far. The networks and settings are those of Bai, Kolter & Koltun,
"An empirical evaluation of generic convolutional and recurrent networks for sequence
modeling", 2018 (arXiv:1803.01271), section 5.2.

    python -m launch.sweep --experiment=sequences.sequential_mnist \
        --sweep=networks --executor=vmap
    python -m launch.sweep --experiment=sequences.sequential_mnist \
        --sweep=full_length --executor=vmap
    python -m launch.figures --experiment=sequences.sequential_mnist

Look for: how soon each network begins to learn. The TCN is at 90 % when the others are
at 25 to 60. Tearing neighbours apart costs it and the LSTM some of their accuracy, and
helps the RNN, which remembers little: in order, the last pixels are an empty margin.
All have the size of the TCN and take as many steps, few by default: the numbers say
which learns faster, not which is better in the end.
`full_length` trains the TCN on all 784 pixels, beside the paper's accuracies.

By default 12,000 digits of `mnist_subset`, reduced to 14×14 by averaging 2×2 pixels,
make sequences of 196, and the TCN has two blocks fewer for a quarter of the pixels.
`--preset=paper` takes all of MNIST, 784 pixels, eight blocks and 20 epochs; the step
size falls to a tenth after ten. The paper's permutation is not known, nor are the
settings of its recurrent networks; theirs here are the TCN's, and the gradient's norm
is clipped at 1, within the range that the paper gives. The digits are dealt out anew in
each epoch, where the authors' code never shuffles them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Batches, Data
from dl_core.data.named import named_batches
from dl_core.errors import UserError
from dl_core.models.sequence import COLORS, NAMES, Network, SequenceModel
from dl_core.pictures import mean_and_range
from dl_core.published import Row
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train.metrics import Mean, classification
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState

_SIDE = 28
_MEAN, _DEVIATION = 0.1307, 0.3081  # Of all pixels of MNIST's training images.


@config
class Dataset:
    """Which digits, and how long a sequence they make."""

    name: str = static("mnist_subset", "TFDS data set of 28×28 digits; mnist is all.")
    size: int = static(
        14, "Pixels a side, to which images are reduced; a sequence has its square."
    )


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(350, "Training steps.", at_least=1)
    batch_size: int = static(64, "Digits in a training batch.", at_least=1)
    eval_every: int = static(50, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(350, "Steps between checkpoints.", at_least=1)
    permuted: bool = traced(False, "Whether the pixels are shuffled.")
    data: Dataset = nested(Dataset)
    model: Network = nested(Network, kernel_size=7, levels=6, channels=25, dropout=0.05)
    optimizer: Optimizer = nested(Optimizer, learning_rate=2e-3)


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "data.size": 4,
        "model.channels": 3,
    },
    "paper": {
        "steps": 18_750,
        "log_every": 100,
        "eval_every": 938,
        "checkpoint_every": 1_876,
        "data.name": "mnist",
        "data.size": 28,
        "model.levels": 8,
        "optimizer.stair": 9_375,
    },
}


def permutation(length: int) -> Int[np.ndarray, " length"]:
    """Returns in which order the pixels are read in the permuted task, in every run."""
    return np.random.default_rng(92_716).permutation(length)


def make_model(config: Config) -> SequenceModel:
    """Returns the network, which classifies at the last pixel."""
    return SequenceModel(config.model, 10)


def data(config: Config, data_dir: Any) -> Data:
    """Returns training and test digits as sequences of pixels."""
    size = config.data.size
    if size < 1 or _SIDE % size:
        raise UserError(
            f"--config.data.size={size}: expected a divisor of {_SIDE}, the images' "
            "height and width"
        )
    shapes = {"image": (_SIDE, _SIDE, 1), "label": ()}

    def batches(split: str, count: int) -> Batches:
        name = config.data.name
        return named_batches(name, split, data_dir, count, shapes, to_sequences)

    return Data(batches("train", config.batch_size), {"test": batches("test", 500)})


def to_sequences(
    config: Config, batch: dict[str, UInt8[Array, "batch ..."]], key: Any
) -> dict[str, Array]:
    """Makes normalised pixel sequences "batch time 1" of images of bytes.

    Where the size is not the images', each pixel is the mean of a square of theirs.
    """
    size = config.data.size
    length, block = size**2, _SIDE // size
    squares = batch["image"].reshape(-1, size, block, size, block)
    pixels = squares.astype(jnp.float32).mean((2, 4)).reshape(-1, length) / 255
    order = jnp.where(config.permuted, permutation(length), jnp.arange(length))
    normalised = (pixels[:, order] - _MEAN) / _DEVIATION
    return {"inputs": normalised[..., None], "label": batch["label"]}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    inputs = jnp.zeros((1, config.data.size**2, 1))
    variables = make_model(config).init(key, inputs, train=False, last_only=True)
    return TrainState.create(variables, config.optimizer.make())


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss(params):
        logits, _ = make_model(config).apply(
            {"params": params},
            batch["inputs"],
            train=True,
            last_only=True,
            rngs={"dropout": key},
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["label"]
        ).mean()

    return state.descend(loss, config.optimizer.make())


def classify(
    config: Config, state: TrainState, inputs: Float[Array, "batch time 1"]
) -> Float[Array, "batch 10"]:
    """Returns the logits, as in evaluation."""
    variables = {"params": state.params}
    return make_model(config).apply(variables, inputs, train=False, last_only=True)[0]


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the loss and the accuracy."""
    logits = classify(config, state, batch["inputs"])
    return classification(logits, batch["label"], batch["mask"])


MAIN_METRIC = "test/accuracy"
_NAME, _CLIP = "model.name", "optimizer.clip"
_PERCENT = {"scale": 100, "unit": " %"}

# The paper clips the recurrent networks; its code, whatever it says, never the TCN.
_NETWORKS = {_NAME: ("tcn", "lstm", "gru", "rnn"), _CLIP: (0.0, 1.0, 1.0, 1.0)}

SWEEPS = {
    "networks": product(zipped(**_NETWORKS), permuted=(False, True), seed=range(5)),
    "full_length": product(
        permuted=(False, True),
        seed=range(5),
        **{"data.size": (_SIDE,), "model.levels": (8,)},
    ),
}

_TITLES = {False: "pixels in order", True: "pixels permuted"}
_PUBLISHED = {
    False: {"lstm": 87.2, "gru": 96.2, "rnn": 21.5, "tcn": 99.0},
    True: {"lstm": 85.7, "gru": 87.3, "rnn": 25.3, "tcn": 97.2},
}
_PUBLISHED_WORDS = "with 60,000 digits and 20 epochs"


def _panels(runs: Runs) -> tuple[Figure, list[tuple[Axes, bool, Runs]]]:
    """Returns a figure of a panel a task, and its axes, task and runs."""
    tasks = runs.by("permuted")
    fig, axes = plt.subplots(
        1, len(tasks), figsize=(10, 4.2), layout="constrained", sharey=True
    )
    for ax, permuted in zip(axes, tasks, strict=True):
        ax.axhline(10, color="grey", ls=":", lw=1, label="guessing")
        ax.set(xlabel="training step", ylim=(0, 102), title=_TITLES[permuted])
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy in % (mean and range over seeds)")
    return fig, [(ax, *task) for ax, task in zip(axes, tasks.items(), strict=True)]


def _draw(ax: Axes, runs: Runs, name: str) -> None:
    """Draws the accuracy over training of one network."""
    steps, values = runs.curves(MAIN_METRIC)
    mean_and_range(ax, steps, 100 * values, color=COLORS[name], label=NAMES[name])


def _draw_published(ax: Axes, *, permuted: bool, name: str) -> None:
    number = _PUBLISHED[permuted][name]
    label = f"{NAMES[name]} of the paper, {number} %"
    ax.axhline(number, color=COLORS[name], ls="--", lw=1, label=label)


@figure(sweep="networks")
def networks(runs: Runs) -> Figure:
    """Test accuracy of the four networks over training, pixels in order or permuted."""
    fig, panels = _panels(runs)
    config = runs[0].config
    for ax, permuted, group in panels:
        for name, same in group.by(_NAME).items():
            _draw(ax, same, name)
            if config["data.name"] == "mnist" and config["data.size"] == _SIDE:
                _draw_published(ax, permuted=permuted, name=name)
        ax.legend(fontsize=8)
    fig.suptitle(f"sequences of {config['data.size'] ** 2} pixels")
    return fig


@figure(sweep="full_length")
def full_length(runs: Runs) -> Figure:
    """Test accuracy of the TCN on 784 pixels; dashed: the paper's, trained longer."""
    fig, panels = _panels(runs)
    for ax, permuted, group in panels:
        _draw(ax, group, "tcn")
        _draw_published(ax, permuted=permuted, name="tcn")
        ax.legend(loc="lower right", fontsize=8)
    fig.suptitle(
        f"sequences of {_SIDE**2} pixels (the paper's numbers: {_PUBLISHED_WORDS})"
    )
    return fig


FIGURES = {"networks": networks, "full_length": full_length}

_METRIC = {"metric": MAIN_METRIC, "better": "higher", **_PERCENT}

TABLE = (
    *(
        Row(
            task=f"{word} MNIST, 28×28, 60,000 digits, 20 epochs",
            sweep="networks",
            preset="paper",
            where={"permuted": permuted},
            published=_PUBLISHED[permuted],
            **_METRIC,
        )
        for permuted, word in ((False, "Sequential"), (True, "Permuted"))
    ),
    *(
        Row(
            task=f"{word} MNIST, {size}×{size}, 12,000 digits, {Config.steps} steps",
            sweep=sweep,
            where={"permuted": permuted},
            **_METRIC,
        )
        for sweep, size in (("networks", 14), ("full_length", 28))
        for permuted, word in ((False, "Sequential"), (True, "Permuted"))
    ),
)


def summary(runs: Runs) -> str:
    """Returns the test accuracy of each network on each task."""
    parts = []
    for permuted, group in runs.by("permuted").items():
        accuracies = ", ".join(
            f"{NAMES[name]} {mean_and_spread(same.final(MAIN_METRIC), **_PERCENT)}"
            for name, same in group.by(_NAME).items()
        )
        parts.append(f"{_TITLES[permuted]}: {accuracies}")
    config = runs[0].config
    return (
        f"Test accuracy on sequences of {config['data.size'] ** 2} pixels after "
        f"{config['steps']:,} steps, {len(runs.values('seed'))} seeds: "
        f"{'; '.join(parts)}."
    )
