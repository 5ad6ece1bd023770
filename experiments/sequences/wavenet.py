"""WaveNet: what a longer receptive field buys, and what cached generation saves.

van den Oord et al., "WaveNet: a generative model for raw audio", 2016
(arXiv:1609.03499): gated causal convolutions whose dilation doubles from layer to layer
give the probabilities of the next µ-law level of a signal, given the last R samples,
the receptive field. Paine et al., "Fast WaveNet generation algorithm", 2016
(arXiv:1611.09482): to generate a sample, each layer needs one new output alone if what
it read before is kept.

    python -m launch.sweep --experiment=sequences.wavenet --sweep=depths \\
      --executor=vmap
    python -m launch.sweep --experiment=sequences.wavenet --sweep=generation \\
      --executor=vmap
    python -m launch.figures --experiment=sequences.wavenet

The signal is synthesised: noise that rings at one frequency and is echoed twice, after
`signal.delays` samples. It is a Gaussian process, so the best prediction from R samples
is known: it is linear, and no network of that receptive field can, on average, code a
sample in fewer bits than it needs (the dashed line).

Look for: bits per sample against R. They fall once R covers the first echo, and again
once it covers both, 112 samples by default; a longer field buys little more. The
networks come near the bound where they see the ringing alone, or the first echo; where
both are in sight half a bit remains to be learned after so short a training. Sound
generated with R = 9 has lost its correlation where the signal still has its own.

Time per sample: cached, it grows with the number of layers, that is with log R; naive,
where each sample runs the network over the last R again, with R log R. Both are
measured on one sequence, naive as calls of one compiled function (XLA's CPU backend
runs convolutions inside loops many times slower), cached as a scan. They depend on the
machine and on what else it does, so two runs differ in them, and in nothing else.

Not as in the paper: no sound was recorded, so nobody can be asked how natural it is
(its mean opinion scores, of speech that is not public); the signal enters as amplitude.
The paper preset has its layers, dilations 1 to 512 three times, and longer echoes; it
does not say how many channels it has, so their number is ours.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static
from dl_core.data.batches import Data, Generated
from dl_core.data.echoes import (
    LOUDNESS,
    RINGING,
    Signal,
    autocorrelation,
    least_bits,
    recursion,
    sound,
)
from dl_core.errors import UserError
from dl_core.nn.streaming import init_stream, step
from dl_core.nn.temporal import WaveNet
from dl_core.ops import mu_law
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import FallingAdam
from dl_core.train.state import TrainState


@config
class Network:
    """The network."""

    levels: int = static(9, "Layers of a stack; the dilation doubles.", at_least=1)
    stacks: int = static(1, "How often the dilations are gone through.", at_least=1)
    channels: int = static(16, "Channels from layer to layer.", at_least=1)
    skip_channels: int = static(32, "Channels of the skip connections.", at_least=1)


@config
class Timing:
    """How the generation of one sequence is timed: the best of three."""

    run: bool = static(False, "Whether it is, at the end; two runs then differ.")
    naive: int = static(20, "Samples that are generated naively.", at_least=1)
    cached: int = static(2_000, "Samples that are generated from a cache.", at_least=1)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(500, "Training steps.", at_least=1)
    batch_size: int = static(8, "Sequences in a training batch.", at_least=1)
    eval_every: int = static(500, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(500, "Steps between checkpoints.", at_least=1)
    generated: int = static(16, "Sequences that are generated.", at_least=1)
    model: Network = nested(Network)
    signal: Signal = nested(Signal)
    optimizer: FallingAdam = nested(
        FallingAdam, learning_rate=5e-3, beta1=0.9, falls=True
    )
    timing: Timing = nested(Timing)

    @property
    def network(self) -> WaveNet:
        """The network, which has an output for each level."""
        model = self.model
        dilations = tuple(2**level for level in range(model.levels)) * model.stacks
        return WaveNet(
            self.signal.levels, model.channels, model.skip_channels, dilations
        )


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 2,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "generated": 2,
        "model.channels": 4,
        "model.skip_channels": 4,
        "signal.length": 256,
        "signal.levels": 16,
        "timing.naive": 2,
        "timing.cached": 10,
    },
    "paper": {
        "steps": 100_000,
        "log_every": 100,
        "eval_every": 10_000,
        "checkpoint_every": 10_000,
        "model.levels": 10,
        "model.stacks": 3,
        "model.channels": 64,
        "model.skip_channels": 256,
        "signal.length": 8_192,
        "signal.delays": (80, 720),
        "optimizer.learning_rate": 1e-3,
    },
}


def make_batch(
    config: Config, key: jax.Array, count: int | None = None
) -> dict[str, Array]:
    """Makes sequences, and their levels."""
    x = sound(config.signal, key, count or config.batch_size)
    return {"sound": x, "codes": mu_law.encode(x, config.signal.levels)}


_TEST = 32


def make_test_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes test sequences."""
    return make_batch(config, key, _TEST)


