"""Neural Turing machines learn five tasks on tapes of bits, and LSTMs of their size.

Graves, Wayne & Danihelka, "Neural Turing Machines", 2014 (arXiv:1410.5401), section 4:
copy, repeat copy, associative recall, dynamic n-grams and priority sort
(`dl_core.data.tapes` says what stands where). The cost is the cross-entropy of all the
bits that a tape is to say, in bits.

    python -m launch.sweep --experiment=memory.neural_turing_machine --sweep=networks \
        --executor=vmap
    python -m launch.sweep --experiment=memory.neural_turing_machine --sweep=recipes \
        --executor=vmap
    python -m launch.sweep --experiment=memory.neural_turing_machine --sweep=tasks \
        --executor=vmap
    python -m launch.figures --experiment=memory.neural_turing_machine

Look for: in `networks` the bits a tape of the copy after so many tapes, where the NTM
needs few and the LSTM has not begun, and beside it the wrong bits of tapes longer than
any in training, a line for each seed, since seeds differ: one NTM copies 120 vectors
without a fault, another loses its place. `addressing` shows how: the heads write one
slot after the other, then read the same slots in the same order. In `recipes` the
memory and the heads begin differently, or a smaller epsilon lets the optimiser take
larger steps. In `tasks` the dashed line of the n-grams is what the best estimator
needs, (N₁ + ½) / (N + 1) after each context.

What differs from the paper: the copy has one mark, as in the public code
github.com/loudinthecloud/pytorch-ntm, whose rule and constants of RMSprop these are,
too, but for epsilon; batches of four tapes and a step size of 0.0003 take less time
than its single tapes and 0.0001 (its recipe: `--config.batch_size=1
--config.steps=20000 --config.optimizer.learning_rate=1e-4
--config.optimizer.epsilon=1e-8 --config.memory.init=random
--config.memory.start=nowhere`); the loss is the mean over the bits of a tape, so that a
long one counts no more; the LSTM has the NTM's size, and no connections past its
layers. `--preset=paper` is the copy in the paper's sizes, tape by
tape, with an LSTM of three layers of 256 units; the other tasks by `--config.task.name`
with `--config.longer=` or sizes that suit the task, and their sizes of network by
`--config.memory.heads`, `.hidden`, `.layers` and `--config.lstm.hidden`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static
from dl_core.data import tapes
from dl_core.data.batches import Data, Generated
from dl_core.data.buckets import at_length
from dl_core.data.tapes import Task
from dl_core.errors import UserError
from dl_core.metrics import bits
from dl_core.models.sequence import Network, SequenceModel
from dl_core.nn.memory import NTM, Memory
from dl_core.results import Run, Runs, figure, mean_and_spread
from dl_core.sweep import chain, product, zipped
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import RMSprop
from dl_core.train.state import TrainState


@config
class Baseline:
    """The LSTM that the NTM is compared with."""

    layers: int = static(1, "Layers.", at_least=1)
    hidden: int = static(119, "Units of a layer.", at_least=1)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(5_000, "Training steps.", at_least=1)
    batch_size: int = static(4, "Tapes in a training batch.", at_least=1)
    eval_every: int = static(250, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(2_500, "Steps between checkpoints.", at_least=1)
    task: Task = nested(Task)
    network: Literal["ntm", "lstm"] = static("ntm", "Which network.")
    memory: Memory = nested(Memory, init="constant", start="first")
    lstm: Baseline = nested(Baseline)
    optimizer: RMSprop = nested(RMSprop)
    longer: tuple[int, ...] = static(
        (10, 20, 30, 50, 80, 120),
        "Sizes of the tapes on which generalisation is measured; may be none.",
    )


PRESETS = {
    "smoke": {
        "steps": 4,
        "eval_every": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "task.longest": 6,
        "task.buckets": 1,
        "memory.slots": 8,
        "memory.width": 4,
        "memory.hidden": 8,
        "lstm.hidden": 8,
        "longer": (7,),
    },
    "paper": {
        "steps": 1_000_000,
        "batch_size": 1,
        "log_every": 1_000,
        "eval_every": 10_000,
        "checkpoint_every": 50_000,
        "memory.init": "learned",
        "optimizer.learning_rate": 1e-4,
        "lstm.layers": 3,
        "lstm.hidden": 256,
    },
}
_TEST, _EACH = 64, 10
"""Tapes of the test set, and tapes of each longer size."""


def data(config: Config, data_dir: Any) -> Data:
    """Returns tapes made on the device: training, test, and longer ones.

    Raises:
      UserError: if a size does not suit the task.
    """
    if fault := config.task.fault():
        raise UserError(f"--config.task.longest={fault}")
    one_size = config.task.name in tapes.OF_ONE_SIZE
    if config.longer and (one_size or min(config.longer) < config.task.sizes[0]):
        expected = (
            "to be empty" if one_size else f"sizes of at least {config.task.sizes[0]}"
        )
        raise UserError(
            f"--config.longer={config.longer}: {config.task.name} needs it {expected}"
        )
    sets = {"test": Generated(make_test_batch, _TEST)}
    if config.longer:
        sets["longer"] = Generated(make_longer_batch, _EACH * len(config.longer))
    return Data(Generated(make_batch, config.batch_size), sets)


def make_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes training tapes, all of one size."""
    return tapes.draw(config.task, key, config.batch_size)


