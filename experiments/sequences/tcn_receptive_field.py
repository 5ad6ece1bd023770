r"""Where a TCN's memory ends: at its receptive field, and not one position later.

In each sequence one symbol comes T steps before the last position, at the same place in
all; the rest is weak noise. The network must say at the end which symbol it was. An
output of a TCN with L blocks, each of two convolutions with k taps, depends on the last
1 + 2 (k − 1) (2^L − 1) inputs, T = 0 being the first of them; the dilations are those
of Bai, Kolter & Koltun, 2018 (arXiv:1803.01271), which gives the reach of one layer.
With two taps three blocks see 15 inputs: T = 14 is the longest delay, 15 is too long.

    python -m launch.sweep --experiment=sequences.tcn_receptive_field \
        --sweep=delays --executor=vmap
    python -m launch.figures --experiment=sequences.tcn_receptive_field

Look for: for each depth the accuracy is 1 up to T one below the receptive field, and
that of guessing from there on, since the output does not depend on the symbol at all.
(One of five seeds of the deepest network did not learn its longest delay in time.) The
delays swept are the last that each depth can bridge and the first it cannot.

The farthest input in sight reaches the output on one path alone, through the first tap
of every convolution. From the initial weights of the TCN's authors, which shrink what
passes at each, this path is not learned in so few steps; so all kernels here begin √6
times as large, with the variance 2 / inputs of He et al., 2015 (arXiv:1502.01852). The
noise is weak because a strong one hides that path for longer than this trains. The
settings were looked for with one seed until the deepest network bridged its longest
delay: with three taps, or step sizes from 0.005 on, some depths did not. There is no
published setting: `--preset=paper` trains wider networks, longer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data, Generated
from dl_core.errors import UserError
from dl_core.models.sequence import Network, SequenceModel
from dl_core.nn.temporal import receptive_field
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean, classification
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(400, "Training steps.", at_least=1)
    batch_size: int = static(32, "Sequences in a training batch.", at_least=1)
    eval_every: int = static(100, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(400, "Steps between checkpoints.", at_least=1)
    length: int = static(128, "Positions in a sequence.", at_least=1)
    symbols: int = static(4, "How many different symbols there are.", at_least=2)
    delay: int = traced(
        14, "The delay T: steps from the symbol to the last position.", at_least=0
    )
    noise: float = traced(
        0.02, "Standard deviation of what is at all other positions.", at_least=0
    )
    model: Network = nested(Network, kernel_size=2, levels=4, channels=16)
    optimizer: Optimizer = nested(Optimizer, learning_rate=1e-3)


PRESETS = {
    "smoke": {"steps": 4, "batch_size": 8, "model.channels": 4}
    | {"eval_every": 2, "log_every": 2, "checkpoint_every": 2},
    "paper": {"steps": 4_000, "eval_every": 500, "checkpoint_every": 2_000}
    | {"model.channels": 32},
}

_TEST = 1_000


def make_model(config: Config) -> SequenceModel:
    """Returns the network, which says a symbol at the last position."""
    return SequenceModel(config.model, config.symbols)


def data(config: Config, data_dir: Any) -> Data:
    """Returns training and test sequences, made on the device."""
    if config.delay >= config.length:
        raise UserError(
            f"--config.delay={config.delay}: expected a number below the sequences' "
            f"length, {config.length} (--config.length)"
        )
    return Data(
        Generated(make_batch, config.batch_size),
        {"test": Generated(make_test_batch, _TEST)},
    )


def make_batch(
    config: Config, key: jax.Array, count: int | None = None
) -> dict[str, Array]:
    """Makes sequences "batch length symbols" of noise with a one-hot symbol in each."""
    symbol_key, noise_key = jax.random.split(key)
    count = count or config.batch_size
    targets = jax.random.randint(symbol_key, (count,), 0, config.symbols)
    symbols = jax.nn.one_hot(targets, config.symbols)[:, None]
    shape = (count, config.length, config.symbols)
    noise = config.noise * jax.random.normal(noise_key, shape)
    steps_to_last = jnp.arange(config.length)[::-1, None]
    inputs = jnp.where(steps_to_last == config.delay, symbols, noise)
    return {"inputs": inputs, "targets": targets}


def make_test_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes test sequences."""
    return make_batch(config, key, _TEST)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training, its kernels' norms √6 times larger.

    They begin with torch's default variance, 1 / (3 inputs); He's is 2 / inputs.
    """
    inputs = jnp.zeros((1, config.length, config.symbols))
    variables = make_model(config).init(key, inputs, train=False, last_only=True)

    def enlarged(path, x):
        return x * 6**0.5 if path[-1].key == "scale" else x

    variables = jax.tree_util.tree_map_with_path(enlarged, variables)
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
            logits, batch["targets"]
        ).mean()

    return state.descend(loss, config.optimizer.make())


def predict(
    config: Config, state: TrainState, inputs: Float[Array, "batch length symbols"]
) -> Float[Array, "batch symbols"]:
    """Returns the logits, as in evaluation."""
    variables = {"params": state.params}
    return make_model(config).apply(variables, inputs, train=False, last_only=True)[0]


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the loss and the accuracy."""
    logits = predict(config, state, batch["inputs"])
    return classification(logits, batch["targets"], batch["mask"])


