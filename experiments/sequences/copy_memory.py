"""Copy memory: a TCN recalls ten symbols after any delay, an LSTM of its size does not.

Bai, Kolter & Koltun, "An empirical evaluation of generic convolutional and recurrent
networks for sequence modeling", 2018 (arXiv:1803.01271), section 5.1 and figure 5: the
first ten inputs are symbols from 1 to 8, then come T - 1 zeros, then eleven nines; at
the last ten of the T + 20 positions the network must say the ten symbols again, and 0
before. Both networks have about 10,000 parameters.

    python -m launch.sweep --experiment=sequences.copy_memory --sweep=delays
    python -m launch.figures --experiment=sequences.copy_memory

Look for: the accuracy on the last ten symbols against the delay T. The TCN, whose
receptive field of 2,551 positions covers every delay here, recalls all; the LSTM falls
towards the 1/8 of guessing. The loss of a network that has learned all but the symbols
is 10 ln 8 / (T + 20), the dashed line of the second figure.

As in the authors' public code, the input is the symbol's number as it is, the optimiser
is RMSprop (torch's, with epsilon outside the square root) and no gradient is clipped:
that code clips before it computes the gradients. Unlike there, the training sequences
are new at every step, where theirs are 10,000 seen again every epoch.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data, Generated
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.state import TrainState

_SYMBOLS = 10  # How many are to be remembered, and how many values there are.


@config
class Model:
    """The network; the defaults give 9,510 parameters (TCN) and 9,692 (LSTM)."""

    name: Literal["tcn", "lstm"] = static("tcn", "Which network.")
    kernel_size: int = static(6, "Taps of a convolution of the TCN.", at_least=1)
    levels: int = static(8, "Residual blocks; the dilation doubles.", at_least=1)
    channels: int = static(10, "Channels of the TCN.", at_least=1)
    hidden: int = static(47, "Units of the LSTM.", at_least=1)


@config
class Optimizer:
    """RMSprop with the defaults of torch."""

    learning_rate: float = traced(5e-4, "Step size.", above=0)
    decay: float = traced(0.99, "Decay of the square.", at_least=0, below=1)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(4_000, "Training steps.", at_least=1)
    batch_size: int = static(32, "Sequences in a training batch.", at_least=1)
    eval_every: int = static(250, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(1_000, "Steps between checkpoints.", at_least=1)
    delay: int = static(50, "The delay T, in positions.", at_least=1)
    model: Model = nested(Model)
    optimizer: Optimizer = nested(Optimizer)


PRESETS = {
    "smoke": {
        "steps": 4,
        "eval_every": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "batch_size": 8,
        "model.levels": 2,
        "model.hidden": 8,
    },
    "paper": {"steps": 15_650, "eval_every": 313, "checkpoint_every": 3_130},
}


class ResidualBlock(nn.Module):
    """Two causal dilated convolutions with weight normalisation, and a shortcut.

    The initial weights have the norm that torch's default gives on average, which is
    what acts in the authors' code.
    """

    channels: int
    kernel_size: int
    dilation: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time inputs"]
    ) -> Float[Array, "batch time channels"]:
        """Returns the block's output; it depends on no later input."""
        y = x
        for _ in range(2):
            convolution = nn.Conv(
                self.channels,
                (self.kernel_size,),
                padding="CAUSAL",
                kernel_dilation=self.dilation,
            )
            norm = nn.initializers.constant(3**-0.5)
            y = nn.relu(nn.WeightNorm(convolution, scale_init=norm)(y))
        if x.shape[-1] != self.channels:
            small = nn.initializers.normal(0.01)
            x = nn.Dense(self.channels, kernel_init=small)(x)
        return nn.relu(x + y)


