"""Attention layers: information moves to where it is asked for. Flax, batch first.

ParametricQueries     parameters ask: any number of inputs becomes a fixed number
ContextualAttention   every position asks, by a linear map of what is there
Additive, Dot,        the scores of a recurrent decoder's state and its memory
General, Location
MultiHeadAttention    several heads of scaled products, with masks and a cache

What the layers see is kept where the collection "intermediates" is mutable, as
"weights". A memory's own part of a score, `keys(memory)`, can be computed once for many
queries: a decoder that asks step by step passes it on.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dl_core.nn.positions import rotary
from dl_core.ops.attention import (
    Lowering,
    Mask,
    attention_weights,
    masked_softmax,
    scaled_dot_product,
)

Initializer = nn.initializers.Initializer
Weights = Float[Array, "batch *queries time"]
Memory = Float[Array, "batch time size"]


def context(
    weights: Weights, memory: Memory
) -> Float[Array, "batch *queries features"]:
    """Returns the average of a memory by each query's weights."""
    rows = weights.reshape(len(weights), -1, weights.shape[-1])
    return (rows @ memory).reshape(*weights.shape[:-1], memory.shape[-1])


class ParametricQueries(nn.Module):
    """Attention whose queries are parameters: softmax(Q Kᵀ) V, with K, V of the input.

    The keys and values are linear maps of the inputs, without a bias.
    """

    queries: int
    """How many."""
    features: int
    """Numbers of a value."""
    depth: int
    """Numbers of a query and of a key."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        mask: Bool[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        """Returns what each query sees.

        Args:
          x: the inputs.
          mask: True where they may be seen.
        """
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        queries = self.param("queries", init, (self.queries, self.depth))
        keys = nn.Dense(self.depth, use_bias=False, name="key")(x)
        values = nn.Dense(self.features, use_bias=False, name="value")(x)
        logits = jnp.einsum("qd,btd->bqt", queries, keys)
        weights = masked_softmax(logits, _for_queries(mask, logits))
        _keep(self, weights)
        return context(weights, values)


class ContextualAttention(nn.Module):
    """Attention whose queries are of the context: softmax(Q Kᵀ) V, not scaled.

    Q, K and V are linear maps (convolutions of one tap) of the input, without a bias.
    """

    features: int
    """Numbers of a value."""
    depth: int
    """Numbers of a query and of a key."""
    kernel_init: Initializer = nn.linear.default_kernel_init

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries inputs"],
        memory: Memory | None = None,
        mask: Bool[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        """Returns what each position sees.

        Args:
          x: what asks.
          memory: what is seen; `x` itself where None.
          mask: True where that may be seen.
        """
        memory = x if memory is None else memory

        def linear(features, name):
            init = self.kernel_init
            return nn.Dense(features, use_bias=False, kernel_init=init, name=name)

        queries = linear(self.depth, "query")(x)
        keys = linear(self.depth, "key")(memory)
        values = linear(self.features, "value")(memory)
        logits = jnp.einsum("bqd,btd->bqt", queries, keys)
        weights = masked_softmax(logits, _for_queries(mask, logits))
        _keep(self, weights)
        return context(weights, values)


class _Score(nn.Module):
    """How much each of a decoder's queries attends to each position of a memory."""

    def keys(self, memory: Memory) -> Float[Array, "batch time keys"]:
        """Returns the memory's own part of the score."""
        return memory

    def logits(self, query, keys):
        raise NotImplementedError

    def __call__(
        self,
        query: Float[Array, "batch *queries inputs"],
        memory: Memory,
        mask: Bool[Array, "batch time"] | None = None,
        keys: Float[Array, "batch time keys"] | None = None,
    ) -> Weights:
        """Returns the weights over the memory's positions.

        Args:
          query: what asks.
          memory: where.
          mask: True where it may be seen.
          keys: what `keys` returned for the memory, if it is there already.

        Raises:
          ValueError: if the shapes do not fit each other.
        """
        logits = self.logits(query, self.keys(memory) if keys is None else keys)
        return masked_softmax(logits, _for_queries(mask, logits))


