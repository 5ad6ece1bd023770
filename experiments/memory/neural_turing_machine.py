"""What Neural Turing machines learn of five tasks on tapes of bits, beside an LSTM.

Graves, Wayne & Danihelka, "Neural Turing Machines", 2014 (arXiv:1410.5401), section 4:
copy, repeat copy, associative recall, dynamic n-grams and priority sort
(`dl_core.data.tapes` says what stands where). The cost is the cross-entropy of all the
bits that a tape is to say, in bits. From 20,000 tapes NTMs that start at the first slot
all learn the copy, and most learn much of repeat copy; recall, n-grams and sort take
longer: one seed of five is near the best there is on the n-grams.

    python -m launch.sweep --experiment=memory.neural_turing_machine --sweep=networks \
        --executor=vmap
    python -m launch.sweep --experiment=memory.neural_turing_machine --sweep=recipes \
        --executor=vmap
    python -m launch.sweep --experiment=memory.neural_turing_machine --sweep=tasks \
        --executor=vmap
    python -m launch.figures --experiment=memory.neural_turing_machine

Look for: in `networks` the copy. Every NTM falls below 0.3 bits a tape within 14,000
tapes, with relapses; after 20,000 they cost 0.0005 ± 0.0001 (feed-forward controller)
and 0.004 ± 0.003 (LSTM controller), the LSTM 42 ± 1. Trained on at most 20 vectors,
nine of the ten copy 50 without a fault. At 120, with 960 bits, of which guessing gets
480 wrong, seeds differ: 2, 2, 5, 156 and 160 are wrong with a feed-forward controller,
0, 2, 5, 70 and 386 with an LSTM. `addressing` shows how: the heads write one slot after
the other, then read them in the same order. In `recipes` no beginning wins that lottery
for certain. A random memory and heads nowhere: 0, 0, 0.1, 9 and 490 wrong bits; a
constant one and heads at the first slot: 0, 2, 5, 70 and 386, with an epsilon of 1e-8
besides 0, 0, 93, 104 and 218; a constant one and heads nowhere learns no copy in this
time. In `tasks` the dashed line of the n-grams is the best estimator, (N₁ + ½) / (N +
1) after each context. An x is where a run diverged.

Gradients are clipped from step to step (`--config.memory.clip`), as section 4.6 of the
paper says: each component, in the backward pass, to between -10 and 10. Else they
overflow at times: at update 2,582 of one seed on the n-grams they grew from 1 to
infinity within a tape's 200 steps, which no clipping of their sum can mend.

What differs from the paper: the copy has one mark, as in the public code
github.com/loudinthecloud/pytorch-ntm, whose RMSprop this is but for epsilon; batches of
four tapes and a step size of 0.0003 take less time than its single tapes and 0.0001
(its recipe: `--config.batch_size=1 --config.steps=20000
--config.optimizer.learning_rate=1e-4 --config.optimizer.epsilon=1e-8
--config.memory.init=random --config.memory.start=nowhere`); the loss is the mean over
the bits of a tape, so that a long one counts no more; the LSTM has no connections past
its layers, and the size of the NTM with an LSTM controller, 62 thousand parameters for
the copy, where the NTM with a feed-forward one has 13 thousand. `--preset=paper` is the
copy in the paper's sizes, tape by tape, with an LSTM of three layers of 256 units; the
other tasks by `--config.task.name` with `--config.longer=` or sizes that suit the task,
and their networks by `--config.memory.heads`, `.hidden`, `.layers` and
`--config.lstm.hidden`.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from jaxtyping import Array, Float, PyTree
from matplotlib.figure import Figure

from dl_core import pictures_tapes
from dl_core.config import RunConfig, config, nested, static
from dl_core.data import tapes
from dl_core.data.batches import Data, Generated
from dl_core.data.buckets import at_length
from dl_core.data.tapes import Task
from dl_core.errors import UserError
from dl_core.metrics import bits
from dl_core.models.sequence import Network, SequenceModel
from dl_core.nn.memory import NTM, Memory
from dl_core.pictures_tapes import Seeds
from dl_core.results import Runs, figure, mean_and_spread
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
    if expected := config.task.expected(config.longer):
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
_LEARNED = 0.3  # bits a tape


@figure(sweep="networks")
def copy(runs: Runs) -> Figure:
    """Bits a tape of the copy over the tapes seen, and wrong bits of longer tapes."""
    groups = runs.by(_NETWORK, _CONTROLLER).items()
    return _learned({_NAMES[key]: group for key, group in groups})


@figure(sweep="networks")
def addressing(runs: Runs) -> Figure:
    """What is read, said and addressed over time, of the NTM's first seed."""
    groups = runs.where(network="ntm").by(_CONTROLLER).items()
    return pictures_tapes.addressing(
        {_NAMES["ntm", controller]: group for controller, group in groups}
    )


