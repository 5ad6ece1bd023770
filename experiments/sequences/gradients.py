"""How gradients vanish or explode on their way back, and what clipping them does.

Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks",
2013 (arXiv:1211.5063). The task is the adding problem, T = 100: the loss is at the last
step, what it depends on lies up to T - 1 steps back.

    python -m launch.sweep --experiment=sequences.gradients --sweep=networks \
        --executor=vmap
    python -m launch.sweep --experiment=sequences.gradients --sweep=clipping \
        --executor=vmap
    python -m launch.sweep --experiment=sequences.gradients --sweep=gains \
        --executor=vmap
    python -m launch.figures --experiment=sequences.gradients

Two gradients of a sequence's loss are measured at every step t: that with respect to
the state that a recurrent network carries from t to t + 1 (of an LSTM: the cell's and
the output together), and that with respect to the input at t, which a TCN has too,
having no state. Norms are means over 64 sequences, the same for all runs, and are drawn
as shares of the norm at the last step, so that the size of the error cancels. An
exponential is a straight line; its growth in a step, fitted to all distances by least
squares of the logarithm, is 1 where nothing vanishes.

Look for: in `networks` the slopes before and after training: the gradients of GRU and
LSTM vanish at first, and where they have learned the task they no longer do; the RNN
does not learn it, and its gradients end vanishing sooner than before. In `gains` the
recurrent matrix of an untrained RNN is an orthogonal one times a gain, so all its
singular values are the gain, and the gradient grows by no more than that in a step:
below 1 it must vanish, above 1 it may explode, but where the tanh saturates it does
not. In `clipping` that gain is 2 and the RNN goes down the plain gradient, which is not
the picture of the paper: unclipped, one of five seeds diverges and the others are
thrown at once to where gradients are small; a threshold δ of 10 spares the one and
takes the others there more slowly; 0.1 and 1 leave all where gradients explode, far
above the loss of answering 1.

`--preset=paper` is the adding problem as in Bai, Kolter & Koltun, 2018
(arXiv:1803.01271): T = 600, 70,000 parameters, ten epochs of 50,000 sequences.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, PyTree
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.adding import VARIANCE, adding_problem
from dl_core.data.batches import Data, Generated
from dl_core.models.sequence import COLORS, NAMES, Network, SequenceModel
from dl_core.ops.gradient_flow import growth, norm, state_gradients
from dl_core.pictures import seed_points
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(2_000, "Training steps.", at_least=1)
    batch_size: int = static(32, "Sequences in a training batch.", at_least=1)
    log_every: int = static(10, "Steps between rows of train metrics.", at_least=1)
    eval_every: int = static(500, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(500, "Steps between checkpoints.", at_least=1)
    length: int = static(100, "Length T of a sequence.", at_least=2)
    gain: float = traced(
        1.0, "What the initial recurrent matrices, orthogonal, are times.", above=0
    )
    model: Network = nested(Network, kernel_size=6, levels=5, channels=12)
    optimizer: Optimizer = nested(Optimizer)


PRESETS = {
    "smoke": {
        "steps": 4,
        "eval_every": 2,
        "log_every": 1,
        "checkpoint_every": 2,
        "batch_size": 8,
        "length": 12,
        "model.levels": 2,
        "model.channels": 4,
    },
    "paper": {
        "steps": 15_630,
        "eval_every": 1_563,
        "checkpoint_every": 1_563,
        "length": 600,
        "model.kernel_size": 8,
        "model.levels": 8,
        "model.channels": 24,
    },
}
_TEST, _MEASURED = 500, 64


def data(config: Config, data_dir: Any) -> Data:
    """Returns training and test sequences, made on the device."""
    return Data(
        Generated(make_batch, config.batch_size),
        {"test": Generated(make_test_batch, _TEST, eval_batches=2)},
    )


def make_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes training sequences."""
    return adding_problem(key, config.batch_size, config.length)


def make_test_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes test sequences."""
    return adding_problem(key, _TEST, config.length)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training, recurrent matrices scaled."""
    inputs = jnp.zeros((1, config.length, 2))
    params = _model(config).init(key, inputs, train=False)["params"]

    def scaled(path, leaf):
        layer = path[-2].key
        return config.gain * leaf if layer[0] == "h" and leaf.ndim == 2 else leaf

    network = jax.tree_util.tree_map_with_path(scaled, params["network"])
    params = {**params, "network": network}
    return TrainState.create({"params": params}, config.optimizer.make())


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean squared error."""

    def loss(params):
        sums = predict(config, params, batch["inputs"], train=True, key=key)
        return ((sums - batch["targets"]) ** 2).mean()

    return state.descend(loss, config.optimizer.make())


def predict(
    config: Config,
    params: PyTree,
    inputs: Float[Array, "batch time 2"],
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> Float[Array, " batch"]:
    """Returns what the network takes for the sums."""
    rngs = {"dropout": key} if train else None
    outputs, _ = _model(config).apply(
        {"params": params}, inputs, train=train, last_only=True, rngs=rngs
    )
    return outputs[:, 0]


def _model(config: Config) -> SequenceModel:
    return SequenceModel(config.model, outputs=1)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the squared error."""
    sums = predict(config, state.params, batch["inputs"])
    return {"loss": Mean.of((sums - batch["targets"]) ** 2, batch["mask"])}