class Additive(_Score):
    """The score vᵀ tanh(W q + U m) (Bahdanau et al., 2015, arXiv:1409.0473)."""

    features: int
    """Units of the hidden layer."""

    def setup(self):
        """Makes the maps."""
        self.query = nn.Dense(self.features, use_bias=False)
        self.memory = nn.Dense(self.features, use_bias=False)
        self.out = self.param("out", nn.initializers.normal(0.01), (self.features,))

    def keys(self, memory: Memory) -> Float[Array, "batch time keys"]:
        """Returns U m."""
        return self.memory(memory)

    def logits(self, query, keys):
        """Returns the scores."""
        hidden = jnp.tanh(self.query(query)[..., None, :] + _spread(keys, query))
        return hidden @ self.out


class Dot(_Score):
    """The score qᵀ m (Luong et al., 2015, arXiv:1508.04025)."""

    def logits(self, query, keys):
        """Returns the scores."""
        return _products(query, keys)


class General(_Score):
    """The score qᵀ W m (Luong et al., 2015, arXiv:1508.04025)."""

    features: int
    """Numbers of a query."""

    def setup(self):
        """Makes the maps."""
        self.memory = nn.Dense(self.features, use_bias=False)

    def keys(self, memory: Memory) -> Float[Array, "batch time keys"]:
        """Returns W m."""
        return self.memory(memory)

    def logits(self, query, keys):
        """Returns the scores."""
        return _products(query, keys)


class Location(_Score):
    """Scores W q of the positions, whatever the memory holds there (Luong et al.)."""

    longest: int
    """Positions that have a score."""

    def setup(self):
        """Makes the maps."""
        self.query = nn.Dense(self.longest, use_bias=False)

    def logits(self, query, keys):
        """Returns the scores."""
        if keys.shape[1] > self.longest:
            raise ValueError(
                f"Location: scores {self.longest} positions, got a memory of "
                f"{keys.shape[1]} ({keys.shape})"
            )
        return self.query(query)[..., : keys.shape[1]]