def make_test_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes test tapes of the sizes of training."""
    return tapes.draw_mixed(config.task, key, _TEST)


def make_longer_batch(config: Config, key: jax.Array) -> dict[str, Array]:
    """Makes tapes of each of the longer sizes, with as many repeats as in training."""
    sizes = jnp.repeat(jnp.array(config.longer), _EACH)
    repeats = jnp.full_like(sizes, config.task.repeats[1])
    batch = tapes.generate(config.task, key, sizes, repeats, max(config.longer))
    return batch | {"longer": sizes}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    inputs = jnp.zeros((1, 2, config.task.inputs))
    if config.network == "ntm":
        variables = _ntm(config).init(key, inputs)
    else:
        variables = _lstm(config).init(key, inputs, train=False)
    return TrainState.create(variables, config.optimizer.make(config.steps))


def _ntm(config: Config) -> NTM:
    return NTM(config.memory, config.task.outputs)


def _lstm(config: Config) -> SequenceModel:
    layers, hidden = config.lstm.layers, config.lstm.hidden
    network = Network(name="lstm", layers=layers, hidden=hidden)
    return SequenceModel(network, config.task.outputs)


def predict(
    config: Config, variables: PyTree, inputs: Float[Array, "batch time inputs"]
) -> Float[Array, "batch time outputs"]:
    """Returns the logits of the bits at every step."""
    if config.network == "ntm":
        return _ntm(config).apply(variables, inputs)[0]
    return _lstm(config).apply(variables, inputs, train=False)[0]


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cost of a bit.

    The gradient is taken within the cut to the bucket's length: around it, it would
    keep what all lengths need for it.
    """

    def loss(params, tape):
        variables = {"params": params, **state.collections}
        logits = predict(config, variables, tape["inputs"])
        cost = bits.cost(logits, tape["targets"], tape["weight"])
        said = tape["weight"].sum(1) * config.task.outputs
        return (cost / said).mean(), cost.mean()

    def descend(tape):
        return jax.value_and_grad(loss, has_aux=True)(state.params, tape)

    tape = {name: batch[name] for name in ("inputs", "targets", "weight")}
    (value, cost), gradients = at_length(
        descend, config.task.edges, batch["bucket"], tape
    )
    norm = optax.tree.norm(gradients)
    metrics = {"loss": value, "bits": cost, "gradient_norm": norm}
    return state.apply_gradients(
        gradients, config.optimizer.make(config.steps)
    ), metrics


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures bits and wrong bits a tape; of longer tapes, wrong bits by size.

    Of the n-grams also the bits of the best estimator there is, on the same tapes.
    """
    variables = {"params": state.params, **state.collections}
    logits = predict(config, variables, batch["inputs"])
    said, mask = (logits, batch["targets"], batch["weight"]), batch["mask"]
    wrong = bits.wrong(*said)
    if "longer" in batch:
        return {
            f"error_bits_{size}": Mean.of(wrong, mask * (batch["longer"] == size))
            for size in config.longer
        }
    metrics = {
        "bits": Mean.of(bits.cost(*said), mask),
        "error_bits": Mean.of(wrong, mask),
    }
    if config.task.name == "ngrams":
        metrics["optimum"] = Mean.of(tapes.bayes_bits(batch), mask)
    return metrics


def observe(
    config: Config, state: TrainState, key: jax.Array
) -> dict[str, Float[Array, "time ..."]]:
    """Keeps what is said on one tape of the greatest size, and where it is looked."""
    task = config.task
    most = jnp.array([task.sizes[1]]), jnp.array([task.repeats[1]])
    tape = tapes.generate(task, jax.random.key(0), *most)
    variables = {"params": state.params, **state.collections}
    seen = {}
    if config.network == "ntm":
        logits, seen = _ntm(config).apply(variables, tape["inputs"], addressing=True)
    else:
        logits = predict(config, variables, tape["inputs"])
    chances = jax.nn.sigmoid(logits) * tape["weight"][..., None]
    kept = {"inputs": tape["inputs"], "targets": tape["targets"], "chances": chances}
    return jax.tree.map(lambda x: x[0], kept | seen)


MAIN_METRIC = "test/bits"
_NETWORK, _CONTROLLER = "network", "memory.controller"
_INIT, _START, _EPSILON = "memory.init", "memory.start", "optimizer.epsilon"
_SEEDS = range(5)
_OTHERS = {
    "repeat_copy": (10, 15, 20),
    "associative_recall": (10, 15, 20),
    "ngrams": (),
    "priority_sort": (),
}

SWEEPS = {
    "networks": chain(
        product(network=("lstm",), seed=_SEEDS),
        product(**{_CONTROLLER: ("feedforward", "lstm")}, seed=_SEEDS),
    ),
    "tasks": chain(
        *(
            product(
                **{"task.name": (name,), "longer": (longer,)},
                network=("lstm", "ntm"),
                seed=_SEEDS,
            )
            for name, longer in _OTHERS.items()
        )
    ),
    "recipes": product(
        chain(
            zipped(
                **{
                    _INIT: ("random", "constant", "constant"),
                    _START: ("nowhere", "nowhere", "first"),
                },
            ),
            product(**{_EPSILON: (1e-8,)}),
        ),
        seed=_SEEDS,
    ),
}
_NAMES = {
    ("lstm", "lstm"): "LSTM",
    ("ntm", "feedforward"): "NTM, feed-forward controller",
    ("ntm", "lstm"): "NTM, LSTM controller",
}
_COLORS = {("lstm", "lstm"): "C3", ("ntm", "feedforward"): "C1", ("ntm", "lstm"): "C0"}
_TASKS = {
    "copy": "copy",
    "repeat_copy": "repeat copy",
    "associative_recall": "associative recall",
    "ngrams": "dynamic n-grams",
    "priority_sort": "priority sort",
}
_LEAST = 1e-3
"""Bits below which the axes end."""
_LEARNED = 0.3
"""Bits a tape from which on a task counts as learned."""


@figure(sweep="networks")
def copy(runs: Runs) -> Figure:
    """Bits a tape of the copy over the tapes seen, and wrong bits of longer tapes."""
    groups = runs.by(_NETWORK, _CONTROLLER).items()
    return _learned([(_NAMES[key], _COLORS[key], group) for key, group in groups])


@figure(sweep="networks")
def addressing(runs: Runs) -> Figure:
    """What is read, said and addressed over time, of the NTM's first seed."""
    groups = runs.where(network="ntm").by(_CONTROLLER)
    seen = {name: _last_seen(group) for name, group in groups.items()}
    fig, axes = plt.subplots(
        4,
        len(seen),
        figsize=(4.6 * len(seen), 7.5),
        height_ratios=(1, 1, 3, 3),
        layout="constrained",
        sharex="col",
        squeeze=False,
    )
    for column, (controller, arrays) in zip(axes.T, seen.items(), strict=True):
        column[0].set_title(_NAMES["ntm", controller])
        column[-1].set_xlabel("step")
        if arrays is not None:
            _draw_tape(column, arrays)
    for ax, name in zip(
        axes[:, 0], ("inputs", "outputs", "written slot", "read slot"), strict=True
    ):
        ax.set_ylabel(name)
    return fig