def data(config: Config, data_dir: Any) -> Data:
    """Returns training and test sequences, made on the device."""
    signal, memory = config.signal, len(recursion(config.signal))
    if signal.scored < memory:
        raise UserError(
            f"--config.signal.length={signal.length}: expected at least {2 * memory}, "
            f"twice the {memory} samples that the signal remembers"
        )
    return Data(
        Generated(make_batch, config.batch_size),
        {"test": Generated(make_test_batch, _TEST, eval_batches=4)},
    )


def amplitudes(
    codes: Int[Array, "batch time"], levels: int
) -> Float[Array, "batch time 1"]:
    """Returns what the network reads: the levels' amplitudes, of variance 1."""
    return mu_law.decode(codes, levels)[..., None] / LOUDNESS


def nats(
    network: WaveNet, params: PyTree, codes: Int[Array, "batch time"]
) -> Float[Array, "batch time"]:
    """Returns −ln of each sample's probability given the samples before it."""
    x = amplitudes(codes, network.features)
    past = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    logits = network.apply({"params": params}, past)
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    variables = config.network.init(key, jnp.zeros((1, config.signal.length, 1)))
    return TrainState.create(variables, config.optimizer.make(config.steps))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy, in nats."""

    def loss(params):
        return nats(config.network, params, batch["codes"]).mean()

    return state.descend(loss, config.optimizer.make(config.steps))


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the bits per sample: the network's, and the least from its field."""
    network, signal, codes = config.network, config.signal, batch["codes"]
    bits = nats(network, state.params, codes)[:, signal.scored :] / math.log(2)
    least = least_bits(signal, network.receptive_field, batch["sound"], codes)
    return {
        "bits": Mean.of(bits.mean(1), batch["mask"]),
        "least_bits": Mean.of(least.mean(1), batch["mask"]),
    }


def generate(
    network: WaveNet, params: PyTree, key: jax.Array, count: int, length: int
) -> Int[Array, "count length"]:
    """Returns `count` sequences of levels, drawn sample by sample after silence."""
    variables = {"params": params}

    def one(carry, key):
        state, logits = step(network, variables, *carry)
        codes = jax.random.categorical(key, logits)
        return (state, amplitudes(codes[:, None], network.features)[:, 0]), codes

    silence = jnp.zeros((count, 1))
    carry = init_stream(network, variables, silence), silence
    _, codes = jax.lax.scan(one, carry, jax.random.split(key, length))
    return codes.swapaxes(0, 1)