class MultiHeadAttention(nn.Module):
    """Several heads of scaled products (Vaswani et al., 2017, arXiv:1706.03762).

    Parameters mean what torch's `nn.MultiheadAttention` has in its projections.
    """

    heads: int
    features: int
    """Numbers of an output, and of all heads together."""
    dropout: float = 0.0
    """Share of the weights dropped in training."""
    rotary: bool = False
    """Whether queries and keys are turned by their positions (self-attention)."""
    longest: int = 0
    """Positions that the cache holds, where `decode` is used."""
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    lowering: Lowering = "auto"

    def setup(self):
        """Makes the maps."""
        if self.features % self.heads:
            raise ValueError(
                f"MultiHeadAttention: {self.heads} heads do not divide the "
                f"{self.features} features"
            )

        def linear():
            return nn.Dense(
                self.features, use_bias=self.use_bias, kernel_init=self.kernel_init
            )

        self.query, self.key, self.value, self.out = (linear() for _ in range(4))
        self.drop = nn.Dropout(self.dropout)

    def project(self, memory: Memory) -> tuple[Array, Array]:
        """Returns the keys and values of a memory, "batch time heads depth" each.

        A decoder that asks the same memory at every step passes them instead of it.
        """
        return self._split(self.key(memory)), self._split(self.value(memory))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries inputs"],
        memory: Memory | tuple[Array, Array] | None = None,
        mask: Mask | None = None,
        *,
        causal: bool = False,
        train: bool,
        decode: bool = False,
    ) -> Float[Array, "batch queries features"]:
        """Returns what each position sees.

        Args:
          x: what asks.
          memory: what is seen, or what `project` returned for it; `x` itself where
            None.
          mask: True where a query may see a key.
          causal: whether position t may see the positions 0 … t alone.
          train: whether to drop (the random numbers "dropout" are then needed).
          decode: whether `x` is the one next position of each sequence, whose keys and
            values join those before it in the collection "cache", rows leading: zeros
            at first, as a call makes it where it is missing. A mask is then over the
            `longest` keys; past them the output is NaN. A memory is projected by the
            call that makes the cache, and kept there.

        Raises:
          ValueError: if shapes do not fit each other, or the cache has no length.
        """
        queries = self._split(self.query(x))
        if memory is None:
            keys, values = self.project(x)
        elif isinstance(memory, tuple):
            keys, values = memory
        elif decode:
            kept = self.variable("cache", "memory", self.project, memory)
            keys, values = kept.value
        else:
            keys, values = self.project(memory)
        decode = decode and memory is None
        ended = None
        if decode:
            queries, keys, values, mask, ended = self._extend(
                queries, keys, values, mask
            )
        elif self.rotary and memory is None:
            positions = jnp.arange(x.shape[1])
            queries, keys = rotary(queries, positions), rotary(keys, positions)
        y = self._attend(queries, keys, values, mask, causal and not decode, train)
        y = self.out(y.reshape(*x.shape[:-1], self.features))
        return y if ended is None else jnp.where(ended, jnp.nan, y)

    def _attend(self, queries, keys, values, mask, causal, train):
        dropped = train and self.dropout > 0
        if not dropped and not self.is_mutable_collection("intermediates"):
            return scaled_dot_product(
                queries, keys, values, mask, causal=causal, lowering=self.lowering
            )
        weights = attention_weights(queries, keys, mask, causal=causal)
        _keep(self, weights)
        weights = self.drop(weights, deterministic=not train).astype(values.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, values)

    def _extend(self, queries, keys, values, mask):
        """Adds a position to the cache; returns what attention then needs."""
        batch, time, heads, depth = keys.shape
        if time != 1 or not self.longest:
            raise ValueError(
                "MultiHeadAttention: decoding goes on by one position, with a cache "
                f"of `longest` positions; got {time} positions, longest={self.longest}"
            )
        shape = (batch, self.longest, heads, depth)
        old_keys = self.variable("cache", "keys", jnp.zeros, shape, keys.dtype)
        old_values = self.variable("cache", "values", jnp.zeros, shape, values.dtype)
        turn = self.variable("cache", "position", jnp.zeros, (batch,), jnp.int32)
        position = turn.value
        if self.rotary:
            queries = rotary(queries, position[:, None])
            keys = rotary(keys, position[:, None])
        rows = jnp.arange(batch)
        old_keys.value = old_keys.value.at[rows, position].set(keys[:, 0])
        old_values.value = old_values.value.at[rows, position].set(values[:, 0])
        turn.value = position + 1
        past = (jnp.arange(self.longest) <= position[:, None])[:, None, None]
        mask = past if mask is None else past & mask
        ended = (position >= self.longest)[:, None, None]
        return queries, old_keys.value, old_values.value, mask, ended

    def _split(self, x):
        return x.reshape(*x.shape[:-1], self.heads, self.features // self.heads)


def _keep(module: nn.Module, weights: Array) -> None:
    if module.is_mutable_collection("intermediates"):
        module.sow("intermediates", "weights", weights)


def _for_queries(mask: Array | None, logits: Array) -> Array | None:
    """Returns a mask over a memory with axes for the queries."""
    if mask is None:
        return None
    return mask.reshape(len(mask), *[1] * (logits.ndim - 2), mask.shape[-1])


def _spread(keys: Array, query: Array) -> Array:
    axes = [1] * (query.ndim - 2)
    return keys.reshape(len(keys), *axes, *keys.shape[1:])


def _products(query: Array, memory: Array) -> Array:
    if query.shape[-1] != memory.shape[-1]:
        raise ValueError(
            "a score of products needs as many numbers in a query as in the memory, "
            f"got {query.shape} and {memory.shape}"
        )
    rows = query.reshape(len(query), -1, query.shape[-1])
    products = jnp.einsum("bqd,btd->bqt", rows, memory)
    return products.reshape(*query.shape[:-1], memory.shape[1])