MAIN_METRIC = "test/accuracy"
_LEVELS = "model.levels"

SWEEPS = {
    "delays": product(
        delay=(14, 15, 30, 31, 62, 63, 126, 127),
        seed=range(5),
        **{_LEVELS: (3, 4, 5, 6)},
    ),
}


def _field(runs: Runs) -> int:
    """Returns the receptive field of the networks of some runs, all of one depth."""
    return receptive_field(runs[0].config["model.kernel_size"], runs.values(_LEVELS)[0])


def bridged(runs: Runs) -> list[int]:
    """Returns for each seed the longest delay bridged, -1 where none was.

    A delay is bridged where the accuracy is more than midway from guessing to 1.
    """
    midway = (1 + 1 / runs[0].config["symbols"]) / 2
    delays = {
        seed: [run.config["delay"] for run in same if run.final(MAIN_METRIC) > midway]
        for seed, same in runs.by("seed").items()
    }
    return [max(found, default=-1) for found in delays.values()]


@figure(sweep="delays")
def accuracy(runs: Runs) -> Figure:
    """Test accuracy against the delay for each depth; dashed: the receptive field."""
    fig, ax = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    delays = sorted(runs.values("delay"))
    for number, (levels, group) in enumerate(runs.by(_LEVELS).items()):
        color, field = f"C{number}", _field(group)
        finals = np.stack([group.where(delay=d).final(MAIN_METRIC) for d in delays])
        mean = np.ma.masked_invalid(finals).mean(1)  # Of those that did not diverge.
        label = f"{levels} blocks, receptive field {field}"
        ax.plot(delays, mean, color=color, label=label)
        ax.plot(delays, finals, "o", color=color, ms=4, alpha=0.5)
        # Between the last delay in sight and the first that is not.
        ax.axvline(field - 0.5, color=color, ls="--", lw=1)
    guessing = 1 / runs[0].config["symbols"]
    ax.axhline(guessing, color="grey", ls="--", lw=1, label="guessing")
    ax.set(xscale="log", xlabel="delay T, in positions", ylabel="test accuracy")
    ax.set(ylim=(0, 1.05), xticks=delays[::2], xticklabels=delays[::2])
    ax.minorticks_off()
    ax.set_title(
        f"after {runs[0].config['steps']:,} steps (line: mean, a point a seed)"
    )
    fig.legend(loc="outside right upper", fontsize=9)
    return fig


@figure(sweep="delays")
def reach(runs: Runs) -> Figure:
    """The receptive field against depth, in theory and as the accuracy shows it."""
    fig, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    groups = runs.by(_LEVELS)
    depths = list(groups)
    fields = [_field(group) for group in groups.values()]
    ax.plot(depths, fields, "s-", color="black", mfc="none", ms=9, label="theory")
    for levels, group in groups.items():
        measured = [delay + 1 for delay in bridged(group) if delay >= 0]
        label = (
            "measured: longest delay bridged, plus 1" if levels == depths[0] else None
        )
        ax.plot([levels] * len(measured), measured, "o", color="C3", ms=4, label=label)
    ax.set(xlabel="blocks of the TCN", ylabel="receptive field, in positions")
    ax.set(yscale="log", xticks=depths, yticks=fields, yticklabels=fields)
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend()
    return fig


FIGURES = {"accuracy": accuracy, "reach": reach}


def summary(runs: Runs) -> str:
    """Returns the accuracy at the last delay in sight and at the next, by depth."""
    parts = []
    for levels, group in runs.by(_LEVELS).items():
        field = _field(group)
        seen, unseen = (
            mean_and_spread(
                group.where(delay=delay).final(MAIN_METRIC), scale=100, unit=" %"
            )
            for delay in (field - 1, field)
        )
        parts.append(f"{levels} blocks {seen} at T = {field - 1}, {unseen} at {field}")
    return (
        f"Test accuracy after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds, guessing being right in "
        f"{100 / runs[0].config['symbols']:.0f} %: {'; '.join(parts)}."
    )
