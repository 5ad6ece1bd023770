"""Polyphonic music: four networks predict the next frame of a piece, key by key.

Bai, Kolter & Koltun, "An empirical evaluation of generic convolutional and recurrent
networks for sequence modeling", 2018 (arXiv:1803.01271), section 5.2. A piece is a
piano roll: which of 88 keys sound in each frame. From the frames so far a network says
how likely each key is in the next; the loss is the negative log-likelihood of what is
played, in nats a frame: summed over keys, averaged over all frames of all pieces.

    python -m launch.sweep --experiment=sequences.music --sweep=networks --executor=vmap
    python -m launch.figures --experiment=sequences.music

The JSB Chorales ship with the project. Nottingham does not: `--preset=nottingham` reads
Nottingham.mat in the current folder, `--config.data.path=FILE` any of the four
collections (`dl_core.data.music` says where they are).

Look for: how far each network comes on pieces that it has not seen. The TCN reads the
last 13 frames alone; a recurrent network, of the same size here, could use all. In one
layer of such a network nothing is dropped, as `Network` drops between layers, so that
it is the sooner to overfit; the TCN drops half of its channels. The figure marks where
the validation loss is lowest and says the test loss there, which is what the paper's
code reports; the summary says the loss at the end.

The TCN and, with `--preset=paper`, the optimiser, the batch of one piece and the 100
epochs are those of the authors' code, which clips no gradient though it means to: it
clips before it computes them. It differs in that it divides the step size by ten when
the validation loss rises, descends the sum over a piece instead of the mean, and drops
single numbers, not whole channels as the paper says; it has no recurrent networks. By
default training is shorter, in batches of eight pieces, and the step size is 0.002: of
0.001 and 0.004 the TCN did better with the larger and the RNN with the smaller, by the
validation loss of short trials.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static
from dl_core.data.batches import Data, InMemory
from dl_core.data.music import KEYS, padded, read
from dl_core.models.sequence import COLORS, NAMES, Network, SequenceModel
from dl_core.pictures import mean_and_range
from dl_core.published import Row
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState


@config
class Dataset:
    """Which pieces."""

    path: str = static(
        "", "A .mat file of piano rolls (Nottingham.mat); the JSB Chorales if empty."
    )


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(1_000, "Training steps.", at_least=1)
    batch_size: int = static(8, "Pieces in a training batch.", at_least=1)
    eval_every: int = static(100, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(500, "Steps between checkpoints.", at_least=1)
    data: Dataset = nested(Dataset)
    model: Network = nested(Network, kernel_size=3, levels=2, channels=150, dropout=0.5)
    optimizer: Optimizer = nested(Optimizer, learning_rate=2e-3)


PRESETS = {
    "smoke": {
        "steps": 4,
        "eval_every": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "batch_size": 4,
        "model.channels": 8,
    },
    "paper": {
        "steps": 22_900,
        "eval_every": 229,
        "checkpoint_every": 2_290,
        "batch_size": 1,
        "optimizer.learning_rate": 1e-3,
    },
    "nottingham": {
        "steps": 69_400,
        "eval_every": 694,
        "checkpoint_every": 6_940,
        "batch_size": 1,
        "data.path": "Nottingham.mat",
        "model.kernel_size": 5,
        "model.levels": 4,
        "model.dropout": 0.25,
        "optimizer.learning_rate": 1e-3,
    },
}


def data(config: Config, data_dir: Any) -> Data:
    """Returns the pieces of the three splits, padded with silence."""
    pieces = read(config.data.path)
    train = InMemory(padded(pieces["train"]), config.batch_size)
    others = {split: pieces[split] for split in ("validation", "test")}
    # Of one length, so that one program evaluates both.
    longest = max(len(piece) for split in others.values() for piece in split)
    return Data(
        train,
        {split: InMemory(padded(rest, longest), 16) for split, rest in others.items()},
    )


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    variables = _network(config).init(key, jnp.zeros((1, 2, KEYS)), train=False)
    return TrainState.create(variables, config.optimizer.make())


def _network(config: Config) -> SequenceModel:
    return SequenceModel(config.model, KEYS)


def frame_losses(
    config: Config,
    params: PyTree,
    batch: dict[str, Array],
    dropout: jax.Array | None = None,
) -> tuple[Float[Array, "batch frames"], Bool[Array, "batch frames"]]:
    """Returns −log p(frame | frames before) in nats, and which frames are of a piece.

    The keys are independent given the frames before; the first frame is given.

    Args:
      config: the experiment's.
      params: the network's parameters.
      batch: `roll` and `length`, as `dl_core.data.music.padded` returns them.
      dropout: the key of the channels that are dropped; None drops none.
    """
    roll = batch["roll"].astype(jnp.float32)
    logits, _ = _network(config).apply(
        {"params": params},
        roll[:, :-1],
        train=dropout is not None,
        rngs=None if dropout is None else {"dropout": dropout},
    )
    losses = optax.sigmoid_binary_cross_entropy(logits, roll[:, 1:]).sum(-1)
    return losses, jnp.arange(1, roll.shape[1]) < batch["length"][:, None]


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean over all frames of the batch."""

    def loss_fn(params):
        losses, real = frame_losses(config, params, batch, key)
        return losses.mean(where=real)

    return state.descend(loss_fn, config.optimizer.make())


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the mean over all frames of all pieces."""
    losses, real = frame_losses(config, state.params, batch)
    real &= batch["mask"][:, None] > 0
    return {"loss": Mean.of(losses.ravel(), real.ravel().astype(jnp.float32))}


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Returns a test piece without its first frame, and how likely each key was."""
    roll = jnp.asarray(read(config.data.path)["test"][0])
    frames = roll[None, :-1].astype(jnp.float32)
    logits, _ = _network(config).apply({"params": state.params}, frames, train=False)
    return {"played": roll[1:], "expected": jax.nn.sigmoid(logits[0])}


