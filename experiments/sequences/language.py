"""Language: four networks over time predict the next character, or word, of a text.

Bai, Kolter & Koltun, "An empirical evaluation of generic convolutional and recurrent
networks for sequence modeling", 2018 (arXiv:1803.01271), section 5.3: a TCN, an LSTM,
a GRU and an RNN of one size read a text in order and are judged by how likely the next
token is, -log p(x_t | x_1, …, x_{t-1}): in bits a character, or as the perplexity of
words, its exponential.

    python -m launch.sweep --experiment=sequences.language --sweep=networks \\
        --executor=vmap
    python -m launch.sweep --experiment=sequences.language --sweep=words --executor=vmap
    python -m launch.figures --experiment=sequences.language

The text is Shakespeare's plays, which ship with the project; the paper's is the Penn
Treebank, its characters (`--preset=paper`) or words (`--preset=paper_words`), of which
the three files must be in the folder ptb, or in another one that
`--config.data.path=FOLDER` names.

Look for: the bits a character against the step. Guessing evenly costs log2 of the
vocabulary; the text that each network writes at the end has the plays' layout and many
of their short words. At equal steps the GRU is ahead on characters and the TCN on
words; the seeds of the RNN, for which the step size is too large, end far apart.

The text runs in `batch_size` streams, window after window (`dl_core.data.text`). A
recurrent network carries its state from a window to the next, but no gradient
(truncated back-propagation); at the start of an epoch the state is zero again. The TCN
has none, but reads `data.context` tokens before those it predicts, as in the authors'
code. In validation and test all four read `data.eval_context` tokens, from a state of
zero, before the window of as many tokens that they predict; every token is predicted
once.

What differs from the authors' code beyond that: the step size falls at fixed steps, not
where the validation loss stops falling, and for characters the last layer is not tied
to the embedding. The code has no recurrent networks: those here are of the TCN's size,
with its share of dropout on their outputs. By default the step size is 0.008: of 0.002,
0.004 and 0.008 the TCN and the LSTM were best with it, by the validation loss of one
seed after 200 steps.
"""

import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static
from dl_core.data.batches import Data
from dl_core.data.text import TextConfig, Windows, read_text
from dl_core.models.language import LanguageModel, Model
from dl_core.models.sequence import COLORS, NAMES
from dl_core.pictures import mean_and_range
from dl_core.published import Row
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Likelihood
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState


@config
class Dataset(TextConfig):
    """Which text, and the windows in which it is read."""

    length: int = static(64, "Tokens that a window predicts in training.", at_least=1)
    context: int = static(
        64, "Tokens before those, which the TCN reads too.", at_least=0
    )
    eval_context: int = static(
        128, "Tokens read before a window, and predicted in it, in tests.", at_least=1
    )
    evaluated: int = static(
        0, "First tokens of a split that are evaluated; 0 for all.", at_least=0
    )


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(400, "Training steps.", at_least=1)
    batch_size: int = static(32, "Streams of text.", at_least=1)
    eval_every: int = static(100, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(400, "Steps between checkpoints.", at_least=1)
    model: Model = nested(Model, kernel_size=3, levels=4, channels=64)
    optimizer: Optimizer = nested(Optimizer, learning_rate=8e-3, clip=1.0)
    data: Dataset = nested(Dataset)


_PAPER = {
    "log_every": 500,
    "checkpoint_every": 5_000,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 4.0,
    "data.path": "ptb",
}
PRESETS = {
    "smoke": {
        "steps": 6,
        "batch_size": 4,
        "log_every": 2,
        "eval_every": 3,
        "checkpoint_every": 3,
        "model.levels": 2,
        "model.channels": 8,
        "model.embedding": 4,
        "data.length": 6,
        "data.context": 5,
        "data.eval_context": 20,
        "data.evaluated": 300,
        "data.vocabulary": 100,
    },
    "paper": _PAPER
    | {
        "steps": 49_100,
        "batch_size": 32,
        "eval_every": 4_910,
        "model.levels": 3,
        "model.channels": 450,
        "model.dropout": 0.1,
        "model.embedding": 100,
        "model.embedding_dropout": 0.1,
        "optimizer.clip": 0.15,
        "optimizer.stair": 19_640,
        "optimizer.stair_factor": 0.1,
        "data.length": 320,
        "data.context": 80,
        "data.eval_context": 320,
    },
    "paper_words": _PAPER
    | {
        "steps": 145_300,
        "batch_size": 16,
        "eval_every": 14_530,
        "model.channels": 600,
        "model.dropout": 0.45,
        "model.embedding_dropout": 0.25,
        "optimizer.clip": 0.35,
        "optimizer.stair": 14_530,
        "optimizer.stair_factor": 0.5,
        "data.unit": "words",
        "data.vocabulary": 10_000,
        "data.length": 40,
        "data.context": 40,
        "data.eval_context": 160,
    },
}


def make_model(config: Config) -> LanguageModel:
    """Returns the model for the text's vocabulary."""
    size = len(read_text(text_of(config)).vocabulary)
    return LanguageModel(config.model, size, tied=config.data.unit == "words")


def text_of(config: Config) -> TextConfig:
    """Returns which text it is, without the windows."""
    chosen = config.data
    return TextConfig(unit=chosen.unit, path=chosen.path, vocabulary=chosen.vocabulary)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the windows of the text; `data_dir` has no part in it."""
    text, chosen = read_text(text_of(config)), config.data
    context = chosen.context if config.model.name == "tcn" else 0
    train = Windows(
        text.tokens["train"], text.end, config.batch_size, chosen.length, context
    )

    def whole(split: str) -> Windows:
        tokens = text.tokens[split][: chosen.evaluated or None]
        size = chosen.eval_context
        return Windows(tokens, text.end, config.batch_size, size, size)

    return Data(train, {split: whole(split) for split in ("validation", "test")})


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the model's state before training; its carries are a collection."""
    tokens = jnp.zeros((config.batch_size, 1), jnp.int32)
    (_, carry), variables = make_model(config).init_with_output(
        key, tokens, train=False
    )
    if carry is not None:
        variables = {**variables, "carry": jax.tree.map(jnp.zeros_like, carry)}
    return TrainState.create(variables, config.optimizer.make())


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the mean loss of a window, and carries the state on."""
    carry = reset(state.collections.get("carry"), batch["first"])

    def loss_fn(params):
        loss, carried = losses(config, params, batch, carry, key)
        return (loss * batch["weight"]).sum() / batch["weight"].sum(), carried

    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, carry), gradients = grad(state.params)
    collections = {} if carry is None else {"carry": carry}
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
    optimizer = config.optimizer.make()
    return state.apply_gradients(gradients, optimizer, collections), metrics


def reset(carry: PyTree, first: Bool[Array, " batch"]) -> PyTree:
    """Returns the carries, those of the streams that begin again zero."""
    return jax.tree.map(lambda leaf: jnp.where(first[:, None], 0, leaf), carry)


def losses(
    config: Config,
    params: PyTree,
    batch: dict[str, Array],
    carry: PyTree = None,
    key: jax.Array | None = None,
) -> tuple[Float[Array, "batch targets"], PyTree]:
    """Returns -log p of each target in nats, and the last carries.

    Args:
      config: the settings.
      params: of the model.
      batch: a batch of `Windows`.
      carry: what a recurrent network begins with; zero where None.
      key: of what is dropped; nothing is without one.
    """
    inputs, targets = batch["inputs"], batch["targets"]
    logits, carry = make_model(config).apply(
        {"params": params},
        inputs,
        carry,
        train=key is not None,
        context=inputs.shape[1] - targets.shape[1],
        rngs=None if key is None else {"dropout": key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return loss, carry


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Likelihood]:
    """Measures how likely the text is."""
    loss, _ = losses(config, state.params, batch)
    return {"likelihood": Likelihood.of(loss.ravel(), batch["weight"].ravel())}


_WRITTEN = 400


def observe(
    config: Config, state: TrainState, key: jax.Array
) -> dict[str, Int[Array, " tokens"]]:
    """Writes a text, token by token, each drawn from what the model predicts.

    The TCN remembers its last inputs (`dl_core.nn.streaming`), the others their state.
    """
    model, params = make_model(config), state.params

    def write(memory, key):
        stream, carry, token = memory
        (logits, carry), stream = model.apply(
            {"params": params, **stream},
            token[None, None],
            carry,
            train=False,
            mutable=["stream"],
        )
        token = jax.random.categorical(key, logits[0, 0]).astype(jnp.int32)
        return (stream, carry, token), token

    keys = jax.random.split(key, _WRITTEN)
    end = jnp.int32(read_text(text_of(config)).end)
    # The first call makes the memories, with nothing in them.
    memory, first = write(({}, None, end), keys[0])
    _, others = jax.lax.scan(write, memory, keys[1:])
    return {"text": jnp.concatenate([first[None], others])}


MAIN_METRIC = "test/bits"
_NAME, _UNIT = "model.name", "data.unit"

SWEEPS = {
    "networks": product(**{_NAME: tuple(NAMES), "seed": range(5)}),
    "words": product(
        **{
            _UNIT: ("words",),
            # A layer of so many outputs takes most of the time.
            "batch_size": (16,),
            "data.length": (32,),
            _NAME: tuple(NAMES),
            "seed": range(5),
        }
    ),
}

_UNITS = {
    "characters": ("bits", "bits a character"),
    "words": ("perplexity", "perplexity of a word"),
}
_PUBLISHED = {
    "characters": {"lstm": 1.36, "gru": 1.37, "rnn": 1.48, "tcn": 1.31},
    "words": {"lstm": 78.93, "gru": 92.48, "rnn": 114.50, "tcn": 88.68},
}
"""The paper's table 1, of the Penn Treebank."""


def _curves(runs: Runs) -> Figure:
    """Draws what a token costs, in validation and at the end in test."""
    setting = runs[0].config
    metric, label = _UNITS[setting[_UNIT]]
    fig, (ax, ends) = plt.subplots(
        1, 2, figsize=(9, 4), layout="constrained", width_ratios=(2, 1), sharey=True
    )
    groups = runs.by(_NAME)
    for place, (name, group) in enumerate(groups.items()):
        color = COLORS[name]
        steps, values = group.curves(f"validation/{metric}")
        mean_and_range(ax, steps, values, color=color, label=NAMES[name])
        finals = group.final(f"test/{metric}")
        ends.plot([place] * len(finals), finals, "o", color=color, ms=4, alpha=0.6)
        if setting["data.path"]:
            paper = _PUBLISHED[setting[_UNIT]][name]
            ends.plot(place, paper, "_", color=color, ms=24, mew=2)
    ax.set(xlabel="step", ylabel=f"{label}, validation", yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.grid(alpha=0.3, which="both")
    ax.legend(title="mean and range over seeds")
    ends.set(xticks=range(len(groups)), xticklabels=[NAMES[name] for name in groups])
    ends.set(xlim=(-0.6, len(groups) - 0.4))
    ends.set_title(f"test, after {setting['steps']:,} steps")
    ends.grid(alpha=0.3, axis="y", which="both")
    bars = "; bars: the paper's" if setting["data.path"] else ""
    ends.set_xlabel(f"a point a seed{bars}")
    return fig


def _written(runs: Runs) -> Figure:
    """Shows what the first seed of each network writes at the end."""
    setting = runs[0].config
    chosen = TextConfig(
        **{field: setting[f"data.{field}"] for field in ("unit", "path", "vocabulary")}
    )
    text = read_text(chosen)
    groups = runs.by(_NAME)
    fig, axes = plt.subplots(1, len(groups), figsize=(12, 3.8), layout="constrained")
    for ax, (name, group) in zip(np.atleast_1d(axes), groups.items(), strict=True):
        last = list(group[0].artifacts().values())[-1:]
        written = text.decode(last[0]["text"]) if last else ""
        lines = [
            part
            for line in written.splitlines()
            for part in textwrap.wrap(line, 34, break_on_hyphens=False) or [""]
        ]
        style = {"family": "monospace", "size": 7.5, "parse_math": False}
        ax.text(0, 1, "\n".join(lines[:26]), va="top", **style)
        ax.set_title(NAMES[name], color=COLORS[name], loc="left")
        ax.axis("off")
    fig.suptitle(
        f"written {setting['data.unit'][:-1]} by {setting['data.unit'][:-1]} after "
        f"{setting['steps']:,} steps"
    )
    return fig


@figure(sweep="networks")
def networks(runs: Runs) -> Figure:
    """What a character, or a word, costs each network against the step."""
    return _curves(runs)


@figure(sweep="networks")
def written(runs: Runs) -> Figure:
    """Texts that the networks write when they are trained."""
    return _written(runs)


@figure(sweep="words")
def words(runs: Runs) -> Figure:
    """What a word costs each network against the step."""
    return _curves(runs)


FIGURES = {"networks": networks, "written": written, "words": words}


def summary(runs: Runs) -> str:
    """Returns what a token of the test text costs each network."""
    setting = runs[0].config
    metric, label = _UNITS[setting[_UNIT]]
    found = ", ".join(
        f"{NAMES[name]} {mean_and_spread(group.final(f'test/{metric}'))}"
        for name, group in runs.by(_NAME).items()
    )
    text = "the Penn Treebank" if setting["data.path"] else "Shakespeare's plays"
    return (
        f"{label.capitalize()} in the test part of {text} after "
        f"{setting['steps']:,} steps, {len(runs.values('seed'))} seeds: {found}."
    )


TABLE = (
    Row(
        task="Penn Treebank, words",
        sweep="networks",
        preset="paper_words",
        metric="test/perplexity",
        published=_PUBLISHED["words"],
    ),
    Row(
        task="Penn Treebank, characters",
        sweep="networks",
        preset="paper",
        metric="test/bits",
        published=_PUBLISHED["characters"],
    ),
    Row(task="Shakespeare, words", sweep="words", metric="test/perplexity"),
    Row(task="Shakespeare, characters", sweep="networks", metric="test/bits"),
)
