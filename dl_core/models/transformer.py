"""Transformers: attention and a two-layer network at each position, residually.

Vaswani et al., "Attention is all you need", 2017 (arXiv:1706.03762): `EncoderDecoder`;
the decoder alone, as a language model, is `Decoder`. The normalisation stands after
each residual sum, as in that paper, or before each branch and once at the end, as in
Xiong et al., 2020 (arXiv:2002.04745), who say why that trains without warm-up.

A decoder goes on by one position at a time, too, at the cost of that position alone:
with `decode=True` its layers keep the keys and values of the positions before in the
collection "cache". The first call makes it:

    apply = functools.partial(model.apply, decode=True, train=False, mutable=["cache"])
    (logits, _), cache = apply(variables, tokens[:, :1])
    (logits, _), cache = apply(variables | cache, tokens[:, 1:2])

Every array in it has the batch as its first axis, so a search may choose among rows.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.config import config, static
from dl_core.nn import positions
from dl_core.nn.attention import MultiHeadAttention
from dl_core.ops.attention import Mask, padding_mask

Endpoints = dict[str, Any]
Projected = tuple[
    Float[Array, "batch source heads depth"], Float[Array, "batch source heads depth"]
]
"""The keys and the values of a memory."""


@config
class Transformer:
    """The size and the kind of a Transformer's layers."""

    features: int = static(128, "Numbers at a position.", at_least=1)
    heads: int = static(4, "Heads of an attention; they share the features.")
    layers: int = static(2, "Layers, of an encoder and of a decoder each.", at_least=1)
    hidden: int = static(
        0,
        "Units of the two-layer network at each position; 0 for 4 times the features.",
        at_least=0,
    )
    dropout: float = static(
        0.0,
        "Share dropped in training: of attention's weights, branches and embeddings.",
        at_least=0,
        below=1,
    )
    norm: Literal["pre", "post"] = static(
        "pre", "Normalisation before each branch, or after each sum."
    )
    activation: Literal["gelu", "relu"] = static("gelu", "Of the two-layer network.")
    positions: Literal["sinusoidal", "learned", "rotary"] = static(
        "sinusoidal", "How a layer knows where a token stands."
    )
    longest: int = static(
        512, "Positions of the longest sequence that it takes.", at_least=1
    )


class Layer(nn.Module):
    """Self-attention, attention to a memory if there is one, a two-layer network.

    A branch reads x and is added to it, with a layer normalisation before or after.
    """

    config: Transformer

    def setup(self):
        """Names the parts."""
        net = self.config
        size = {"heads": net.heads, "features": net.features, "dropout": net.dropout}
        self.self_attention = MultiHeadAttention(
            **size, rotary=net.positions == "rotary", longest=net.longest
        )
        self.memory_attention = MultiHeadAttention(**size)
        self.network = _Network(net)
        self.self_norm, self.memory_norm, self.network_norm = _norm(), _norm(), _norm()
        self.drop = nn.Dropout(net.dropout)

    def project(self, memory: Float[Array, "batch source features"]) -> Projected:
        """Returns the keys and values of a memory, which a call takes."""
        return self.memory_attention.project(memory)

    def __call__(
        self,
        x: Float[Array, "batch time features"],
        mask: Mask | None = None,
        memory: Projected | None = None,
        memory_mask: Mask | None = None,
        *,
        causal: bool,
        train: bool,
        decode: bool = False,
    ) -> Float[Array, "batch time features"]:
        """Returns the layer's outputs.

        Args:
          x: the inputs.
          mask: the positions of x that a position may see.
          memory: of the encoder's outputs, in a layer that attends to them.
          memory_mask: the positions of the memory that a position may see.
          causal: whether a position sees none after it.
          train: whether to drop (with the random numbers "dropout").
          decode: whether x is the one position after those in the cache.
        """

        def add(x, branch, norm):
            if self.config.norm == "pre":
                return x + self.drop(branch(norm(x)), deterministic=not train)
            return norm(x + self.drop(branch(x), deterministic=not train))

        def to_itself(x):
            how = {"causal": causal, "train": train, "decode": decode}
            return self.self_attention(x, mask=mask, **how)

        def to_memory(x):
            return self.memory_attention(x, memory, memory_mask, train=train)

        x = add(x, to_itself, self.self_norm)
        if memory is not None:
            x = add(x, to_memory, self.memory_norm)
        return add(x, lambda x: self.network(x, train=train), self.network_norm)


