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

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.data.buckets import restarting, segment_mask
from dl_core.models.transformer_layers import (
    Endpoints,
    Projected,
    Stack,
    Transformer,
)
from dl_core.nn import positions
from dl_core.ops.attention import padding_mask


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
        self,
        tokens: Int[Array, "batch time"],
        numbers: Int[Array, "batch time"] | None = None,
        *,
        train: bool,
        decode: bool = False,
    ) -> Float[Array, "batch time features"]:
        """Returns a vector for each token.

        Args:
          tokens: the sequences.
          numbers: where each token stands, from 0 on; one after the other where None.
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
            if numbers is None:
                numbers = self._numbers(batch, time, decode)
            x = x + self._places(numbers)
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
        segments: Int[Array, "batch time"] | None = None,
    ) -> tuple[Float[Array, "batch predicted {self.vocabulary}"], Endpoints]:
        """Returns the logits after each token, and the endpoints.

        These are "features", before the last layer, and "layers", of each layer.

        Args:
          tokens: the sequences.
          train: whether to drop (with the random numbers "dropout").
          decode: whether they are the one position after those in the cache.
          context: first positions of which no logits are computed.
          segments: which of the sequences that a row holds each token is of, as
            `dl_core.data.buckets.pack` numbers them: it sees none of the others, and
            stands where it would if its own were alone. (Rotary positions count by
            their differences, and need nothing for it.)

        Raises:
          ValueError: if there are too many positions, or segments while decoding.
        """
        mask = numbers = None
        if segments is not None:
            if decode:
                raise ValueError("Decoder: packed rows cannot go on by one position")
            mask, numbers = segment_mask(segments), restarting(segments)
        embedding = Embedding(self.config, self.vocabulary, name="embedding")
        x = embedding(tokens, numbers, train=train, decode=decode)
        stack = Stack(self.config, name="stack")
        x, endpoints = stack(x, mask, causal=True, train=train, decode=decode)
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