@figure(sweep="tasks")
def tasks(runs: Runs) -> Figure:
    """Bits a tape of the other tasks over the tapes seen, the n-grams' optimum too."""
    fig, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    for ax, (task, group) in zip(axes.flat, runs.by("task.name").items(), strict=True):
        parts = group.by(_NETWORK, _CONTROLLER).items()
        seeds = {_NAMES[key]: Seeds.of(part, MAIN_METRIC) for key, part in parts}
        pictures_tapes.compared(ax, seeds, pictures_tapes.optimum(group))
        ax.set_title(tapes.TITLES[task])
        ax.legend(fontsize=8)
    fig.suptitle("thin: a seed; thick: their median", fontsize=9)
    return fig


@figure(sweep="tasks")
def longer(runs: Runs) -> Figure:
    """Wrong bits a tape of repeat copy and recall against the tape's size."""
    runs = Runs(run for run in runs if run.config["longer"])
    groups = runs.by("task.name", _NETWORK, _CONTROLLER).items()
    return _learned(
        {
            f"{tapes.TITLES[task]}\n{_NAMES[tuple(network)]}": group
            for (task, *network), group in groups
        }
    )


@figure(sweep="recipes")
def recipes(runs: Runs) -> Figure:
    """Bits a tape over the tapes seen, and wrong bits of longer tapes, by recipe."""
    groups = runs.by(_INIT, _START, _EPSILON).items()
    return _learned({_recipe(*key): group for key, group in groups})


FIGURES = {
    "copy": copy,
    "addressing": addressing,
    "tasks": tasks,
    "longer": longer,
    "recipes": recipes,
}


def _learned(groups: Mapping[str, Runs]) -> Figure:
    seeds = {title: Seeds.of(runs, MAIN_METRIC) for title, runs in groups.items()}
    return pictures_tapes.learned(seeds, _LEARNED)


def _recipe(init: str, start: str, epsilon: float) -> str:
    """Returns how a beginning of the memory and the heads, and epsilon, are called."""
    return f"memory {init}, heads {start},\nepsilon {epsilon:g}"


def summary(runs: Runs) -> str:
    """Returns the bits a tape of each setting, and the wrong bits of longer tapes."""
    settings = ("task.name", _NETWORK, _CONTROLLER, _INIT, _START, _EPSILON)
    several = len(runs.by(_INIT, _START, _EPSILON)) > 1
    parts = []
    for (task, network, controller, *recipe), group in runs.by(*settings).items():
        cost = group.final(MAIN_METRIC)
        name = _recipe(*recipe).replace("\n", " ") if several else ""
        name = name or f"{tapes.TITLES[task]}, {_NAMES[network, controller]}"
        text = f"{name}: {mean_and_spread(cost)}, "
        if task == "ngrams":
            least = pictures_tapes.optimum(group)
            shown = "not measured" if least is None else f"{least:.4g}"
            text += f"the best estimator {shown}"
        else:
            below = (cost < _LEARNED).sum()
            text += f"{below} of {len(cost)} seeds below {_LEARNED}"
        if sizes := group[0].config["longer"]:
            wrong = group.final(f"longer/error_bits_{sizes[-1]}")
            shown = ", ".join(pictures_tapes.amount(x) for x in wrong)
            text += f", of size {sizes[-1]} {shown} wrong bits"
        parts.append(text)
    seen = runs[0].config["steps"] * runs[0].config["batch_size"]
    return f"Bits a tape after {seen:,} tapes: {'; '.join(parts)}."
