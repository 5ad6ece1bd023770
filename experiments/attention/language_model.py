"""A small Transformer writes Shakespeare: bits a character, beside a TCN and an LSTM.

Vaswani et al., "Attention is all you need", 2017 (arXiv:1706.03762), of which only the
decoder is left: causal self-attention and a two-layer network at each position, with
the normalisation before each branch. It reads the plays that ship with the project,
character by character, as the TCN and the LSTM of `sequences.language` do, and like
them is judged by -log2 p(x_t | x_1, …, x_{t-1}), in bits a character.

    python -m launch.sweep --experiment=attention.language_model --sweep=sizes \\
        --executor=vmap
    python -m launch.sweep --experiment=attention.language_model --sweep=context \\
        --executor=vmap
    python -m launch.figures --experiment=attention.language_model

`sizes` has the three networks at three sizes: the channels of the TCN and the units of
the LSTM are those that come nearest to the Transformer's number of parameters. In
`context` the Transformer and the TCN read windows of 4 to 256 characters, as many
characters a step in all; of a window the TCN sees no more than its receptive field.

Look for (five seeds, 600 steps, each of 1,024 characters): trained for so short a time
the Transformer is behind at every size, 3.14 ± 0.02 bits at 104 thousand parameters
where the TCN has 2.87 ± 0.03 and the LSTM 2.87 ± 0.12, and more parameters help the TCN
alone, 2.80 ± 0.03 at 230 thousand. At as many characters a step, many windows of 16 are
better than few long ones: the Transformer has 2.79 ± 0.04 with 16, 3.52 ± 0.02 with
256, the TCN 2.78 ± 0.01 and 2.92 ± 0.02. The texts at the end are drawn from each
network one character at a time; the Transformer keeps the keys and values of those
before (`dl_core.nn.attention`), so that a character costs one position. The LSTM's are
noise: its state is zero at the start of training alone, and from there it does not find
its way to words, though it predicts the text that it reads.

All three predict every character of a training window of `data.length`, the LSTM with
the state that the window before has left, but no gradient of it. In validation
and test they read half a window from nothing before the other half, which they predict,
so every prediction knows at least that many characters; every character is predicted
once. The step size rises for 50 steps, then falls along a cosine. Of 0.002, 0.004,
0.008 and 0.016 the largest was best for all three at the middle size, by the validation
loss of seed 100, which is in no sweep, after 200 steps; with 0.03 the Transformer
was worse.

`--preset=paper` is the published setting of nanoGPT (`train_shakespeare_char.py`): 6
layers, 6 heads, 384 features, dropout of 0.2, windows of 256, 64 in a batch, 5,000
steps; its README states 1.4697 nats (2.120 bits) a character as the lowest validation
loss on the last 10 % of the same text. Here that part is halved, into validation and
test, windows come in the text's order, not at random, and what counts are the
parameters at the end, not those of the lowest validation loss, after which, by that
file's own remark, the network overfits.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Int
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, replace, static
from dl_core.data.batches import Data
from dl_core.data.text import TextConfig, Windows
from dl_core.errors import UserError
from dl_core.models import language as models
from dl_core.models import sequence, transformer
from dl_core.pictures import mean_and_range, texts
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train import language as training
from dl_core.train.metrics import Likelihood
from dl_core.train.optimizers import Warmed
from dl_core.train.state import TrainState

NAMES = {"transformer": "Transformer"} | sequence.NAMES
COLORS = {"transformer": "C4"} | sequence.COLORS


@config
class Model(transformer.Transformer):
    """A Transformer, or another network of its size."""

    name: Literal["transformer", "tcn", "lstm"] = static(
        "transformer", "Which network."
    )
    kernel_size: int = static(3, "Taps of a convolution of the TCN.", at_least=1)
    levels: int = static(5, "Blocks of the TCN; the dilation doubles.", at_least=1)
    embedding: int = static(
        32, "Numbers that stand for a character in the TCN and the LSTM.", at_least=1
    )


@config
class Dataset(TextConfig):
    """Which text, and the windows in which it is read."""

    length: int = static(128, "Characters of a window.", at_least=2)
    evaluated: int = static(
        16_384, "First characters of a split that are evaluated; 0 for all.", at_least=0
    )


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(600, "Training steps.", at_least=1)
    batch_size: int = static(8, "Streams of text.", at_least=1)
    eval_every: int = static(150, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(600, "Steps between checkpoints.", at_least=1)
    model: Model = nested(Model, features=64, heads=2, longest=256)
    optimizer: Warmed = nested(Warmed, learning_rate=1.6e-2, warmup=50)
    data: Dataset = nested(Dataset)


PRESETS = {
    "smoke": {
        "steps": 6,
        "batch_size": 4,
        "log_every": 2,
        "eval_every": 3,
        "checkpoint_every": 3,
        "model.layers": 1,
        "model.levels": 2,
        "model.heads": 2,
        "model.embedding": 4,
        "data.evaluated": 300,
    },
    "paper": {
        "steps": 5_000,
        "batch_size": 64,
        "log_every": 100,
        "eval_every": 250,
        "checkpoint_every": 1_000,
        "model.features": 384,
        "model.heads": 6,
        "model.layers": 6,
        "model.dropout": 0.2,
        "model.positions": "learned",
        "model.levels": 6,
        "optimizer.learning_rate": 1e-3,
        "optimizer.beta2": 0.99,
        "optimizer.warmup": 100,
        "optimizer.weight_decay": 0.1,
        "data.length": 256,
        "data.evaluated": 0,
    },
}


def make_model(config: Config) -> nn.Module:
    """Returns the model for the text's vocabulary."""
    chosen, size = config.model, len(config.data.text.vocabulary)
    names = [field.name for field in dataclasses.fields(transformer.Transformer)]
    net = transformer.Transformer(**{name: getattr(chosen, name) for name in names})
    if chosen.name == "transformer":
        return models.AttentionModel(net, size)
    other = models.Model(
        name=chosen.name,
        kernel_size=chosen.kernel_size,
        levels=chosen.levels,
        embedding=chosen.embedding,
        dropout=chosen.dropout,
    )
    goal = models.attention_parameters(net, size)
    return models.LanguageModel(models.sized(other, size, goal), size, tied=False)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the windows of the text; `data_dir` has no part in it.

    Raises:
      UserError: if the heads cannot share the features, or a window is too long.
    """
    net, chosen, text = config.model, config.data, config.data.text
    if net.features % (2 * net.heads):
        raise UserError(
            f"--config.model.features={net.features}: expected a multiple of twice the "
            f"{net.heads} heads (--config.model.heads)"
        )
    if chosen.length > net.longest:
        raise UserError(
            f"--config.data.length={chosen.length}: expected at most the {net.longest} "
            "positions that the network knows (--config.model.longest)"
        )
    train = Windows(text.tokens["train"], text.end, config.batch_size, chosen.length)

    def whole(split: str) -> Windows:
        tokens, half = text.tokens[split], chosen.length // 2
        return Windows(
            tokens[: chosen.evaluated or None], text.end, config.batch_size, half, half
        )

    return Data(train, {split: whole(split) for split in ("validation", "test")})


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the model's state before training; the LSTM's carry is a collection."""
    optimizer = config.optimizer.make(config.steps)
    return training.begin(make_model(config), optimizer, config.batch_size, key)


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the mean loss of a window, and carries a state on."""
    optimizer = config.optimizer.make(config.steps)
    return training.step(make_model(config), optimizer, state, batch, key)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Likelihood]:
    """Measures how likely the text is."""
    return training.likelihood(make_model(config), state.params, batch)


_PASSAGES = 4


def observe(
    config: Config, state: TrainState, key: jax.Array
) -> dict[str, Int[Array, "passages length"]]:
    """Writes some passages, each as long as a window."""
    ends = jnp.full(_PASSAGES, config.data.text.end, jnp.int32)
    model, length = make_model(config), config.data.length
    return {"text": training.write(model, state.params, ends, length, key)}


MAIN_METRIC = "test/bits"
_NAME, _FEATURES, _LENGTH = "model.name", "model.features", "data.length"

SWEEPS = {
    "sizes": product(
        **{
            _NAME: ("transformer", "tcn", "lstm"),
            _FEATURES: (32, 64, 96),
            "seed": range(5),
        }
    ),
    "context": product(
        product(**{_NAME: ("transformer", "tcn")}),
        zipped(batch_size=(256, 64, 16, 4), **{_LENGTH: (4, 16, 64, 256)}),
        seed=range(5),
    ),
}


def parameters(run_config: dict[str, Any]) -> int:
    """Returns how many parameters the network of a run has."""
    shapes = jax.eval_shape(init, replace(Config(), run_config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes.params))


def _against(ax: plt.Axes, name: str, x: list[int], finals: list[np.ndarray]) -> None:
    """Draws what a character costs a network in test: the mean and every seed."""
    color = COLORS[name]
    means = [
        values[np.isfinite(values)].mean() if np.isfinite(values).any() else np.nan
        for values in finals
    ]
    ax.plot(x, means, "-", color=color, label=NAMES[name])
    for place, values in zip(x, finals, strict=True):
        ax.plot([place] * len(values), values, "o", color=color, ms=3.5, alpha=0.5)


def _finish(ax: plt.Axes, setting: dict[str, Any]) -> None:
    ax.grid(alpha=0.3, which="both")
    ax.legend(title="mean; a point a seed")
    ax.set_title(f"test, after {setting['steps']:,} steps")
    ax.set_ylabel("bits a character")


@figure(sweep="sizes")
def sizes(runs: Runs) -> Figure:
    """What a character costs each network, against its size and against the step."""
    fig, (ax, curves) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    largest = runs.values(_FEATURES)[-1]
    for name, group in runs.by(_NAME).items():
        by_size = group.by(_FEATURES)
        x = [parameters(part[0].config) for part in by_size.values()]
        _against(ax, name, x, [part.final(MAIN_METRIC) for part in by_size.values()])
        steps, values = by_size[largest].curves("validation/bits")
        mean_and_range(curves, steps, values, color=COLORS[name], label=NAMES[name])
    _finish(ax, runs[0].config)
    # The networks of a size differ by less than a tick.
    ticks = [parameters(part[0].config) for part in runs.by(_FEATURES).values()]
    ax.set(xscale="log", xlabel="parameters")
    ax.set_xticks(ticks, [f"{tick / 1000:.0f}k" for tick in ticks])
    ax.set_xticks([], minor=True)
    curves.set(xlabel="step", ylabel="bits a character", yscale="log")
    curves.yaxis.set_major_formatter("{x:g}")
    curves.yaxis.set_minor_formatter("{x:g}")
    curves.set_title("validation, the largest of each")
    curves.legend(title="mean and range over seeds")
    curves.grid(alpha=0.3, which="both")
    return fig


@figure(sweep="sizes")
def written(runs: Runs) -> Figure:
    """Passages that the first seed of each largest network writes at the end."""
    setting = runs[0].config
    text = replace(Config(), setting).data.text
    columns = []
    largest = runs.where(**{_FEATURES: runs.values(_FEATURES)[-1]})
    for name, group in largest.by(_NAME).items():
        last = group[0].last_artifacts()
        passages = [text.decode(row).strip() for row in last.get("text", ())]
        columns.append((NAMES[name], COLORS[name], "\n\n".join(passages)))
    fig = texts(columns)
    fig.suptitle(
        f"passages of {setting[_LENGTH]} characters after {setting['steps']:,} steps"
    )
    return fig


@figure(sweep="context")
def context(runs: Runs) -> Figure:
    """What a character costs against the length of the windows."""
    fig, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for name, group in runs.by(_NAME).items():
        by_length = group.by(_LENGTH)
        finals = [part.final(MAIN_METRIC) for part in by_length.values()]
        _against(ax, name, list(by_length), finals)
    lengths = runs.values(_LENGTH)
    ax.set_xscale("log", base=2)
    ax.set(xticks=lengths, xticklabels=lengths)
    ax.set_xlabel("characters of a window; half or more are known in test")
    if "tcn" in runs.values(_NAME):
        net = sequence.Network(
            **{f: runs[0].config[f"model.{f}"] for f in ("kernel_size", "levels")}
        )
        label = "the TCN's receptive field"
        ax.axvline(net.receptive_field, color=COLORS["tcn"], ls="--", lw=1, label=label)
    _finish(ax, runs[0].config)
    return fig


FIGURES = {"sizes": sizes, "written": written, "context": context}


def summary(runs: Runs) -> str:
    """Returns what a character of the test text costs each network."""
    setting = runs[0].config
    swept = _LENGTH if len(runs.values(_LENGTH)) > 1 else _FEATURES
    parts = []
    for name, group in runs.by(_NAME).items():
        found = []
        for value, part in group.by(swept).items():
            size = f"{value:,}"
            if swept == _FEATURES:
                size = f"{round(parameters(part[0].config), -3) // 1000:,}k"
            found.append(f"{mean_and_spread(part.final(MAIN_METRIC))} ({size})")
        parts.append(f"{NAMES[name]} {', '.join(found)}")
    what = "characters of a window" if swept == _LENGTH else "parameters"
    return (
        f"Bits a character in the test part of Shakespeare's plays after "
        f"{setting['steps']:,} steps (by {what}), {len(runs.values('seed'))} seeds: "
        f"{'; '.join(parts)}."
    )