def next_window(
    network: WaveNet,
    params: PyTree,
    key: jax.Array,
    window: Float[Array, "count field 1"],
) -> Float[Array, "count field 1"]:
    """Returns the last samples after one more, the network run over all of them."""
    logits = network.apply({"params": params}, window)[:, -1]
    codes = jax.random.categorical(key, logits)[:, None]
    new = amplitudes(codes, network.features)
    return jnp.concatenate([window[:, 1:], new], axis=1)


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Generates sequences, beside as many of the signal."""
    signal, count = config.signal, config.generated
    # The first half is left out: the echoes are yet to build up.
    codes = generate(config.network, state.params, key, count, 2 * signal.length)
    real = mu_law.encode(sound(signal, key, count), signal.levels)
    return {
        "step": state.step,
        "generated": mu_law.decode(codes[:, signal.length :], signal.levels),
        "real": mu_law.decode(real, signal.levels),
    }


def score(config: Config, observed: Mapping[str, Any]) -> dict[str, float]:
    """Times the generation of one sequence at the end, where that is asked for.

    The parameters are new ones, on whose values the time does not depend.

    Returns:
      Samples a second, naive and cached, and their ratio.
    """
    network, timing = config.network, config.timing
    if not timing.run or observed["step"] < config.steps:
        return {}
    key, field = jax.random.key(0), network.receptive_field
    params = jax.jit(network.init)(key, jnp.zeros((1, field, 1)))["params"]

    def cached():
        return _generate(network, params, key, 1, timing.cached)

    def naive():
        window = jnp.zeros((1, field, 1))
        for _ in range(timing.naive):
            window = _next_window(network, params, key, window)
        return window

    slow, fast = timing.naive / _seconds(naive), timing.cached / _seconds(cached)
    return {"naive": slow, "cached": fast, "speedup": fast / slow}


_generate = jax.jit(generate, static_argnums=(0, 3, 4))
_next_window = jax.jit(next_window, static_argnums=0)


def _seconds(run: Callable[[], Array]) -> float:
    """Returns how long a call takes, the best of three after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


MAIN_METRIC = "test/bits"
_LEAST = "test/least_bits"
_LEVELS = "model.levels"

SWEEPS = {
    "depths": product(**{_LEVELS: (3, 5, 7, 9), "seed": range(5)}),
    # Untrained networks, which are as slow.
    "generation": product(
        **{
            "steps": (1,),
            "generated": (1,),
            "timing.run": (True,),
            _LEVELS: (3, 5, 7, 9, 11),
            "seed": range(5),
        }
    ),
}


def field_of(runs: Runs) -> int:
    """Returns the receptive field of the networks of some runs."""
    config = runs[0].config
    model = Network(levels=config[_LEVELS], stacks=config["model.stacks"])
    return Config(model=model).network.receptive_field


@figure(sweep="depths")
def depths(runs: Runs) -> Figure:
    """Bits per sample against the receptive field, beside the least possible."""
    groups = {field_of(group): group for group in runs.by(_LEVELS).values()}
    fig, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    finals = [group.final(MAIN_METRIC) for group in groups.values()]
    _draw(ax, list(groups), finals, color="C0", label="WaveNet")
    least = [group.final(_LEAST) for group in groups.values()]
    ax.plot(list(groups), _means(least), "k--", lw=1, label="least possible")
    for reach in len(RINGING) + np.cumsum(sorted(runs[0].config["signal.delays"])):
        ax.axvline(reach, color="grey", ls=":", lw=1)
    layers = [f"{r}\n{g[0].config[_LEVELS]}" for r, g in groups.items()]
    ax.set(xscale="log", xticks=list(groups), xticklabels=layers)
    ax.minorticks_off()
    ax.set(xlabel="receptive field in samples\nlevels of dilation")
    ax.set(ylabel="test bits per sample")
    ax.set_title(f"after {runs[0].config['steps']:,} steps (a point a seed)")
    ax.legend(loc="upper right")
    return fig