def _norm() -> nn.Module:
    return nn.LayerNorm(epsilon=1e-5)


class _Network(nn.Module):
    """A dense layer, the activation, and a dense layer back."""

    config: Transformer

    @nn.compact
    def __call__(self, x, *, train):
        net = self.config
        act = {"gelu": _gelu, "relu": nn.relu}[net.activation]
        x = act(nn.Dense(net.hidden or 4 * net.features, name="wide")(x))
        x = nn.Dropout(net.dropout, deterministic=not train)(x)
        return nn.Dense(net.features, name="narrow")(x)


def _gelu(x: Array) -> Array:
    # The Gaussian's own distribution function, as in torch, not its approximation.
    return nn.gelu(x, approximate=False)


class Stack(nn.Module):
    """Layers one after another, each over the outputs of the one before."""

    config: Transformer

    def setup(self):
        """Names the parts."""
        self.layers = [Layer(self.config) for _ in range(self.config.layers)]
        self.norm = _norm()

    def project(
        self, memory: Float[Array, "batch source features"]
    ) -> tuple[Projected, ...]:
        """Returns each layer's keys and values of a memory."""
        return tuple(layer.project(memory) for layer in self.layers)

    def __call__(
        self,
        x: Float[Array, "batch time features"],
        mask: Mask | None = None,
        memory: tuple[Projected, ...] | None = None,
        memory_mask: Mask | None = None,
        **how: bool,
    ) -> tuple[Float[Array, "batch time features"], Endpoints]:
        """Returns the outputs, also as "features", and "layers": those of each layer.

        Args: as for `Layer`, but for the memory, which is of every layer.
        """
        outputs = []
        for number, layer in enumerate(self.layers):
            seen = None if memory is None else memory[number]
            x = layer(x, mask, seen, memory_mask, **how)
            outputs.append(x)
        if self.config.norm == "pre":
            x = self.norm(x)
        return x, {"layers": tuple(outputs), "features": x}


class Embedding(nn.Module):
    """Tokens and where they stand, as vectors; and back, as logits.

    The vectors begin with variance 1 / features and are multiplied by its root, so that
    as the kernel of the last layer they give logits of variance 1 at first.
    """

    config: Transformer
    vocabulary: int

    def setup(self):
        """Names the parts."""
        net = self.config
        init = nn.initializers.normal(net.features**-0.5)
        self.table = nn.Embed(self.vocabulary, net.features, embedding_init=init)
        self.drop = nn.Dropout(net.dropout)
        if net.positions == "learned":
            self.places = positions.Learned(net.longest, net.features)

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch time"], *, train: bool, decode: bool = False
    ) -> Float[Array, "batch time features"]:
        """Returns a vector for each token.

        Args:
          tokens: the sequences.
          train: whether to drop (with the random numbers "dropout").
          decode: whether they are of the one position after those of the calls before,
            which are counted in the collection "cache".

        Raises:
          ValueError: if there are more positions than the longest sequence has.
        """
        net = self.config
        batch, time = tokens.shape
        if time > net.longest or (decode and time != 1):
            limit = 1 if decode else net.longest
            raise ValueError(
                f"Embedding: at most {limit} positions, got tokens {tokens.shape}"
            )
        x = self.table(tokens) * net.features**0.5
        if net.positions != "rotary":
            x = x + self._places(self._numbers(batch, time, decode))
        return self.drop(x, deterministic=not train)

    def attend(
        self, x: Float[Array, "batch time features"]
    ) -> Float[Array, "batch time {self.vocabulary}"]:
        """Returns the product of each position's features and each token's vector."""
        return self.table.attend(x)

    def _numbers(self, batch, time, decode):
        if not decode:
            return jnp.arange(time)
        count = self.variable("cache", "position", jnp.zeros, batch, jnp.int32)
        position = count.value
        count.value = position + 1
        return position[:, None]

    def _places(self, numbers):
        net = self.config
        if net.positions == "learned":
            return self.places(numbers)
        table = positions.sinusoidal(net.longest, net.features)
        # NaN past the last, as attention's cache has it.
        return jnp.take(table, numbers, axis=0, mode="fill", fill_value=jnp.nan)


