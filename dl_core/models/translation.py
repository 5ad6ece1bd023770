"""Encoder-decoders as translators: sentences in, sentences out.

One config chooses between the recurrent ones (`dl_core.models.seq2seq`) and the
Transformer (`dl_core.models.transformer`), which are called alike.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from dl_core.config import config, nested, static
from dl_core.data.subwords import BEGIN, END, PAD, Vocabulary
from dl_core.errors import UserError
from dl_core.models import seq2seq, transformer
from dl_core.models.seq2seq import Seq2Seq
from dl_core.models.transformer import Transformer
from dl_core.ops import decode

LENGTH_PENALTY = 0.6
"""Of a beam search, where none is given."""


@config
class Translator:
    """Which encoder-decoder, and its size."""

    name: Literal["recurrent", "transformer"] = static("recurrent", "Which kind.")
    recurrent: Seq2Seq = nested(Seq2Seq)
    transformer: Transformer = nested(
        Transformer, features=128, layers=2, hidden=256, dropout=0.1
    )


class Vocabularies(NamedTuple):
    """Those of the two languages."""

    source: Vocabulary
    target: Vocabulary

    def fingerprints(self) -> dict[str, int]:
        """Returns a number that stands for each."""
        return {k: zlib.crc32(x.to_bytes()) for k, x in self._asdict().items()}


def make_model(net: Translator, known: Vocabularies, longest: int) -> nn.Module:
    """Returns the encoder-decoder.

    Args:
      net: which.
      known: the vocabularies.
      longest: tokens of the longest sentence.

    Raises:
      UserError: if parts of the config do not fit each other.
    """
    sizes = len(known.source), len(known.target)
    if net.name == "transformer":
        chosen = net.transformer
        _check_features(chosen)
        _check_longest("transformer", chosen.longest, longest)
        return transformer.EncoderDecoder(chosen, *sizes)
    chosen = net.recurrent
    if not chosen.memory:
        raise UserError(
            f"--config.model.recurrent.features={chosen.features}: expected at least "
            "2, as the encoder has half as many units in each direction unless "
            "model.recurrent.encoder says how many"
        )
    if chosen.score == "location":
        _check_longest("recurrent", chosen.longest, longest)
    if chosen.score == "dot" and chosen.memory != chosen.features:
        raise UserError(
            "--config.model.recurrent.score=dot: expected as many units in the decoder "
            f"as in the encoder's two directions, got {chosen.features} and "
            f"{chosen.memory}"
        )
    return seq2seq.EncoderDecoder(chosen, *sizes)


def _check_features(chosen: Transformer) -> None:
    given = f"--config.model.transformer.features={chosen.features}"
    if chosen.features % chosen.heads:
        raise UserError(
            f"--config.model.transformer.heads={chosen.heads}: expected a divisor "
            f"of model.transformer.features={chosen.features}"
        )
    if chosen.positions == "sinusoidal" and chosen.features % 2:
        raise UserError(
            f"{given}: expected an even number, for pairs of sines and cosines "
            "(model.transformer.positions=sinusoidal)"
        )
    if chosen.positions == "rotary" and chosen.features // chosen.heads % 2:
        raise UserError(
            f"{given}: expected a multiple of twice the {chosen.heads} heads, for "
            "pairs that are turned (model.transformer.positions=rotary)"
        )


def _check_longest(name: str, positions: int, longest: int) -> None:
    if positions < longest:
        raise UserError(
            f"--config.model.{name}.longest={positions}: expected at least "
            f"data.longest={longest}"
        )


def shifted(target: Int[Array, "batch target"]) -> Int[Array, "batch target"]:
    """Returns the tokens before those of the target."""
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BEGIN)


def losses(
    model: nn.Module,
    params: PyTree,
    batch: Mapping[str, Array],
    key: jax.Array | None = None,
) -> tuple[Float[Array, "batch target"], Float[Array, "batch target"]]:
    """Returns -log p of each target token in nats, and 1 where there is one, else 0.

    Args:
      model: from `make_model`.
      params: of it.
      batch: pairs, as `dl_core.data.translation.Split` has them.
      key: of what is dropped; nothing is without one.
    """
    logits, _ = model.apply(
        {"params": params},
        batch["source"],
        batch["source_length"],
        shifted(batch["target"]),
        train=key is not None,
        rngs=None if key is None else {"dropout": key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
    valid = jnp.arange(loss.shape[1]) < batch["target_length"][:, None]
    return loss, valid.astype(jnp.float32)


def greedy(
    model: nn.Module,
    params: PyTree,
    source: Int[Array, "batch source"],
    lengths: Int[Array, " batch"],
    longest: int,
) -> Int[Array, "batch {longest}"]:
    """Returns translations of the most probable next tokens, filled with `END`.

    One that was cut at the longest has no `END`. `PAD` and `BEGIN` are never written.

    Args:
      model: from `make_model`.
      params: of it.
      source: tokens, each sentence ending with `END`.
      lengths: of the sentences.
      longest: tokens of a translation at most.
    """
    step, state = _decoding(model, params, source, lengths)
    return decode.greedy(step, state, _begin(source), END, longest)[0]


def beam(
    model: nn.Module,
    params: PyTree,
    source: Int[Array, "batch source"],
    lengths: Int[Array, " batch"],
    longest: int,
    width: int,
    length_penalty: float = LENGTH_PENALTY,
    coverage_penalty: float = 0.0,
) -> Int[Array, "batch {longest}"]:
    """Returns the best translations of a beam search, as `greedy` does.

    Args: as for `greedy`, and for `dl_core.ops.decode.beam`.

    Raises:
      ValueError: if there is a coverage penalty, and the model is a Transformer or has
        no attention.
    """
    covers = coverage_penalty != 0
    step, state = _decoding(model, params, source, lengths, width, attention=covers)
    found, _ = decode.beam(
        step,
        state,
        _begin(source),
        END,
        longest,
        width,
        length_penalty,
        coverage_penalty,
        seq2seq.attention_of if covers else None,
        lengths,
    )
    return found[:, 0]


def _decoding(model: nn.Module, *args: Any, **how: bool) -> tuple[decode.Step, PyTree]:
    """Returns `seq2seq.decoding`, by which what no sentence holds is not written."""
    step, state = seq2seq.decoding(model, *args, **how)

    def written(state, tokens):
        logits, state = step(state, tokens)
        return logits.at[:, jnp.array([PAD, BEGIN])].set(-jnp.inf), state

    return written, state


def _begin(source: Array) -> Array:
    return jnp.full(len(source), BEGIN)


def weights(
    model: nn.Module,
    params: PyTree,
    source: Int[Array, "batch source"],
    lengths: Int[Array, " batch"],
    target: Int[Array, "batch target"],
) -> Float[Array, "batch target source"] | None:
    """Returns where each token of a translation attends to; None without attention.

    Those of a Transformer are of its last layer, the mean of the heads.

    Args: as for `greedy`, and the translations.
    """
    (_, endpoints), kept = model.apply(
        {"params": params},
        source,
        lengths,
        shifted(target),
        train=False,
        mutable=["intermediates"],
    )
    if not isinstance(model.config, Transformer):
        return endpoints.get("weights")
    last = kept["intermediates"]["decoder"][f"layers_{model.config.layers - 1}"]
    return last["memory_attention"]["weights"][0].mean(1)


class Translation(NamedTuple):
    """A sentence's translation."""

    text: str
    unknown: tuple[str, ...]
    """Words, or characters, of the sentence that the vocabulary does not have."""
    ended: bool
    """Whether it ended before as many tokens as it may have."""