def observe(
    config: Config, state: TrainState, key: jax.Array
) -> dict[str, Float[Array, " distances"]]:
    """Measures the mean norm of a sequence's gradients, from distance 0 to T - 1."""
    batch = adding_problem(jax.random.key(0), _MEASURED, config.length)
    gradients = {"input": input_gradients(config, state.params, **batch)}
    if config.model.name != "tcn":
        gradients["state"] = carry_gradients(config, state.params, **batch)
    return {k: norm(x).mean(0)[::-1] for k, x in gradients.items()}


def input_gradients(
    config: Config,
    params: PyTree,
    inputs: Float[Array, "batch time 2"],
    targets: Float[Array, " batch"],
) -> Float[Array, "batch time 2"]:
    """Returns the gradient of each sequence's loss with respect to its inputs."""

    def loss(inputs):
        return ((predict(config, params, inputs) - targets) ** 2).sum()

    return jax.grad(loss)(inputs)


def carry_gradients(
    config: Config,
    params: PyTree,
    inputs: Float[Array, "batch time 2"],
    targets: Float[Array, " batch"],
) -> Float[Array, "batch time numbers"]:
    """Returns the gradient of each sequence's loss with respect to its states."""
    model, head = _model(config), nn.Dense(1)

    def carry_after(x, carry=None):
        variables = {"params": params}
        return model.apply(variables, x[:, None], initial=carry, train=False)[1][
            "carry"
        ]

    def loss(carry):
        last_output = jax.tree.leaves(carry)[-1]  # An LSTM's carry is (c, h).
        sums = head.apply({"params": params["head"]}, last_output)[:, 0]
        return ((sums - targets) ** 2).sum()

    steps = inputs.swapaxes(0, 1)
    shapes = jax.eval_shape(carry_after, steps[0])
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    found = state_gradients(lambda c, x: carry_after(x, c), start, steps, loss)
    return jnp.concatenate(jax.tree.leaves(found), axis=-1).swapaxes(0, 1)