@figure(sweep="tasks")
def tasks(runs: Runs) -> Figure:
    """Bits a tape of the other tasks over the tapes seen, the n-grams' optimum too."""
    groups = runs.by("task.name")
    fig, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for ax, (task, group) in zip(axes.flat, groups.items(), strict=True):
        for network, part in group.by(_NETWORK, _CONTROLLER).items():
            _curves(ax, part, color=_COLORS[network], label=_NAMES[network])
        if task == "ngrams":
            ax.set(yscale="linear")
            for optimum in _optima(group)[:1]:
                ax.axhline(optimum, color="grey", ls="--", lw=1, label="optimum")
        ax.set(title=_TASKS[task])
        ax.legend(fontsize=8)
    return fig


@figure(sweep="tasks")
def longer(runs: Runs) -> Figure:
    """Wrong bits a tape of repeat copy and recall against the tape's size."""
    runs = Runs(run for run in runs if run.config["longer"])
    groups = runs.by("task.name", _NETWORK, _CONTROLLER)
    fig, axes = _row(len(groups))
    for ax, ((task, *network), group) in zip(axes, groups.items(), strict=True):
        _by_size(ax, group, _COLORS[tuple(network)])
        ax.set_title(f"{_TASKS[task]}\n{_NAMES[tuple(network)]}", fontsize=9)
    axes[0].set_ylabel("wrong bits a tape (a line a seed)")
    axes[0].legend(fontsize=8)
    return fig