MAIN_METRIC = "test/loss"

_NAME = "model.name"

SWEEPS = {"networks": product(**{_NAME: tuple(NAMES), "seed": range(5)})}

_CHORALES = {"tcn": 8.10, "lstm": 8.45, "gru": 8.43, "rnn": 8.91}
_NOTTINGHAM = {"tcn": 3.07, "lstm": 3.29, "gru": 3.46, "rnn": 4.05}

TABLE = (
    Row("JSB Chorales, NLL", "networks", MAIN_METRIC, _CHORALES, "paper"),
    Row("JSB Chorales, NLL, short training", "networks", MAIN_METRIC),
    Row("Nottingham, NLL", "networks", MAIN_METRIC, _NOTTINGHAM, "nottingham"),
)


@figure(sweep="networks")
def curves(runs: Runs) -> Figure:
    """Validation and test loss over training, a dot at the lowest validation loss.

    The dots are at the means over seeds; dashed lines are the paper's test losses.
    """
    fig, axes = plt.subplots(
        1, 2, figsize=(10, 4.4), layout="constrained", sharex=True, sharey=True
    )
    published = _NOTTINGHAM if runs[0].config["data.path"] else _CHORALES
    lowest = min(published.values())
    for name, group in runs.by(_NAME).items():
        axes[1].axhline(published[name], color=COLORS[name], ls="--", lw=1)
        steps, validation = group.curves("validation/loss")
        if not len(steps):
            continue
        _, test = group.curves("test/loss")
        lowest = min(lowest, validation.min(), test.min())
        best = validation.argmin(1)
        rows = np.arange(len(best)), best
        label = f"{NAMES[name]}, at the dot {mean_and_spread(test[rows])}"
        for ax, values in zip(axes, (validation, test), strict=True):
            mean_and_range(ax, steps, values, color=COLORS[name], label=label)
            dot = steps[best].mean(), values[rows].mean()
            ax.plot(*dot, "o", color=COLORS[name], ms=6, mec="k", zorder=3)
    axes[1].plot([], [], "--", color="grey", lw=1, label="the paper's")
    for ax, title in zip(axes, ("validation pieces", "test pieces"), strict=True):
        ax.set(title=title, xlabel="step", ylim=(0.97 * lowest, 1.45 * lowest))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("−log p in nats a frame")
    axes[1].legend()
    fig.suptitle("mean and range over seeds; a dot is at the lowest validation loss")
    return fig


@figure(sweep="networks")
def piece(runs: Runs) -> Figure:
    """A test piece, and how likely each network of the first seed held each key."""
    firsts = [group[0] for group in runs.by(_NAME).values() if not group[0].diverged]
    seen = {run.config[_NAME]: run.last_artifacts() for run in firsts}
    played = next(iter(seen.values()))["played"]
    shown = {"what is played": played}
    shown |= {f"{NAMES[n]} expected": arrays["expected"] for n, arrays in seen.items()}
    used = np.flatnonzero(played.any(0))
    low, high = max(used[0] - 3, 0), min(used[-1] + 4, KEYS)
    fig, axes = plt.subplots(
        len(shown),
        1,
        figsize=(10, 1.7 * len(shown) + 0.5),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for ax, (title, roll) in zip(axes[:, 0], shown.items(), strict=True):
        image = ax.imshow(
            roll[:, low:high].T,
            extent=(1.5, len(roll) + 1.5, low + 0.5, high + 0.5),
            origin="lower",
            aspect="auto",
            cmap="Greys",
            vmin=0,
            vmax=1,
            interpolation="none",
        )
        ax.set_ylabel("key")
        ax.set_title(title, loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("frame")
    fig.colorbar(image, ax=axes, label="probability", aspect=40, pad=0.01)
    config = runs[0].config
    fig.suptitle(
        f"each frame from those before it, after {config['steps']:,} steps "
        f"(seed {config['seed']})"
    )
    return fig


FIGURES = {"curves": curves, "piece": piece}


def summary(runs: Runs) -> str:
    """Returns the loss on the test pieces of each network."""
    losses = ", ".join(
        f"{NAMES[name]} {mean_and_spread(group.final(MAIN_METRIC))}"
        for name, group in runs.by(_NAME).items()
    )
    pieces = "the pieces of a file" if runs[0].config["data.path"] else "JSB Chorales"
    return (
        f"Nats a frame on the test set of {pieces} after {runs[0].config['steps']:,} "
        f"steps, {len(runs.values('seed'))} seeds: {losses}."
    )