def score(config: Config, observed: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the factors by which the gradients grow in a step back."""
    return {f"{name}_growth": growth(norms) for name, norms in observed.items()}


MAIN_METRIC = "test/loss"
_NAME, _CLIP = "model.name", "optimizer.clip"
SWEEPS = {
    "networks": product(**{_NAME: tuple(NAMES), "seed": range(5)}),
    "clipping": product(
        **{
            _NAME: ("rnn",),
            "gain": (2.0,),
            "optimizer.name": ("sgd",),
            "optimizer.learning_rate": (0.01,),
            _CLIP: (0.0, 0.1, 1.0, 10.0),
            "seed": range(5),
        }
    ),
    "gains": product(
        **{
            _NAME: ("rnn",),
            # One step that changes nothing: what is measured is the initial network.
            "steps": (1,),
            "optimizer.name": ("sgd",),
            "optimizer.learning_rate": (1e-9,),
            _CLIP: (1.0,),
            "gain": (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0),
            "seed": range(5),
        },
    ),
}
_WHAT = ("state", "input")


@figure(sweep="networks")
def distance(runs: Runs) -> Figure:
    """Norms of the gradients against the distance from the loss, for each network."""
    fig, axes = plt.subplots(
        2, 2, figsize=(10, 7), layout="constrained", sharex=True, sharey="row"
    )
    for name, group in runs.by(_NAME).items():
        seen = [list(run.artifacts().values()) for run in group if not run.diverged]
        for row, what in zip(axes, _WHAT, strict=True):
            for ax, moment in zip(row, (0, -1), strict=True):
                norms = [s[moment][what] for s in seen if s and what in s[moment]]
                _band(ax, norms, COLORS[name], NAMES[name])
    for row, what in zip(axes, _WHAT, strict=True):
        row[0].set_ylabel(f"gradient w.r.t. the {what}\n(share of that at distance 0)")
        row[1].legend()
        for ax in row:
            ax.axhline(1, color="grey", ls="--", lw=1)
            ax.set_yscale("log")
    for column, when in zip(axes.T, ("before", "after"), strict=True):
        column[0].set_title(f"{when} training")
        column[1].set_xlabel("distance from the loss, in steps")
    fig.suptitle("geometric mean and range over seeds")
    return fig


def _band(ax: plt.Axes, norms: list[np.ndarray], color: str, label: str) -> None:
    """Draws the mean and the range of curves as shares of where they begin."""
    shares = [np.where(x > 0, x, np.nan) / x[0] for x in norms]
    if not shares:
        return
    ax.plot(np.exp(np.mean(np.log(shares), axis=0)), color=color, label=label)
    ends = np.min(shares, axis=0), np.max(shares, axis=0)
    ax.fill_between(np.arange(len(ends[0])), *ends, color=color, alpha=0.2, lw=0)


_SHADES = ("C7", "C9", "C0", "C4")


def _threshold(clip: float) -> str:
    return f"with δ = {clip:g}" if clip else "unclipped"


@figure(sweep="clipping")
def spikes(runs: Runs) -> Figure:
    """Training loss and norm of the gradient, of one seed for each threshold."""
    fig, axes = plt.subplots(2, 1, figsize=(8, 6.4), layout="constrained", sharex=True)
    seed = runs.values("seed")[0]
    for run, color in zip(runs.where(seed=seed), _SHADES, strict=True):
        for ax, metric in zip(axes, ("train/loss", "train/gradient_norm"), strict=True):
            rows = [row for row in run.rows if metric in row]
            steps, values = [r["step"] for r in rows], [r[metric] for r in rows]
            label = _threshold(run.config[_CLIP])
            ax.plot(steps, values, color=color, lw=0.8, label=label)
    axes[0].axhline(VARIANCE, color="grey", ls="--", lw=1)
    axes[0].set(yscale="log", ylabel="training loss (dashed: answering 1)")
    axes[1].set(yscale="log", ylabel="gradient's norm before clipping", xlabel="step")
    axes[0].legend(fontsize=8)
    rate, gain = (runs[0].config[k] for k in ("optimizer.learning_rate", "gain"))
    fig.suptitle(f"RNN, gain {gain:g}, gradient descent by {rate:g}, seed {seed}")
    return fig


@figure(sweep="clipping")
def thresholds(runs: Runs) -> Figure:
    """Test loss at the end against the threshold, seed by seed."""
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    groups = runs.by(_CLIP)
    for place, (group, color) in enumerate(zip(groups.values(), _SHADES, strict=True)):
        seed_points(ax, place, group.final(MAIN_METRIC), color, "_")
    ax.axhline(VARIANCE, color="grey", ls="--", lw=1, label="answering 1")
    ax.set(
        yscale="log", ylabel="test loss", xlabel="threshold δ of the gradient's norm"
    )
    ax.set(xticks=range(len(groups)), xticklabels=map(_threshold, groups))
    ax.set_title(f"RNN after {runs[0].config['steps']:,} steps (a point a seed)")
    ax.legend(fontsize=8)
    return fig


@figure(sweep="gains")
def gains(runs: Runs) -> Figure:
    """Gradients through an untrained RNN whose recurrent matrix is scaled."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    groups = runs.by("gain")
    shades = plt.colormaps["viridis"](np.linspace(0, 0.95, len(groups)))
    for (gain, group), shade in zip(groups.items(), shades, strict=True):
        color = to_hex(shade)
        seen = [list(run.artifacts().values()) for run in group if not run.diverged]
        _band(left, [s[0]["state"] for s in seen if s], color, f"{gain:g}")
        seed_points(right, gain, group.final("observed/state_growth"), color, "_")
    ends = min(groups), max(groups)
    right.plot(ends, ends, color="black", lw=1, label="the gain: no more than that")
    for ax in (left, right):
        ax.axhline(1, color="grey", ls="--", lw=1)
    left.set(yscale="log", xlabel="distance from the loss, in steps")
    left.set_ylabel("gradient w.r.t. the state\n(share of that at distance 0)")
    left.legend(title="gain", fontsize=8, title_fontsize=8)
    right.set(xlabel="gain of the recurrent matrix", ylabel="growth in a step back")
    right.legend()
    return fig


FIGURES = {
    "distance": distance,
    "spikes": spikes,
    "thresholds": thresholds,
    "gains": gains,
}


def summary(runs: Runs) -> str:
    """Returns how gradients grow, or the loss for each threshold."""
    steps, seeds = runs[0].config["steps"], len(runs.values("seed"))
    if len(runs.values("gain")) > 1:
        parts = [
            mean_and_spread(group.final("observed/state_growth"))
            + f" with gain {gain:g}"
            for gain, group in runs.by("gain").items()
        ]
        return (
            "The gradient with respect to the state of an untrained RNN is multiplied "
            f"in a step back by {', '.join(parts)} ({seeds} seeds)."
        )
    if len(runs.values(_CLIP)) > 1:
        parts = [
            f"{mean_and_spread(group.final(MAIN_METRIC))} {_threshold(clip)}"
            for clip, group in runs.by(_CLIP).items()
        ]
        return (
            f"Test loss of the RNN after {steps:,} steps of gradient descent, {seeds} "
            f"seeds: {', '.join(parts)}."
        )
    parts = [
        f"{NAMES[name]} {mean_and_spread(group.final('observed/input_growth'))} (test "
        f"loss {mean_and_spread(group.final(MAIN_METRIC))})"
        for name, group in runs.by(_NAME).items()
    ]
    return (
        "After training, a step back multiplies the gradient with respect to the input "
        f"by {', '.join(parts)}; {steps:,} steps, {seeds} seeds."
    )
