"""Recurrent encoder-decoders: one network reads a sentence, another writes its like.

score      form
none       the decoder begins with the encoder's last state and sees nothing else of the
           source: Sutskever, Vinyals & Le, 2014 (arXiv:1409.3215)
additive   Bahdanau, Cho & Bengio, 2015 (arXiv:1409.0473): the decoder's state before
           the step attends to the source, and what it finds is an input of the step
dot, general, location
           Luong, Pham & Manning, 2015 (arXiv:1508.04025): the state after the step
           attends, and h~ = tanh(W [c; h]) of what it finds and of the state gives the
           logits, and is an input of the next step (input feeding)

Where there is attention the encoder reads in both directions, and the decoder begins at
tanh(W [forwards; backwards]) of its last states, both the state and, of an LSTM, the
cell. The whole target and one more token of it take the same step.

Bahdanau's logits are of s_i, c_i and y_{i-1}: the state after the step, what was found,
and the token before, as in that paper's section 3.1 (g(y_{i-1}, s_i, c_i)). Its
appendix A.2.2 has the state before the step, s_{i-1}, in the maxout layer instead.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dl_core.config import config, static
from dl_core.nn import recurrent
from dl_core.nn.attention import Additive, Dot, General, Location, context
from dl_core.ops.decode import Step as Decoding
from dl_core.ops.decode import repeat

Endpoints = dict[str, Any]


@config
class Seq2Seq:
    """The kind and the size of a recurrent encoder-decoder."""

    score: Literal["none", "additive", "dot", "general", "location"] = static(
        "additive", "How the decoder weighs the positions of the source."
    )
    cell: Literal["lstm", "gru"] = static("lstm", "Which recurrence.")
    layers: int = static(1, "Layers, of the encoder and of the decoder.", at_least=1)
    features: int = static(128, "Units of a layer of the decoder.", at_least=1)
    encoder: int = static(
        0,
        "Units of a layer of the encoder in each direction, where there is attention; "
        "0 for half of the decoder's.",
        at_least=0,
    )
    embedding: int = static(128, "Numbers that stand for a token.", at_least=1)
    dropout: float = static(
        0.0,
        "Share dropped in training: of embeddings, and of outputs between layers.",
        at_least=0,
        below=1,
    )
    feeding: bool = static(True, "Whether h~ is an input of the next step (Luong's).")
    maxout: bool = static(
        True, "Whether Bahdanau's logits come from a maxout layer, or from all it read."
    )
    longest: int = static(
        64, "Positions of the longest source that location scores.", at_least=1
    )

    @property
    def memory(self) -> int:
        """Numbers at a position of the encoder's outputs."""
        if self.score == "none":
            return self.features
        return 2 * (self.encoder or self.features // 2)


class Step(nn.Module):
    """One step of the decoder, from what it remembers and an embedded token."""

    config: Seq2Seq

    def setup(self):
        """Makes the cells and the score."""
        net = self.config
        cell = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[net.cell]
        self.cells = [cell(net.features) for _ in range(net.layers)]
        self.drop = nn.Dropout(net.dropout)
        if net.score != "none":
            self.score = {
                "additive": lambda: Additive(net.features),
                "dot": Dot,
                "general": lambda: General(net.features),
                "location": lambda: Location(net.longest),
            }[net.score]()
        if net.score not in ("none", "additive"):
            self.attentional = nn.Dense(net.features, use_bias=False)

    def keys(self, outputs: Float[Array, "batch source memory"]) -> Array:
        """Returns what of the score depends on the encoder's outputs alone."""
        return self.score.keys(outputs)

    def __call__(
        self,
        state: PyTree,
        x: Float[Array, "batch embedding"],
        memory: PyTree,
        source_lengths: Int[Array, " batch"],
        *,
        train: bool,
    ) -> tuple[PyTree, Endpoints]:
        """Returns what to remember, and "read", from which the logits come.

        Args:
          state: "carries" of the layers; "fed", the last h~, where it is an input.
          x: the token before the one that is to be predicted.
          memory: from `EncoderDecoder.encode`.
          source_lengths: valid positions of each source.
          train: whether to drop (with the random numbers "dropout").
        """
        score, inputs = self.config.score, [x]
        if score == "additive":
            # Of an LSTM a carry is the pair of cell and state.
            before = jax.tree.leaves(state["carries"][-1])[-1]
            found = self._attend(before, memory, source_lengths)
            inputs.append(found["context"])
        elif "fed" in state:
            inputs.append(state["fed"])
        carries, h = [], jnp.concatenate(inputs, axis=-1)
        for cell, carry in zip(self.cells, state["carries"], strict=True):
            if carries:
                h = self.drop(h, deterministic=not train)
            carry, h = cell(carry, h)
            carries.append(carry)
        state = {**state, "carries": tuple(carries)}
        if score == "none":
            return state, {"read": h}
        if score == "additive":
            read = jnp.concatenate([h, found["context"], x], axis=-1)
        else:
            found = self._attend(h, memory, source_lengths)
            read = jnp.concatenate([found["context"], h], axis=-1)
            read = jnp.tanh(self.attentional(read))
            if "fed" in state:
                state["fed"] = read
        return state, {"read": read, "weights": found["weights"]}

    def _attend(self, query, memory, source_lengths):
        outputs = memory["outputs"]
        mask = jnp.arange(outputs.shape[1]) < source_lengths[:, None]
        weights = self.score(query, outputs, mask, memory["keys"])
        return {"weights": weights, "context": context(weights, outputs)}


class EncoderDecoder(nn.Module):
    """A recurrent network that reads a source, and one that reads its target."""

    config: Seq2Seq
    source_vocabulary: int
    target_vocabulary: int

    def setup(self):
        """Makes both networks."""
        net = self.config
        layer = {"lstm": recurrent.LSTM, "gru": recurrent.GRU}[net.cell]
        if net.score == "none":
            layers = [layer(net.features) for _ in range(net.layers)]
        else:
            units = net.memory // 2
            layers = [
                recurrent.Bidirectional(layer(units), layer(units))
                for _ in range(net.layers)
            ]
            parts = net.layers * (2 if net.cell == "lstm" else 1)
            self.bridge = [nn.Dense(net.features) for _ in range(parts)]
        self.encoder = recurrent.Stack(layers, dropout=net.dropout)
        self.source = nn.Embed(self.source_vocabulary, net.embedding)
        self.target = nn.Embed(self.target_vocabulary, net.embedding)
        self.drop = nn.Dropout(net.dropout)
        self.step = Step(net)
        if net.score == "additive" and net.maxout:
            self.hidden = nn.Dense(2 * net.features)
        self.head = nn.Dense(self.target_vocabulary)

    def __call__(
        self,
        source: Int[Array, "batch source"],
        source_lengths: Int[Array, " batch"],
        target_inputs: Int[Array, "batch target"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "batch target {self.target_vocabulary}"], Endpoints]:
        """Returns the logits after each token of the target, and the endpoints.

        These are "memory", what `encode` returns, and, where there is attention,
        "weights" of each position of the source, "batch target source".

        Args:
          source: tokens, padded at the end.
          source_lengths: valid tokens of each.
          target_inputs: tokens of the targets, the first that which stands before all.
          train: whether to drop (with the random numbers "dropout").
        """
        memory = self.encode(source, source_lengths, train=train)
        x = self.drop(self.target(target_inputs), deterministic=not train)
        over_time = nn.scan(
            lambda step, state, x, *rest: step(state, x, *rest, train=train),
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            in_axes=(1, nn.broadcast, nn.broadcast),
            out_axes=1,
        )
        state = start(self.config, memory)
        _, found = over_time(self.step, state, x, memory, source_lengths)
        logits = self._logits(found.pop("read"))
        return logits, found | {"memory": memory}

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_lengths: Int[Array, " batch"],
        *,
        train: bool,
    ) -> PyTree:
        """Returns what the decoder is given of the source.

        "carries", with which it begins, and, where there is attention, "outputs" of the
        encoder, "batch source memory", and the "keys" that the score makes of them.

        Args: as for a call.
        """
        x = self.drop(self.source(source), deterministic=not train)
        outputs, carries = self.encoder(x, source_lengths, train=train)
        if self.config.score == "none":
            return {"carries": carries}
        both = [
            jnp.concatenate(pair, axis=-1)
            for forwards, backwards in carries
            for pair in zip(*map(jax.tree.leaves, (forwards, backwards)), strict=True)
        ]
        begun = [
            jnp.tanh(dense(part)) for dense, part in zip(self.bridge, both, strict=True)
        ]
        if self.config.cell == "lstm":
            begun = zip(begun[::2], begun[1::2], strict=True)
        keys = self.step.keys(outputs)
        return {"carries": tuple(begun), "outputs": outputs, "keys": keys}

    @nn.compact
    def decode(
        self,
        memory: PyTree,
        source_lengths: Int[Array, " batch"],
        tokens: Int[Array, "batch 1"],
    ) -> tuple[Float[Array, "batch 1 {self.target_vocabulary}"], Endpoints]:
        """Returns the logits after one more token, and the endpoints.

        What the decoder remembers is in the collection "cache", which the first call
        makes.

        Args:
          memory: from `encode`.
          source_lengths: as for a call.
          tokens: the next token of each target.
        """
        cache = self.variable("cache", "state", start, self.config, memory)
        x = self.target(tokens[:, 0])
        cache.value, found = self.step(
            cache.value, x, memory, source_lengths, train=False
        )
        found = {name: part[:, None] for name, part in found.items()}
        logits = self._logits(found.pop("read"))
        return logits, found

    def _logits(self, read):
        if self.config.score == "additive" and self.config.maxout:
            pairs = self.hidden(read)
            read = pairs.reshape(*pairs.shape[:-1], -1, 2).max(-1)
        return self.head(read)


