"""Translation: attention beats one vector between networks at every length.

Sutskever, Vinyals & Le, 2014 (arXiv:1409.3215): one LSTM reads a sentence, another
writes its translation, and all that passes between them is a state. Bahdanau, Cho &
Bengio, 2015 (arXiv:1409.0473), let every written word attend to the sentence; Luong,
Pham & Manning, 2015 (arXiv:1508.04025), compare the scores dot, general and location;
Vaswani et al., 2017 (arXiv:1706.03762), leave the recurrence out.

    python -m launch.sweep --experiment=attention.translation --sweep=networks \
        --executor=vmap
    python -m launch.figures --experiment=attention.translation

The pairs are English and French sentences of Tatoeba, which ship with the project, in
2,000 byte pairs a language. A trained run translates what it is given:

    python -m launch.translate --run=runs/attention.translation/runs/default \
        --text='Where is the station?' --beam=5

Look for (1,200 steps, one epoch, five seeds): BLEU against the number of words in the
source, Bahdanau's figure. One state between two LSTMs is not enough for any length, 1.6
± 0.3 in all; where every word attends to the sentence it is 10.1 ± 0.7 (additive), 8.3
± 1.2 (dot), 8.0 ± 1.2 (general) and 8.5 ± 0.5 (Transformer), and location, which sees
only how far the translation has come, has 7.6 ± 0.3. All fall with the length: none is
trained to the end in so short a time. In the alignment maps the weights follow the
diagonal, and leave it where the words of both languages stand in another order;
location's cannot.

BLEU is sacrebleu's, of whole detokenised test sets, translated greedily; its signature
is nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp, and, with sacrebleu's version, in
assets/bleu.txt of a run. The share of translations that were cut before their end is
`test/unended`. The training is on the true words
before each (teacher forcing). All recurrent networks are of one layer, and the encoder
reads in both directions where there is attention, Luong's too; the papers' have up to
four layers and are a thousand times larger. The Transformer normalises before each
branch, as it then trains without warm-up.

`--preset=paper` is the setting of the public table of Multi30k, German to English, at
github.com/bentrevett/pytorch-seq2seq, for Bahdanau's network, `paper_transformer` for
the Transformer: lower-cased words, a batch of 128, ten epochs. The files of the folder
data/task1/raw of github.com/multi30k/dataset must be in the folder multi30k, or in
another one that `--config.data.path=FOLDER` names. There case is lc, not mixed, and
`test/bleu_words` is of the words as they are tokenised (tok:none), as in that table
(its 28.3 for Bahdanau and 36.5 for the Transformer are drawn in), though the tokeniser
here is Moses's, and its spaCy's. In half of the steps that code trains on the network's
own words, and it keeps the epoch with the best validation loss; here the words are
always true, and the last step counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array
from matplotlib.figure import Figure

from dl_core import pictures_sentences
from dl_core.config import RunConfig, config, nested, replace, static
from dl_core.data.batches import Data
from dl_core.data.buckets import Bucketed, at_length
from dl_core.data.translation import PairsConfig, read_pairs, report_once
from dl_core.metrics.sentences import LENGTHS, Translations, first_example
from dl_core.models import translation
from dl_core.models.translation import Translation, Translator, Vocabularies
from dl_core.pictures import mean_and_range, seed_points
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import chain, product
from dl_core.train.metrics import Likelihood
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(1_200, "Training steps.", at_least=1)
    batch_size: int = static(32, "Pairs in a training batch.", at_least=1)
    eval_every: int = static(600, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(1_200, "Steps between checkpoints.", at_least=1)
    model: Translator = nested(Translator)
    optimizer: Optimizer = nested(Optimizer, learning_rate=2e-3, clip=1.0)
    data: PairsConfig = nested(PairsConfig)
    buckets: tuple[int, ...] = static(
        (14, 24),
        "Tokens to which batches of shorter sentences are cut.",
        at_least=1,
    )
    evaluated: int = static(
        0, "First pairs of a set that are evaluated; 0 for all.", at_least=0
    )


_PAPER = {
    "steps": 2_270,
    "batch_size": 128,
    "eval_every": 227,
    "checkpoint_every": 1_135,
    "model.recurrent.cell": "gru",
    "model.recurrent.features": 512,
    "model.recurrent.encoder": 512,
    "model.recurrent.embedding": 256,
    "model.recurrent.dropout": 0.5,
    "model.recurrent.maxout": False,
    "model.transformer.features": 256,
    "model.transformer.heads": 8,
    "model.transformer.layers": 3,
    "model.transformer.hidden": 512,
    "model.transformer.dropout": 0.1,
    "model.transformer.norm": "post",
    "model.transformer.activation": "relu",
    "model.transformer.positions": "learned",
    "optimizer.learning_rate": 1e-3,
    "data.path": "multi30k",
    "data.source": "de",
    "data.target": "en",
    "data.unit": "words",
    "data.vocabulary": 8_000,
    "data.lower": True,
}
PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "model.recurrent.features": 8,
        "model.recurrent.embedding": 8,
        "model.transformer.features": 8,
        "model.transformer.heads": 2,
        "model.transformer.layers": 1,
        "model.transformer.hidden": 8,
        "data.vocabulary": 200,
        "data.pairs": 500,
        "buckets": (),
        "evaluated": 8,
    },
    "paper": _PAPER,
    "paper_transformer": _PAPER
    | {"model.name": "transformer", "optimizer.learning_rate": 5e-4},
}

_EVAL_BATCH = 256
_SHOWN = 3  # alignments


def vocabularies(config: Config) -> Vocabularies:
    """Returns the vocabularies of the training pairs."""
    pairs = read_pairs(config.data)
    return Vocabularies(pairs.source, pairs.target)


def make_model(config: Config, known: Vocabularies | None = None) -> nn.Module:
    """Returns the encoder-decoder for some vocabularies, or the training pairs'."""
    known = vocabularies(config) if known is None else known
    return translation.make_model(config.model, known, config.data.longest)