@figure(sweep="depths")
def waveforms(runs: Runs) -> Figure:
    """Generated sound beside the signal, and the autocorrelation of both."""
    rows, delays = [], runs[0].config["signal.delays"]
    for group in runs.by(_LEVELS).values():
        seen = [run.last_artifacts() for run in group]
        good = [x for x, run in zip(seen, group, strict=True) if not run.diverged]
        if good:
            title = f"generated, R = {field_of(group)}"
            rows.append((title, np.concatenate([x["generated"] for x in good])))
    real = np.concatenate([x["real"] for x in seen])
    rows.insert(0, ("signal", real))
    fig, axes = plt.subplots(
        len(rows),
        2,
        figsize=(10, 1.5 * len(rows)),
        layout="constrained",
        sharex="col",
        sharey="col",
        squeeze=False,
        width_ratios=(2, 1),
    )
    lags = np.arange(sum(delays) + 20)
    for (wave, correlation), (title, x) in zip(axes, rows, strict=True):
        color = "k" if x is real else "C0"
        wave.plot(x[0, :256], color=color, lw=1)
        wave.set_title(title, loc="left", fontsize="medium")
        correlation.plot(lags, autocorrelation(real, lags), color="0.7", lw=2.5)
        correlation.plot(lags, autocorrelation(x, lags), color=color, lw=1)
    axes[0, 0].set_ylabel("amplitude")
    axes[0, 1].set_title("autocorrelation (grey: the signal's)", fontsize="medium")
    axes[-1, 0].set_xlabel("sample")
    axes[-1, 1].set(xlabel="lag in samples", xticks=(0, *delays, sum(delays)))
    return fig


@figure(sweep="generation")
def generation(runs: Runs) -> Figure:
    """Time per generated sample, naive and cached, against the receptive field."""
    groups = {field_of(group): group for group in runs.by(_LEVELS).values()}
    fig, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for name, color in (("naive", "C3"), ("cached", "C0")):
        times = [1e6 / group.final(f"observed/{name}") for group in groups.values()]
        _draw(ax, list(groups), times, color=color, label=name)
    speedups = _means([group.final("observed/speedup") for group in groups.values()])
    for reach, speedup in zip(groups, speedups, strict=True):
        if np.isfinite(speedup):
            place = ax.get_xaxis_transform()
            ax.text(reach, 1.01, f"×{speedup:.0f}", ha="center", transform=place)
    ax.set(xscale="log", yscale="log", xticks=list(groups), xticklabels=list(groups))
    ax.tick_params(axis="x", which="minor", bottom=False)
    ax.set(xlabel="receptive field in samples", ylabel="time per sample in µs")
    ax.set_title("one sequence (a point a run; above: naive over cached)", pad=18)
    ax.grid(alpha=0.3, which="both")
    ax.legend()
    return fig


FIGURES = {"depths": depths, "waveforms": waveforms, "generation": generation}


def summary(runs: Runs) -> str:
    """Returns the bits per sample, or the gain in speed, at each receptive field."""
    parts, timed = [], runs[0].config["timing.run"]
    for group in runs.by(_LEVELS).values():
        if timed:
            found = mean_and_spread(group.final("observed/speedup"), unit=" times")
            rate = mean_and_spread(group.final("observed/cached"), scale=1e-3)
            found += f" ({rate} thousand samples a second)"
        else:
            found = mean_and_spread(group.final(MAIN_METRIC))
            found += f" (least possible {_means([group.final(_LEAST)])[0]:.3f})"
        parts.append(f"{field_of(group)}: {found}")
    what = (
        "Speed of cached generation over naive"
        if timed
        else f"Test bits per sample after {runs[0].config['steps']:,} steps"
    )
    seeds = len(runs.values("seed"))
    return f"{what} by receptive field, {seeds} seeds: {'; '.join(parts)}."


def _means(values: Sequence[Float[np.ndarray, " runs"]]) -> list[float]:
    """Returns the mean of each over the runs that did not diverge, NaN for none."""
    finite = [v[np.isfinite(v)] for v in values]
    return [v.mean() if len(v) else np.nan for v in finite]


def _draw(
    ax: Axes, x: list[int], finals: list[np.ndarray], *, color: str, label: str
) -> None:
    """Draws every run's number as a point, and a line through their means."""
    ax.plot(x, _means(finals), color=color, label=label)
    for place, values in zip(x, finals, strict=True):
        ax.plot([place] * len(values), values, "o", color=color, ms=4, alpha=0.6)