class Network(nn.Module):
    """Numbers in, a logit for each of ten symbols at every position out."""

    model: Model

    @nn.compact
    def __call__(
        self, inputs: Int[Array, "batch time"]
    ) -> Float[Array, "batch time 10"]:
        """Returns the logits."""
        x = inputs[..., None].astype(jnp.float32)
        if self.model.name == "lstm":
            x = nn.RNN(nn.OptimizedLSTMCell(self.model.hidden))(x)
        else:
            for level in range(self.model.levels):
                x = ResidualBlock(
                    self.model.channels, self.model.kernel_size, 2**level
                )(x)
        return nn.Dense(_SYMBOLS, kernel_init=nn.initializers.normal(0.01))(x)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule."""
    optimizer = config.optimizer
    return optax.rmsprop(optimizer.learning_rate, optimizer.decay, eps_in_sqrt=False)


def data(config: Config, data_dir: Any) -> Data:
    """Returns training and test sequences, made on the device."""
    return Data(
        Generated(make_batch, config.batch_size),
        {"test": Generated(make_test_batch, _TEST, eval_batches=2)},
    )


_TEST = 500


def make_batch(
    config: Config, key: jax.Array, count: int | None = None
) -> dict[str, Int[Array, "batch time"]]:
    """Makes sequences and what is to be said at each of their positions."""
    count = count or config.batch_size
    symbols = jax.random.randint(key, (count, _SYMBOLS), 1, 9)
    zeros = jnp.zeros((count, config.delay - 1), jnp.int32)
    nines = jnp.full((count, _SYMBOLS + 1), 9)
    silence = jnp.zeros((count, config.delay + _SYMBOLS), jnp.int32)
    return {
        "inputs": jnp.concatenate([symbols, zeros, nines], axis=1),
        "targets": jnp.concatenate([silence, symbols], axis=1),
    }


def make_test_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes test sequences."""
    return make_batch(config, key, _TEST)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    inputs = jnp.zeros((1, config.delay + 2 * _SYMBOLS), jnp.int32)
    return TrainState.create(
        Network(config.model).init(key, inputs), make_optimizer(config)
    )


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy of all positions."""

    def loss_fn(params):
        logits = Network(config.model).apply({"params": params}, batch["inputs"])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["targets"]
        ).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(gradients, make_optimizer(config)), {"loss": loss}


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the loss at all positions and the accuracy at the last ten."""
    logits = Network(config.model).apply({"params": state.params}, batch["inputs"])
    targets, mask = batch["targets"], batch["mask"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = (logits.argmax(-1) == targets)[:, -_SYMBOLS:]
    return {
        "loss": Mean.of(loss.mean(1), mask),
        "accuracy": Mean.of(right.astype(jnp.float32).mean(1), mask),
    }


MAIN_METRIC = "test/accuracy"

SWEEPS = {
    "delays": product(
        **{"model.name": ("tcn", "lstm"), "delay": (5, 10, 20, 50, 100)},
        seed=range(3),
    ),
}

_LOOKS = {"tcn": ("TCN", "C0"), "lstm": ("LSTM", "C3")}


@figure(sweep="delays")
def accuracy(runs: Runs) -> Figure:
    """Accuracy on the last ten symbols at the end, against the delay."""
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, group in runs.by("model.name").items():
        label, color = _LOOKS[name]
        delays = group.values("delay")
        finals = [group.where(delay=delay).final(MAIN_METRIC) for delay in delays]
        ax.plot(delays, [np.nanmean(f) for f in finals], color=color, label=label)
        for delay, values in zip(delays, finals, strict=True):
            ax.plot([delay] * len(values), values, "o", color=color, ms=4, alpha=0.6)
    ax.axhline(1 / 8, color="grey", ls="--", lw=1, label="guessing")
    ax.set(xscale="log", xlabel="delay T", ylabel="accuracy on the last ten symbols")
    ax.set(ylim=(0, 1.03), xticks=delays, xticklabels=delays)
    ax.minorticks_off()
    ax.set_title(f"after {runs[0].config['steps']:,} steps (a point a seed)")
    ax.legend()
    return fig


@figure(sweep="delays")
def loss(runs: Runs) -> Figure:
    """Test loss over training for each delay; dashed: all but the symbols learned."""
    delays = runs.values("delay")
    fig, axes = plt.subplots(
        1,
        len(delays),
        figsize=(2.6 * len(delays), 3),
        layout="constrained",
        sharey=True,
    )
    for ax, delay in zip(np.atleast_1d(axes), delays, strict=True):
        for name, group in runs.where(delay=delay).by("model.name").items():
            label, color = _LOOKS[name]
            steps, values = group.curves("test/loss")
            ax.plot(steps, values.mean(0), color=color, label=label)
            ax.fill_between(
                steps, values.min(0), values.max(0), color=color, alpha=0.2, lw=0
            )
        ax.axhline(10 * np.log(8) / (delay + 20), color="grey", ls="--", lw=1)
        ax.set(title=f"T = {delay}", xlabel="step", yscale="log")
    np.atleast_1d(axes)[0].set_ylabel("test loss (mean and range over seeds)")
    np.atleast_1d(axes)[0].legend()
    return fig


FIGURES = {"accuracy": accuracy, "loss": loss}


def summary(runs: Runs) -> str:
    """Returns the accuracy on the last ten symbols of both networks at each delay."""
    parts = []
    for delay, group in runs.by("delay").items():
        tcn, lstm = (
            mean_and_spread(
                group.where(**{"model.name": n}).final(MAIN_METRIC),
                scale=100,
                unit=" %",
            )
            for n in ("tcn", "lstm")
        )
        parts.append(f"T = {delay}: TCN {tcn}, LSTM {lstm}")
    return (
        f"Accuracy on the last ten symbols after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {'; '.join(parts)}."
    )