class _Logits(nn.Module):
    """A logit for each token: by a layer of its own, or by the embedding."""

    vocabulary: int
    tied: bool

    @nn.compact
    def __call__(self, x, embedding):
        if not self.tied:
            return nn.Dense(self.vocabulary, name="dense")(x)
        bias = self.param("bias", nn.initializers.zeros, self.vocabulary)
        return embedding.attend(x) + bias


class Decoder(nn.Module):
    """A language model: causal layers, and a logit for each token of a vocabulary."""

    config: Transformer
    vocabulary: int
    tied: bool = True
    """Whether the last layer's kernel is the embedding (Press & Wolf, 2017)."""

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        *,
        train: bool,
        decode: bool = False,
        context: int = 0,
    ) -> tuple[Float[Array, "batch predicted {self.vocabulary}"], Endpoints]:
        """Returns the logits after each token, and the endpoints.

        These are "features", before the last layer, and "layers", of each layer.

        Args:
          tokens: the sequences.
          train: whether to drop (with the random numbers "dropout").
          decode: whether they are the one position after those in the cache.
          context: first positions of which no logits are computed.
        """
        embedding = Embedding(self.config, self.vocabulary, name="embedding")
        x = embedding(tokens, train=train, decode=decode)
        stack = Stack(self.config, name="stack")
        x, endpoints = stack(x, causal=True, train=train, decode=decode)
        head = _Logits(self.vocabulary, self.tied, name="head")
        return head(x[:, context:], embedding), endpoints


class EncoderDecoder(nn.Module):
    """Layers that read a source, causal ones that read its target and attend to it."""

    config: Transformer
    source_vocabulary: int
    target_vocabulary: int
    tied: bool = True
    """Whether the last layer's kernel is the target's embedding."""

    def setup(self):
        """Names the parts."""
        net = self.config
        self.source = Embedding(net, self.source_vocabulary)
        self.target = Embedding(net, self.target_vocabulary)
        self.encoder = Stack(net)
        self.decoder = Stack(net)
        self.head = _Logits(self.target_vocabulary, self.tied)

    def __call__(
        self,
        source: Int[Array, "batch source"],
        source_lengths: Int[Array, " batch"],
        target_inputs: Int[Array, "batch target"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "batch target {self.target_vocabulary}"], Endpoints]:
        """Returns the logits after each token of the target, and the endpoints.

        These are the decoder's, as for `Decoder`, and "memory", from `encode`.

        Args:
          source: tokens, padded at the end.
          source_lengths: valid tokens of each.
          target_inputs: tokens of the targets, the first that which stands before all;
            no position sees the padding, which is at their end.
          train: whether to drop (with the random numbers "dropout").
        """
        memory = self.encode(source, source_lengths, train=train)
        logits, endpoints = self._decode(
            memory, source_lengths, target_inputs, train=train
        )
        return logits, endpoints | {"memory": memory}

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_lengths: Int[Array, " batch"],
        *,
        train: bool,
    ) -> tuple[Projected, ...]:
        """Returns what the decoder's layers attend to: keys and values for each.

        Args: as for a call.
        """
        mask = padding_mask(source_lengths, source.shape[1])
        x = self.source(source, train=train)
        outputs, _ = self.encoder(x, mask, causal=False, train=train)
        return self.decoder.project(outputs)

    def decode(
        self,
        memory: tuple[Projected, ...],
        source_lengths: Int[Array, " batch"],
        tokens: Int[Array, "batch 1"],
    ) -> tuple[Float[Array, "batch 1 {self.target_vocabulary}"], Endpoints]:
        """Returns the logits after one more token, which "cache" remembers.

        Args:
          memory: from `encode`.
          source_lengths: as for a call.
          tokens: the next token of each target.
        """
        return self._decode(memory, source_lengths, tokens, train=False, decode=True)

    def _decode(self, memory, source_lengths, tokens, **how):
        mask = padding_mask(source_lengths, memory[0][0].shape[1])
        x = self.target(tokens, **how)
        x, endpoints = self.decoder(x, None, memory, mask, causal=True, **how)
        return self.head(x, self.target), endpoints