def edges(config: Config) -> tuple[int, ...]:
    """Returns the lengths to which batches are cut, the longest last."""
    longest = config.data.longest
    return (*sorted({edge for edge in config.buckets if edge < longest}), longest)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the pairs by length, and says what was left out; without `data_dir`."""
    splits = read_pairs(config.data).splits
    report_once(config.data)

    def bucketed(arrays: Mapping[str, np.ndarray], size: int) -> Bucketed:
        lengths = np.maximum(arrays["source_length"], arrays["target_length"])
        return Bucketed(arrays, lengths, edges(config), size)

    def evaluation(name: str) -> Bucketed:
        arrays, first = splits[name].arrays(), first_example(config.data, name)
        count = len(arrays["source"])
        arrays["example"] = np.arange(first, first + count, dtype=np.int32)
        limit = config.evaluated or count
        return bucketed({k: x[:limit] for k, x in arrays.items()}, _EVAL_BATCH)

    return Data(
        bucketed(splits["train"].arrays(), config.batch_size),
        {name: evaluation(name) for name in ("validation", "test")},
    )


def assets(config: Config) -> dict[str, bytes]:
    """Returns what translating needs, what was left out, and what BLEU means."""
    known = vocabularies(config)
    return {
        "source.vocabulary": known.source.to_bytes(),
        "target.vocabulary": known.target.to_bytes(),
        "pairs.txt": f"{read_pairs(config.data).report()}\n".encode(),
        "bleu.txt": Translations.signatures(config.data).encode(),
    }


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the state before training."""
    return begin(config, key, vocabularies(config))