def start(net: Seq2Seq, memory: PyTree) -> PyTree:
    """Returns what the decoder remembers before its first step.

    Args:
      net: of the network.
      memory: from `EncoderDecoder.encode`.
    """
    state = {"carries": memory["carries"]}
    if net.feeding and net.score not in ("none", "additive"):
        batch = jax.tree.leaves(memory["carries"])[0].shape[0]
        state["fed"] = jnp.zeros((batch, net.features))
    return state


def attends(model: nn.Module) -> bool:
    """Returns whether a model is a recurrent one with attention to the source."""
    return isinstance(model, EncoderDecoder) and model.config.score != "none"


def attention_of(state: PyTree) -> Float[Array, "rows source"]:
    """Returns the last step's weights, from a state of `decoding` that has them."""
    return state["weights"]


def decoding(
    model: nn.Module,
    params: PyTree,
    source: Int[Array, "batch source"],
    source_lengths: Int[Array, " batch"],
    width: int = 1,
    *,
    attention: bool = False,
) -> tuple[Decoding, PyTree]:
    """Returns the step function of `dl_core.ops.decode`, and the state to begin with.

    Args:
      model: of this module, or of `dl_core.models.transformer`.
      params: its parameters.
      source: tokens, padded at the end.
      source_lengths: valid tokens of each.
      width: rows of a beam search for each source.
      attention: whether the state has the weights of the last step (`attention_of`), as
        a penalty of what was not covered needs them.

    Raises:
      ValueError: if the model has no such weights: it is a Transformer, or one whose
        score is none.
    """
    if attention and not attends(model):
        raise ValueError(
            "decoding: only a recurrent network with attention has weights to keep, "
            f"got {model.config}"
        )
    encoded = model.apply(
        {"params": params}, source, source_lengths, train=False, method="encode"
    )

    def decode(cache, tokens):
        memory, lengths = encoded, source_lengths
        if len(tokens) != len(source):
            memory, lengths = repeat((memory, lengths), width)
        (logits, found), cache = model.apply(
            {"params": params, **cache},
            memory,
            lengths,
            tokens[:, None],
            method="decode",
            mutable=["cache"],
        )
        state = {"cache": cache}
        if attention:
            state["weights"] = found["weights"][:, 0]
        return logits[:, 0], state

    def step(state, tokens):
        return decode(state["cache"], tokens)

    _, shapes = jax.eval_shape(decode, {}, source[:, 0])
    # A Transformer's cache begins with zeros, and so do the weights.
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    if isinstance(model, EncoderDecoder):
        state["cache"] = {"cache": {"state": start(model.config, encoded)}}
    return step, state
