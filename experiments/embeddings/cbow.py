"""CBOW: words as vectors, learned with the full softmax or with negative sampling.

Mikolov, Chen, Corrado & Dean, "Efficient estimation of word representations in vector
space", 2013 (arXiv:1301.3781), and Mikolov, Sutskever, Chen, Corrado & Dean,
"Distributed representations of words and phrases and their compositionality", 2013
(arXiv:1310.4546): the mean of the vectors of the words around predicts a word. The full
softmax costs as much as there are words in the vocabulary; negative sampling tells the
word from a few others, drawn from the unigram distribution to the power of 3/4.

    python -m launch.sweep --experiment=embeddings.cbow --sweep=losses --executor=vmap
    python -m launch.sweep --experiment=embeddings.cbow --sweep=dimensions \\
        --executor=vmap
    python -m launch.sweep --experiment=embeddings.cbow --sweep=windows --executor=vmap
    python -m launch.sweep --experiment=embeddings.cbow --sweep=negatives \\
        --executor=vmap
    python -m launch.figures --experiment=embeddings.cbow

The text is nine novels that ship with the project, 1.2 million words, of which the most
frequent 2,000 different ones are kept; `--config.data.path` names other novels. With
`--config.questions=questions-words.txt`, `--config.wordsim=wordsim353.tsv` and
`--config.simlex=simlex999.txt` (gensim's test data have all three) Google's analogies
and the correlation with people's judgements of similarity are measured too; these files
may not ship. The analogies that do are ours (`dl_core.data.word_pairs`).

Look for (five seeds, 2.6 million words read): both losses find much the same neighbours
and, in 50 dimensions, the same share of our analogies, 36.1 ± 3.1 % with the full
softmax and 35.6 ± 1.7 % with negative sampling, which takes a fifth of the time. The
perplexity of held-out text, 250.2 ± 0.5 and 246.9 ± 1.1, is exact for both: the vectors
of negative sampling tend to h·u = log p(w|context) - log q(w) + constant, q the
distribution of the negatives, so that q(w) exp(h·u), made to add up to 1, is what they
predict. Of the other tests only few questions have all words in so small a vocabulary:
702 of Google's analogies, 26.3 ± 1.8 and 23.2 ± 1.1 % right; 37 pairs of WordSim-353, a
correlation of 0.47 ± 0.09 and 0.47 ± 0.02; 207 of SimLex-999, 0.13 ± 0.03 and 0.08 ±
0.04. A narrow window predicts better, and analogies are best with 2 words on either
side; fewer than 15 numbers are too few for analogies, more than 50 do not help, and
neither do more than 5 negatives (at a step size of 0.07: with 15 the default diverges).

What differs from word2vec.c: a step reads a block of words, whose updates are all from
the vectors before it, and the gradient of a mean over the window is divided by the
number of words in it, as a derivative is. The step size falls linearly to 0, and is one
target's: the gradients of a block are added up, not averaged. It is 0.2 at first: of
0.1, 0.2 and 0.4 (the full softmax: 0.3) both losses were best with it, by the
validation text and one seed that is in no sweep; with the largest both diverged.
`--preset=paper` has the settings of demo-word-accuracy.sh, which comes with word2vec.c,
for the hundred novels, novels.tar.xz, but for the step size: its blocks are 8 times as
large with 5 times as many negatives, 40 times as many in a step, and with 0.2 the
training loss of the embedded novels diverged within ten steps. It is 0.01, a twentieth.
"""