def begin(config: Config, key: jax.Array, known: Vocabularies) -> TrainState:
    """Returns the state before training with given vocabularies.

    Their fingerprints are a collection: a checkpoint says which ones it is for.
    """
    tokens, lengths = jnp.zeros((1, 2), jnp.int32), jnp.ones(1, jnp.int32)
    model = make_model(config, known)
    variables = model.init(key, tokens, lengths, tokens, train=False)
    prints = {name: jnp.uint32(mark) for name, mark in known.fingerprints().items()}
    variables = {"params": variables["params"], "vocabularies": prints}
    return TrainState.create(variables, config.optimizer.make())


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the mean loss of a token."""
    model = make_model(config)

    def on_cut(batch):
        def loss_fn(params):
            loss, valid = translation.losses(model, params, batch, key)
            return (loss * valid).sum() / valid.sum()

        return jax.value_and_grad(loss_fn)(state.params)

    loss, gradients = at_length(on_cut, edges(config), batch["bucket"], batch)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
    return state.apply_gradients(gradients, config.optimizer.make()), metrics


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures how likely the true translations are, and how good the greedy ones."""
    model = make_model(config)

    def on_cut(batch):
        loss, valid = translation.losses(model, state.params, batch)
        counted = valid * batch["mask"][:, None]
        likelihood = Likelihood.of(loss.ravel(), counted.ravel())
        sources = batch["source"], batch["source_length"]
        return likelihood, translation.greedy(
            model, state.params, *sources, config.data.longest
        )

    likelihood, tokens = at_length(on_cut, edges(config), batch["bucket"], batch)
    made = Translations(tokens, batch["example"], batch["mask"], config.data)
    return {"likelihood": likelihood, "translations": made}


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Translates a few test sentences, and keeps where each word attended to."""
    split = read_pairs(config.data).splits["test"]
    chosen = pictures_sentences.chosen(split, _SHOWN)
    lengths = split.source_length[chosen]
    source = jnp.asarray(split.source[chosen][:, : max(lengths)])
    sources = make_model(config), state.params, source, jnp.asarray(lengths)
    tokens = translation.greedy(*sources, config.data.longest)
    weights = translation.weights(*sources, tokens)
    observed = {"example": jnp.asarray(chosen), "tokens": tokens}
    return observed if weights is None else observed | {"weights": weights}


def translate(
    config: Config,
    state: TrainState,
    known: Vocabularies,
    lines: Sequence[str],
    beam: int = 1,
    **penalties: float,
) -> list[Translation]:
    """Translates sentences with a trained run's state and vocabularies.

    Args:
      config: of the run.
      state: its last.
      known: its vocabularies.
      lines: the sentences.
      beam: width of the beam search; 1 is greedy.
      **penalties: of a beam search, as `dl_core.models.translation.translate` has them.

    Raises:
      UserError: if a sentence is empty or longer than those of the training, or the
        model has no attention that a coverage penalty could go by.
    """
    trained = make_model(config, known), state.params, known
    longest = config.data.longest
    return translation.translate(*trained, lines, longest, beam, **penalties)


MAIN_METRIC = "test/bleu"

_NAME, _SCORE = "model.name", "model.recurrent.score"
_RECURRENT = {_NAME: ("recurrent",), "seed": range(5)}
_TRANSFORMER = {_NAME: ("transformer",), "optimizer.learning_rate": (1e-3,)}
SWEEPS = {
    "networks": chain(
        product(**{_SCORE: ("none", "additive", "general", "location"), **_RECURRENT}),
        # A product of state and memory needs as many numbers in both.
        product(**{_SCORE: ("dot",), "model.recurrent.encoder": (0,), **_RECURRENT}),
        product(**_TRANSFORMER, seed=range(5)),
    )
}

_NAMES = {
    "none": "LSTM without attention",
    "additive": "additive (Bahdanau)",
    "dot": "dot (Luong)",
    "general": "general (Luong)",
    "location": "location (Luong)",
    "transformer": "Transformer",
}
_COLORS = dict(zip(_NAMES, ("C7", "C0", "C2", "C1", "C4", "C3"), strict=True))
_PUBLISHED = {"additive": 28.3, "transformer": 36.5}  # BLEU of the public table


def _groups(runs: Runs) -> dict[str, Runs]:
    """Returns the runs of each network, in the order of the names."""
    found = {
        score if network == "recurrent" else network: group
        for (network, score), group in runs.by(_NAME, _SCORE).items()
    }
    return {name: found[name] for name in _NAMES if name in found}


@figure(sweep="networks")
def lengths(runs: Runs) -> Figure:
    """BLEU against the words of the source: the figure that made attention."""
    lines, sentences = [], np.zeros(len(LENGTHS) - 1)
    for name, group in _groups(runs).items():
        steps, values = group.curves("test/bleu_by_length")
        if len(steps):
            sentences = group.curves("test/sentences_by_length")[1][0, -1]
            lines.append((_NAMES[name], _COLORS[name], values[:, -1]))
    return pictures_sentences.bleu_by_length(lines, sentences, dashed=_NAMES["none"])


@figure(sweep="networks")
def networks(runs: Runs) -> Figure:
    """What a token costs in validation, and BLEU of each network at the end."""
    fig, (ax, ends) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    words = runs[0].config["data.unit"] == "words"
    metric = "test/bleu_words" if words else "test/bleu"
    groups = _groups(runs)
    for place, (name, group) in enumerate(groups.items()):
        steps, values = group.curves("validation/perplexity")
        label, color = _NAMES[name], _COLORS[name]
        mean_and_range(ax, steps[1:], values[:, 1:], "o-", ms=3, color=color)
        seed_points(ends, place, group.final(metric), color, label)
        if words and name in _PUBLISHED:
            ends.plot(place, _PUBLISHED[name], "k_", ms=30, mew=1)
    ax.set(xlabel="step", ylabel="perplexity of a token, validation", yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.grid(alpha=0.3, which="both")
    short = [_NAMES[name].replace(" ", "\n", 1) for name in groups]
    ends.set_xticks(range(len(groups)), short, fontsize=7)
    ends.set_ylabel("BLEU of the tokens, test" if words else "BLEU, test")
    note = "; black: published" if words else ""
    ends.set_title(f"after {runs[0].config['steps']:,} steps, a point a seed{note}")
    ends.grid(alpha=0.3, axis="y")
    return fig


@figure(sweep="networks")
def alignments(runs: Runs) -> Figure:
    """Where the words of a few translations attended to, of the first seed."""
    chosen = replace(Config(), runs[0].config).data
    lines = [
        (_NAMES[name], _COLORS[name], group[0].last_artifacts())
        for name, group in _groups(runs).items()
        if name != "none"
    ]
    return pictures_sentences.alignments(lines, read_pairs(chosen), _SHOWN)


FIGURES = {"lengths": lengths, "networks": networks, "alignments": alignments}


def summary(runs: Runs) -> str:
    """Returns the BLEU of each network."""
    setting = runs[0].config
    found = ", ".join(
        f"{_NAMES[name]} {mean_and_spread(group.final('test/bleu'))}"
        for name, group in _groups(runs).items()
    )
    return (
        f"BLEU of greedy translations from {setting['data.source']} to "
        f"{setting['data.target']} after {setting['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {found}."
    )
