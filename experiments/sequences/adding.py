"""The adding problem: two marked numbers of a long sequence are to be summed.

Bai, Kolter & Koltun, "An empirical evaluation of generic convolutional and recurrent
networks for sequence modeling", 2018 (arXiv:1803.01271), section 5.1 and figure 2. Each
of T inputs is a number, uniform on [0, 1), and a mark, which is 1 at two positions and
0 elsewhere; after the last input the network must say the sum of the two marked
numbers. Saying 1 whatever the input has a mean squared error of 1/6, the dashed line of
the figures. All four networks have about 58,000 parameters, at T = 600 about 70,000.

    python -m launch.sweep --experiment=sequences.adding --sweep=networks \
        --executor=vmap
    python -m launch.sweep --experiment=sequences.adding --sweep=lengths \
        --executor=vmap
    python -m launch.figures --experiment=sequences.adding

Look for: in `networks`, at T = 200, which networks leave the dashed line within one
epoch of 50,000 sequences, and when: every network first learns the mean, and then waits
for a gradient that points to the marks. In `lengths` the TCN has the kernel, levels and
channels that the paper gives it at each T, with receptive fields of 1,271, 1,525 and
3,571 positions; the plateau is longer at larger T and its end is a matter of the seed,
so the curves are the median and the quartiles of ten seeds.

As in the authors' code, the two marks lie anywhere, often both in one half. Unlike
there, the training sequences are new at every step, where theirs are 50,000 seen again
every epoch. The step size is the paper's for the TCN and the norm to which gradients
are clipped the largest of its range, here the same for all; the paper searched those of
the recurrent networks.
`--preset=paper` is the row of the paper's table: T = 600 and ten epochs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static
from dl_core.data.adding import VARIANCE, adding_problem
from dl_core.data.batches import Data, Generated
from dl_core.models.sequence import COLORS, NAMES, Network, SequenceModel
from dl_core.pictures import mean_and_range
from dl_core.published import Row
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(1_563, "Training steps; 1,563 is one epoch.", at_least=1)
    batch_size: int = static(32, "Sequences in a training batch.", at_least=1)
    eval_every: int = static(125, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(500, "Steps between checkpoints.", at_least=1)
    length: int = static(200, "Length T of a sequence.", at_least=2)
    model: Network = nested(Network, kernel_size=6, levels=7, channels=27)
    optimizer: Optimizer = nested(Optimizer, learning_rate=2e-3, clip=1.0)


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "length": 20,
        "model.levels": 2,
        "model.channels": 4,
    },
    "paper": {
        "steps": 15_630,
        "eval_every": 521,
        "checkpoint_every": 1_563,
        "length": 600,
        "model.kernel_size": 8,
        "model.levels": 8,
        "model.channels": 24,
    },
}

LEARNED = 0.01
"""The error below which a run counts as having learned to add."""
_TEST = 500


def data(config: Config, data_dir: Any) -> Data:
    """Returns training and 1,000 test sequences, made on the device."""
    return Data(
        Generated(make_batch, config.batch_size),
        {"test": Generated(make_test_batch, _TEST, eval_batches=2)},
    )


def make_batch(
    config: Config, key: jax.Array, count: int | None = None
) -> dict[str, Float[Array, "batch ..."]]:
    """Makes sequences of numbers and marks, and the sums of the marked numbers.

    Args:
      config: its length, and its batch size where there is no count.
      key: random key.
      count: sequences.

    Returns:
      "inputs" (batch, length, 2) and "targets" (batch,).
    """
    return adding_problem(key, count or config.batch_size, config.length)


def make_test_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes test sequences."""
    return make_batch(config, key, _TEST)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    inputs = jnp.zeros((1, config.length, 2))
    variables = SequenceModel(config.model, 1).init(key, inputs, train=False)
    return TrainState.create(variables, config.optimizer.make())


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean squared error."""

    def loss(params):
        sums = predict(config, params, batch["inputs"], key)
        return jnp.mean((sums - batch["targets"]) ** 2)

    return state.descend(loss, config.optimizer.make())


def predict(
    config: Config,
    params: Any,
    inputs: Float[Array, "batch time 2"],
    key: jax.Array | None = None,
) -> Float[Array, " batch"]:
    """Returns what the network says after the last input; with a key, in training."""
    sums, _ = SequenceModel(config.model, 1).apply(
        {"params": params},
        inputs,
        train=key is not None,
        last_only=True,
        rngs=None if key is None else {"dropout": key},
    )
    return sums[:, 0]


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the squared error."""
    sums = predict(config, state.params, batch["inputs"])
    return {"loss": Mean.of((sums - batch["targets"]) ** 2, batch["mask"])}