@figure(sweep="recipes")
def recipes(runs: Runs) -> Figure:
    """Bits a tape over the tapes seen, and wrong bits of longer tapes, by recipe."""
    groups = enumerate(runs.by(_INIT, _START, _EPSILON).items())
    return _learned([(_recipe(*key), f"C{i}", group) for i, (key, group) in groups])


FIGURES = {
    "copy": copy,
    "addressing": addressing,
    "tasks": tasks,
    "longer": longer,
    "recipes": recipes,
}


def _learned(groups: Sequence[tuple[str, str, Runs]]) -> Figure:
    """Draws the bits of all groups over training, and a panel of sizes for each."""
    fig, (left, *others) = _row(1 + len(groups))
    for ax, (name, color, runs) in zip(others, groups, strict=True):
        _curves(left, runs, color=color, label=name)
        _by_size(ax, runs, color)
        ax.set_title(name, fontsize=9)
        ax.sharey(others[0])
    left.axhline(_LEARNED, color="grey", ls="--", lw=1, label=f"{_LEARNED} bits")
    left.set_title("every seed and their mean", fontsize=9)
    left.legend(fontsize=7)
    others[0].set_ylabel("wrong bits a tape (a line a seed)")
    others[0].legend(fontsize=7)
    return fig


def _recipe(init: str, start: str, epsilon: float) -> str:
    """Returns how a beginning of the memory and the heads, and epsilon, are called."""
    return f"memory {init}, heads {start},\nepsilon {epsilon:g}"


def _row(panels: int) -> tuple[Figure, Any]:
    return plt.subplots(1, panels, figsize=(3 * panels, 3.4), layout="constrained")


def _longest(run: Run) -> int:
    """Returns the greatest size of the run's training tapes."""
    config = run.config
    return Task(name=config["task.name"], longest=config["task.longest"]).sizes[1]