def translate(
    model: nn.Module,
    params: PyTree,
    known: Vocabularies,
    lines: Sequence[str],
    longest: int,
    width: int = 1,
    length_penalty: float = LENGTH_PENALTY,
    coverage_penalty: float = 0.0,
) -> list[Translation]:
    """Translates sentences.

    Args:
      model: from `make_model`.
      params: of it.
      known: its vocabularies.
      lines: the sentences.
      longest: tokens of the longest one that is taken, its end included.
      width: of the beam search; 1 is greedy, without the penalties.
      length_penalty: as for `dl_core.ops.decode.beam`.
      coverage_penalty: as for `dl_core.ops.decode.beam`.

    Raises:
      UserError: if a sentence is empty or too long, or there is a coverage penalty and
        no attention that it could go by.
    """
    if coverage_penalty and not seq2seq.attends(model):
        raise UserError(
            f"a coverage penalty of {coverage_penalty:g} goes by the attention of a "
            "recurrent network, and this run's is a Transformer or has none"
        )
    encoded = [[*known.source.encode(line), END] for line in lines]
    for number, tokens in enumerate(encoded, 1):
        name = f"line {number}" if len(lines) > 1 else "the sentence"
        if len(tokens) == 1:
            raise UserError(f"{name} is empty: there is nothing to translate")
        if len(tokens) > longest:
            raise UserError(
                f"{name} has {len(tokens) - 1} tokens: expected at most {longest - 1}, "
                "those of the longest sentence in training"
            )
    source = np.full((len(lines), longest), PAD, np.int32)
    for row, tokens in zip(source, encoded, strict=True):
        row[: len(tokens)] = tokens
    lengths = np.array([len(tokens) for tokens in encoded], np.int32)
    search = greedy
    if width > 1:
        search = functools.partial(
            beam,
            width=width,
            length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
        )
    compiled = jax.jit(functools.partial(search, model, longest=longest))
    found = compiled(params, source, lengths)
    return [
        Translation(
            known.target.decode(row), tuple(known.source.unknown(line)), END in row
        )
        for row, line in zip(np.asarray(found), lines, strict=True)
    ]