MAIN_METRIC = "test/loss"

SWEEPS = {
    "networks": product(**{"model.name": tuple(NAMES)}, seed=range(5)),
    "lengths": product(
        zipped(
            **{
                "length": (200, 400, 600),
                "model.kernel_size": (6, 7, 8),
                "model.levels": (7, 7, 8),
                "model.channels": (27, 27, 24),
            }
        ),
        seed=range(10),
    ),
}


@figure(sweep="networks")
def networks(runs: Runs) -> Figure:
    """Test error over training, mean and range over seeds."""
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, group in runs.by("model.name").items():
        steps, values = group.curves(MAIN_METRIC)
        mean_and_range(ax, steps, values, color=COLORS[name], label=NAMES[name])
    _finish(ax, f"T = {runs[0].config['length']}, {len(runs.values('seed'))} seeds")
    ax.set_ylabel("test mean squared error (mean and range)")
    ax.legend()
    return fig


@figure(sweep="lengths")
def lengths(runs: Runs) -> Figure:
    """Test error of the TCN over training at each length, seed by seed."""
    groups = runs.by("length")
    fig, axes = plt.subplots(
        1,
        len(groups),
        figsize=(3.4 * len(groups), 3.6),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    color = COLORS["tcn"]
    for ax, (length, group) in zip(axes[0], groups.items(), strict=True):
        steps, values = group.curves(MAIN_METRIC)
        ax.plot(steps, values.T, color=color, alpha=0.3, lw=0.6)
        low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
        ax.plot(steps, middle, color=color, label="median")
        ax.fill_between(
            steps, low, high, color=color, alpha=0.25, lw=0, label="quartiles"
        )
        ax.axhline(LEARNED, color="grey", ls=":", lw=1)
        _finish(ax, f"T = {length}: {learned(group)} below {LEARNED}")
    axes[0, 0].set_ylabel("test mean squared error")
    axes[0, 0].legend()
    return fig


def _finish(ax: plt.Axes, title: str) -> None:
    ax.axhline(VARIANCE, color="grey", ls="--", lw=1, label="always 1")
    ax.set(yscale="log", xlabel="step", title=title)


FIGURES = {"networks": networks, "lengths": lengths}


def learned(runs: Runs) -> str:
    """Returns in how many runs the last test error is below `LEARNED`: "8 of 10"."""
    return f"{(runs.final(MAIN_METRIC) < LEARNED).sum()} of {len(runs)}"


def summary(runs: Runs) -> str:
    """Returns the test error of each network and length, and how many learned."""
    parts = []
    for (length, name), group in runs.by("length", "model.name").items():
        error = mean_and_spread(group.final(MAIN_METRIC))
        parts.append(f"{NAMES[name]} at T = {length} {error}, {learned(group)}")
    return (
        f"Test mean squared error after {runs[0].config['steps']:,} steps, and seeds "
        f"below {LEARNED}: {'; '.join(parts)}."
    )


TABLE = (
    Row(
        task="Adding problem, T = 600",
        sweep="networks",
        preset="paper",
        metric=MAIN_METRIC,
        published={"lstm": 0.164, "gru": 5.3e-5, "rnn": 0.177, "tcn": 5.8e-5},
    ),
    Row(
        task="Adding problem, T = 600, TCN alone",
        sweep="lengths",
        preset="paper",
        where={"length": 600},
        metric=MAIN_METRIC,
        published={"tcn": 5.8e-5},
    ),
    Row(task="Adding problem, T = 200", sweep="networks", metric=MAIN_METRIC),
)