def _curves(ax: plt.Axes, runs: Runs, *, color: str, label: str) -> None:
    """Draws the bits of every seed, and their mean, over the tapes seen."""
    steps, values = runs.curves(MAIN_METRIC)
    seen = steps * runs[0].config["batch_size"] / 1_000
    values = np.maximum(values, _LEAST)
    if len(steps):
        ax.plot(seen, values.T, color=color, lw=0.7, alpha=0.5)
    ax.plot(seen, values.mean(0), color=color, lw=2, label=label)
    ax.set(xlabel="tapes seen, in thousands", ylabel="bits a tape", yscale="log")


def _optima(runs: Runs) -> list[float]:
    """Returns the bits of the best estimator, the same in each run that has them."""
    found = (run.result["metrics"].get("test/optimum") for run in runs)
    return [bits for bits in found if bits is not None]


def _by_size(ax: plt.Axes, runs: Runs, color: str) -> None:
    """Draws wrong bits against the tapes' size, a line each seed."""
    sizes = runs[0].config["longer"]
    for run in runs:
        wrong = [run.final(f"longer/error_bits_{size}") for size in sizes]
        ax.plot(sizes, wrong, "o-", ms=3.5, lw=1, color=color, alpha=0.7)
    guessed = [_said(runs[0], size) / 2 for size in sizes]
    ax.plot(sizes, guessed, color="grey", ls="--", lw=1, label="guessing")
    longest = _longest(runs[0])
    ax.axvline(longest, color="grey", ls=":", lw=1, label="longest in training")
    ax.set_yscale("symlog", linthresh=1, linscale=0.5)
    ax.set_ylim(-0.2, None)
    ax.set_xlabel("size of the tape")


def _said(run: Run, size: int) -> int:
    """Returns how many bits a tape of a longer size says."""
    config = run.config
    task = Task(name=config["task.name"], longest=config["task.longest"])
    return tapes.said(task, size, task.repeats[1]) * task.outputs


def _last_seen(runs: Runs) -> Mapping[str, np.ndarray] | None:
    """Returns what the first run that did not diverge observed at its end."""
    for run in runs:
        artifacts = {} if run.diverged else run.artifacts()
        if artifacts and "writes" in (last := artifacts[max(artifacts)]):
            return last
    return None


def _draw_tape(column: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Draws inputs, outputs, and the weights of the slots, a picture each."""
    pictures = arrays["inputs"], arrays["chances"], arrays["writes"], arrays["reads"]
    for ax, picture in zip(column, pictures, strict=True):
        rows = picture.reshape(len(picture), -1).T
        looks = {"cmap": "Greys", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        ax.imshow(rows, aspect="auto", **looks)
        ax.set(yticks=[])


def summary(runs: Runs) -> str:
    """Returns the bits a tape of each setting, and the wrong bits of longer tapes."""
    settings = ("task.name", _NETWORK, _CONTROLLER, _INIT, _START, _EPSILON)
    several = len(runs.by(_INIT, _START, _EPSILON)) > 1
    parts = []
    for (task, network, controller, *recipe), group in runs.by(*settings).items():
        cost = group.final(MAIN_METRIC)
        name = _recipe(*recipe).replace("\n", " ") if several else ""
        name = name or f"{_TASKS[task]}, {_NAMES[network, controller]}"
        text = f"{name}: {mean_and_spread(cost)}, "
        if task == "ngrams":
            least = "".join(f"{x:.4g}" for x in _optima(group)[:1])
            text += f"the best estimator {least or 'not measured'}"
        else:
            below = (cost < _LEARNED).sum()
            text += f"{below} of {len(cost)} seeds below {_LEARNED}"
        if sizes := group[0].config["longer"]:
            wrong = group.final(f"longer/error_bits_{sizes[-1]}")
            shown = ", ".join("diverged" if np.isnan(x) else f"{x:.0f}" for x in wrong)
            text += f", of size {sizes[-1]} {shown} wrong bits"
        parts.append(text)
    seen = runs[0].config["steps"] * runs[0].config["batch_size"]
    return f"Bits a tape after {seen:,} tapes: {'; '.join(parts)}."
