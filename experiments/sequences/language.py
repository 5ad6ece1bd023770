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

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from jaxtyping import Array, Int
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, replace, static
from dl_core.data.batches import Data
from dl_core.data.text import TextConfig, Windows
from dl_core.models.language import LanguageModel, Model
from dl_core.models.sequence import COLORS, NAMES
from dl_core.pictures import mean_and_range, texts
from dl_core.published import Row
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train import language as training
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
    size = len(config.data.text.vocabulary)
    return LanguageModel(config.model, size, tied=config.data.unit == "words")


def data(config: Config, data_dir: Any) -> Data:
    """Returns the windows of the text; `data_dir` has no part in it."""
    text, chosen = config.data.text, config.data
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
    optimizer = config.optimizer.make()
    return training.begin(make_model(config), optimizer, config.batch_size, key)


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the mean loss of a window, and carries the state on."""
    optimizer = config.optimizer.make()
    return training.step(make_model(config), optimizer, state, batch, key)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Likelihood]:
    """Measures how likely the text is."""
    return training.likelihood(make_model(config), state.params, batch)


_WRITTEN = 400


def observe(
    config: Config, state: TrainState, key: jax.Array
) -> dict[str, Int[Array, " tokens"]]:
    """Writes a text, token by token, each drawn from what the model predicts."""
    end = jnp.full(1, config.data.text.end, jnp.int32)
    (text,) = training.write(make_model(config), state.params, end, _WRITTEN, key)
    return {"text": text}


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
    text = replace(Config(), setting).data.text
    columns = []
    for name, group in runs.by(_NAME).items():
        last = group[0].last_artifacts()
        written = text.decode(last["text"]) if last else ""
        columns.append((NAMES[name], COLORS[name], written))
    fig = texts(columns)
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