import functools
import sys
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from dl_core import pictures
from dl_core.config import RunConfig, config, nested, replace, static, traced
from dl_core.data.batches import Data
from dl_core.data.novels import Blocks, NovelsConfig, read_novels
from dl_core.data.word_pairs import PAIRS
from dl_core.errors import UserError
from dl_core.metrics import word_vectors
from dl_core.ops import embeddings
from dl_core.results import Run, Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Likelihood


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(5_000, "Training steps.", at_least=1)
    batch_size: int = static(512, "Words of a block, which is a step.", at_least=1)
    eval_every: int = static(1_250, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(5_000, "Steps between checkpoints.", at_least=1)
    model: Literal["cbow", "skip_gram"] = static("cbow", "What predicts what.")
    loss: Literal["negative", "softmax"] = static("negative", "How it is learned.")
    dimension: int = static(50, "Numbers in a vector.", at_least=1)
    window: int = static(5, "Most words on either side.", at_least=1)
    negatives: int = static(5, "Negatives of a target.", at_least=1)
    shared: int = static(
        0, "Negatives that a block shares; 0 if each target has its own.", at_least=0
    )
    sample: float = static(1e-3, "Above this frequency words are dropped.", at_least=0)
    learning_rate: float = traced(0.2, "Step size at the start.", above=0)
    evaluated: int = static(
        4_096, "First words of a held-out split that are evaluated.", at_least=1
    )
    questions: str = static("", "Analogies, as in questions-words.txt.")
    wordsim: str = static("", "WordSim-353, with tabs.")
    simlex: str = static("", "SimLex-999, with tabs.")
    data: NovelsConfig = nested(NovelsConfig, vocabulary=2_000)


PRESETS = {
    "smoke": {
        "steps": 6,
        "batch_size": 32,
        "log_every": 2,
        "eval_every": 3,
        "checkpoint_every": 3,
        "dimension": 8,
        "evaluated": 100,
        "data.vocabulary": 300,
    },
    "paper": {
        "steps": 20_000,
        "batch_size": 4_096,
        "log_every": 500,
        "eval_every": 5_000,
        "checkpoint_every": 5_000,
        "dimension": 200,
        "window": 8,
        "negatives": 25,
        "sample": 1e-4,
        "learning_rate": 0.01,
        "data.path": "novels.tar.xz",
        "data.vocabulary": 30_000,
    },
}


@struct.dataclass
class State:
    """A step count and the vectors; SGD has no state of its own."""

    step: Int[Array, ""]
    params: embeddings.Params


def data(config: Config, data_dir: Any) -> Data:
    """Returns blocks of the novels; `data_dir` has no part in it.

    Raises:
      UserError: if a file cannot be read, or an epoch has less words than a block.
    """
    novels = read_novels(config.data)
    print(novels.report(), file=sys.stderr)
    given = _given(config)
    for name in _FILES:
        if name not in given:
            print(f"no --config.{name}: what it measures is left out")
    keep = embeddings.keep_probability(novels.counts, config.sample)
    if (kept := keep @ novels.counts) < config.batch_size:
        raise UserError(
            f"--config.sample={config.sample}: expected an epoch to keep at least the "
            f"{config.batch_size} words of a block, but it keeps about {kept:.0f}"
        )

    def blocks(split: str, words: int | None = None) -> Blocks:
        return Blocks(
            novels.words[split][:words],
            novels.sentences[split][:words],
            keep,
            config.batch_size if words is None else _EVALUATED_AT_ONCE,
            config.window,
        )

    held_out = {s: blocks(s, config.evaluated) for s in ("validation", "test")}
    return Data(blocks("train"), held_out)


_EVALUATED_AT_ONCE = 512

_FILES = {
    "questions": (word_vectors.read_questions, word_vectors.accuracies),
    "wordsim": (word_vectors.read_pairs, word_vectors.correlation),
    "simlex": (word_vectors.read_pairs, word_vectors.correlation),
}
"""How each is read, and what it measures."""


def _given(config: Config) -> dict[str, Any]:
    """Returns what is in the files that the config names."""
    paths = {name: getattr(config, name) for name in _FILES}
    return {name: _read(name, path) for name, path in paths.items() if path}


@functools.lru_cache(maxsize=8)
def _read(name: str, path: str) -> Any:
    # Scored at each evaluation, the files need to be read only once.
    return _FILES[name][0](path)


def init(config: Config, key: jax.Array) -> State:
    """Returns word2vec's vectors before training."""
    size = len(read_novels(config.data).vocabulary)
    return State(jnp.int32(0), embeddings.initial(key, size, config.dimension))


def train_step(
    config: Config, state: State, batch: dict[str, Array], key: jax.Array
) -> tuple[State, dict[str, Array]]:
    """Takes a step of SGD for the targets of a block; their mean loss is exact."""
    tokens = batch["tokens"]
    mask = embeddings.in_window(batch["sentences"], batch["radius"])
    rate = config.learning_rate * (1 - state.step / config.steps)
    if config.loss == "softmax":
        params, loss = embeddings.descend_softmax(
            state.params, tokens, mask, rate, config.model
        )
    else:
        wanted, _ = embeddings.targets(tokens, mask, config.model)
        own = (*wanted.shape, config.negatives)
        sampler = embeddings.Sampler.of(_noise(config))
        drawn = sampler.draw(key, (config.shared,) if config.shared else own)
        params, loss = embeddings.descend_negative(
            state.params, tokens, mask, drawn, rate, config.model, config.negatives
        )
    return State(state.step + 1, params), {"loss": loss}


def _noise(config: Config) -> Float[np.ndarray, " vocabulary"]:
    return embeddings.noise(read_novels(config.data).counts)


def eval_step(
    config: Config, state: State, batch: dict[str, Array]
) -> dict[str, Likelihood]:
    """Measures how likely held-out words are, over the whole vocabulary."""
    tokens, params = batch["tokens"], state.params
    mask = embeddings.in_window(batch["sentences"], batch["radius"])
    wanted, counts = embeddings.targets(tokens, mask, config.model)
    loss = embeddings.softmax_loss(
        embeddings.hidden(params["input"][tokens], mask, config.model),
        params["output"],
        wanted,
        counts,
        jnp.log(_noise(config)) if config.loss == "negative" else 0.0,
    )
    weight = counts.ravel().astype(jnp.float32)
    return {"likelihood": Likelihood.of(loss.ravel(), weight)}


def observe(
    config: Config, state: State, key: jax.Array
) -> dict[str, Float[Array, "vocabulary dimension"]]:
    """Returns the vectors of words, in half precision."""
    return {"vectors": state.params["input"].astype(jnp.float16)}


def score(config: Config, observed: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the shares of analogies that are right, and the correlations.

    Of a category without a question whose words are known there is none.
    """
    vocabulary = read_novels(config.data).vocabulary
    vectors = observed["vectors"].astype(np.float32)
    found = word_vectors.accuracies("analogies", vocabulary, vectors, _OURS)
    for name, asked in _given(config).items():
        found |= _FILES[name][1](name, vocabulary, vectors, asked)
    return found


_OURS = word_vectors.questions_of(PAIRS)

MAIN_METRIC = "test/perplexity"
_ANALOGIES = "observed/analogies"
_LOSSES = {"softmax": "full softmax", "negative": "negative sampling"}
_COLORS = {"softmax": "tab:blue", "negative": "tab:orange"}

SWEEPS = {
    "losses": product(loss=tuple(_LOSSES), seed=range(5)),
    "dimensions": product(dimension=(5, 15, 50, 150), seed=range(5)),
    "windows": product(window=(1, 2, 5, 10), seed=range(5)),
    # The sum of the gradients grows with the negatives: 15 diverge at the default rate.
    "negatives": product(learning_rate=(0.07,), negatives=(1, 2, 5, 15), seed=range(5)),
}


@figure(sweep="losses")
def losses(runs: Runs) -> Figure:
    """Perplexity of held-out text, analogies by category, and time, of both losses."""
    fig, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.8), layout="constrained", width_ratios=(3, 4, 1.4)
    )
    categories = [c for c in PAIRS if _asked(runs, c)]
    groups = runs.by("loss")
    for place, (name, group) in enumerate(groups.items()):
        looks = {"color": _COLORS[name], "label": _LOSSES[name]}
        steps, values = group.curves(MAIN_METRIC)
        size = group[0].config["batch_size"]
        pictures.mean_and_range(left, steps * size / 1e6, values, "o-", ms=3, **looks)
        for number, category in enumerate(categories):
            at = number + (place - (len(groups) - 1) / 2) * 0.3
            shares = 100 * group.final(f"{_ANALOGIES}/{category}")
            pictures.seed_points(middle, at, shares, **looks)
        pictures.seed_points(right, place, _seconds(group), **looks)
    left.set(xlabel="words read, in millions", ylabel="perplexity of a held-out word")
    left.set(yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.grid(alpha=0.3, which="both")
    left.legend(title="mean and range over seeds")
    middle.set(xticks=range(len(categories)), xticklabels=categories)
    middle.set(ylabel="analogies that are right, in %", ylim=(0, None))
    middle.set_title("a point a seed, a bar their mean")
    middle.grid(alpha=0.3, axis="y")
    right.set(xticks=range(len(groups)), xlim=(-0.6, len(groups) - 0.4))
    right.set_xticklabels([_LOSSES[name].replace(" ", "\n") for name in groups])
    right.set(ylabel="seconds for a million words, evaluation too", ylim=(0, None))
    right.grid(alpha=0.3, axis="y")
    return fig


def _asked(runs: Runs, category: str) -> bool:
    name = f"{_ANALOGIES}/{category}"
    return all(run.diverged or name in run.result["metrics"] for run in runs)


def _seconds(runs: Runs) -> Float[np.ndarray, " runs"]:
    """Returns seconds for a million words; NaN for a run that diverged."""
    return np.array([np.nan if r.diverged else r.seconds / _millions(r) for r in runs])


def _millions(run: Run) -> float:
    """Returns how many million words a run reads."""
    return run.config["steps"] * run.config["batch_size"] / 1e6


_SHOWN = ("man", "mother", "house", "horse", "red", "happy", "walked", "monday")
_DRAWN = (
    "father mother brother sister son daughter uncle aunt wife husband",
    "hand hands arm head face eyes hair lips",
    "morning evening night day week month year hour",
    "said asked replied answered cried walked ran went came sat stood",
    "house room door window garden table chair stairs",
)


def _finished(runs: Runs) -> dict[str, Run]:
    """Returns the first run of each loss that did not diverge, by the loss's name."""
    groups = Runs(run for run in runs if not run.diverged).by("loss").items()
    return {_LOSSES[loss]: group[0] for loss, group in groups}


def _vectors(run: Run) -> tuple[tuple[str, ...], word_vectors.Vectors]:
    """Returns the words that a run ends with, and their vectors, of length 1."""
    last = run.last_artifacts()["vectors"]
    words = read_novels(replace(Config(), run.config).data).vocabulary
    return words, word_vectors.unit(last)


@figure(sweep="losses")
def neighbours(runs: Runs) -> Figure:
    """The nearest neighbours of some words, by both losses."""
    chosen = _finished(runs)
    rows: dict[str, list[str]] = {}
    for run in chosen.values():
        words, vectors = _vectors(run)
        for word in (word for word in _SHOWN if word in words):
            best, cosines = embeddings.nearest(vectors, words.index(word), 5)
            near = zip(best, cosines, strict=True)
            text = ", ".join(f"{words[place]} {cosine:.2f}" for place, cosine in near)
            rows.setdefault(word, []).append(text)
    title = "the five words of the largest cosine, first seed of each loss"
    return pictures.table_of_texts(rows, list(chosen), title)


@figure(sweep="losses")
def projection(runs: Runs) -> Figure:
    """Some words in the plane of their two principal components, by both losses."""
    chosen = _finished(runs)
    fig, axes = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    for ax, (name, run) in zip(axes, chosen.items(), strict=False):
        words, vectors = _vectors(run)
        groups = [
            {word: vectors[words.index(word)] for word in kind.split() if word in words}
            for kind in _DRAWN
        ]
        explained = pictures.principal_plane(ax, groups)
        ax.set_title(f"{name} ({explained:.0%} of the variance)")
    return fig


_MEASURES = {
    "perplexity of a held-out word": (MAIN_METRIC, 1, "tab:orange"),
    "analogies that are right, in %": (_ANALOGIES, 100, "tab:green"),
}


@figure(sweep="dimensions")
def dimensions(runs: Runs) -> Figure:
    """Perplexity and analogies against the length of the vectors."""
    return pictures.finals(runs, "dimension", "numbers in a vector", _MEASURES)


@figure(sweep="windows")
def windows(runs: Runs) -> Figure:
    """Perplexity and analogies against the width of the window."""
    return pictures.finals(runs, "window", "most words on either side", _MEASURES)


@figure(sweep="negatives")
def negatives(runs: Runs) -> Figure:
    """Perplexity and analogies against the number of negatives."""
    return pictures.finals(runs, "negatives", "negatives of a target", _MEASURES)


FIGURES = {
    "losses": losses,
    "neighbours": neighbours,
    "projection": projection,
    "dimensions": dimensions,
    "windows": windows,
    "negatives": negatives,
}


def summary(runs: Runs) -> str:
    """Returns the perplexity and the share of right analogies of each setting."""
    fields = ("loss", "dimension", "window", "negatives", "seed")
    field = next(f for f in fields if len(runs.values(f)) > 1)
    parts = []
    for value, group in runs.by(field).items():
        name = _LOSSES[value] if field == "loss" else f"{field} {value}"
        right = mean_and_spread(group.final(_ANALOGIES), scale=100, unit=" %")
        perplexity = mean_and_spread(group.final(MAIN_METRIC))
        parts.append(f"{name} {perplexity}, {right} of analogies")
    return (
        f"Perplexity of a held-out word after {_millions(runs[0]):.2g} million words "
        f"at a step size of {runs[0].config['learning_rate']:g}, "
        f"{len(runs.values('seed'))} seeds: {'; '.join(parts)}."
    )
