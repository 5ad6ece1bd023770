"""Attention block by block: the weights are never all there, forwards or backwards.

The softmax goes along the keys as in Milakov & Gimelshein, 2018 (arXiv:1805.02867): a
running maximum and a running sum, by which what was summed before is scaled anew. The
backward pass computes the weights again from the logarithm of that sum (Dao et al.,
"FlashAttention", 2022, arXiv:2205.14135). With a causal mask, blocks that no query sees
are passed over.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_BLOCKS = 256, 128, 64
_CACHE = 2**21
"""Bytes of weights of a block that a core's cache holds."""
_LOW = -1e30
"""Below every product, and finite: the difference of two is no NaN."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def blockwise(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads features"],
    mask: Bool[Array, "#batch #heads #queries keys"] | None,
    causal: bool,
    block: int,
) -> Float[Array, "batch queries heads features"]:
    """Returns softmax(query keyᵀ) value, in memory linear in queries and keys.

    It has gradients of the first order, in reverse mode.

    Args:
      query: scaled already.
      key: what it is compared to.
      value: what is averaged.
      mask: True where a query may see a key; a query that sees none gets zeros.
      causal: whether query t may see the keys 0 … t alone, besides the mask.
      block: queries and keys of a block, as of `block_of`.
    """
    return _forward(query, key, value, mask, causal, block)[0]


def block_of(query: Float[Array, "batch queries heads depth"]) -> int:
    """Returns the largest size of a block whose weights stay in a core's cache."""
    rows = 4 * query.shape[0] * query.shape[2]
    fitting = (size for size in _BLOCKS if rows * size**2 <= _CACHE)
    return next(fitting, _BLOCKS[-1])


def _forward(query, key, value, mask, causal, block):
    tiles = _Tiles(query, key, mask, causal, block)
    queries, keys, values = (
        tiles.of_queries(query),
        tiles.of_keys(key),
        tiles.of_keys(value),
    )
    wide = jnp.promote_types(query.dtype, jnp.float32)

    def row(number):
        q = queries[number]

        def column(other, carry):
            total, top, y = carry
            visible = tiles.visible(number, other)
            logits = jnp.where(visible, _dot("bhqd,bhkd->bhqk", q, keys[other]), _LOW)
            new_top = jnp.maximum(top, logits.max(-1))
            weights = jnp.where(visible, jnp.exp(logits - new_top[..., None]), 0)
            scale = jnp.exp(top - new_top)
            seen = _dot("bhqk,bhkd->bhqd", weights.astype(value.dtype), values[other])
            return (
                total * scale + weights.sum(-1),
                new_top,
                y * scale[..., None] + seen,
            )

        sums = jnp.zeros(q.shape[:-1], wide)
        start = sums, sums + _LOW, jnp.zeros((*q.shape[:-1], value.shape[-1]), wide)
        total, top, y = jax.lax.fori_loop(0, tiles.seen_by(number), column, start)
        some = total > 0
        total = jnp.where(some, total, 1)
        # Where nothing is seen, exp(logit - log_sum) is 0 in the backward pass.
        log_sum = jnp.where(some, top + jnp.log(total), -_LOW)
        return (y / total[..., None]).astype(value.dtype), log_sum

    y, log_sums = jax.lax.map(row, jnp.arange(len(queries)))
    return tiles.whole(y, query.shape[1]), (query, key, value, mask, y, log_sums)


def _backward(causal: bool, block: int, saved: Any, gradient: Array):
    query, key, value, mask, y, log_sums = saved
    tiles = _Tiles(query, key, mask, causal, block)
    queries, keys, values = (
        tiles.of_queries(query),
        tiles.of_keys(key),
        tiles.of_keys(value),
    )
    gradients = tiles.of_queries(gradient)
    wide = log_sums.dtype
    along = (gradients.astype(wide) * y).sum(-1)

    def row(carry, number):
        q, dy = queries[number], gradients[number]

        def column(other, carry):
            dq, dkeys, dvalues = carry
            k, v = keys[other], values[other]
            logits = _dot("bhqd,bhkd->bhqk", q, k)
            weights = jnp.where(
                tiles.visible(number, other),
                jnp.exp(logits - log_sums[number][..., None]),
                0,
            )
            dweights = _dot("bhqd,bhkd->bhqk", dy, v)
            dlogits = (weights * (dweights - along[number][..., None])).astype(k.dtype)
            dk = _dot("bhqk,bhqd->bhkd", dlogits, q)
            dv = _dot("bhqk,bhqd->bhkd", weights.astype(dy.dtype), dy)
            return (
                dq + _dot("bhqk,bhkd->bhqd", dlogits, k),
                dkeys.at[other].add(dk),
                dvalues.at[other].add(dv),
            )

        start = jnp.zeros(q.shape, wide), *carry
        dq, *carry = jax.lax.fori_loop(0, tiles.seen_by(number), column, start)
        return tuple(carry), dq

    start = jnp.zeros(keys.shape, wide), jnp.zeros(values.shape, wide)
    (dkeys, dvalues), dqueries = jax.lax.scan(row, start, jnp.arange(len(queries)))
    return (
        tiles.whole(dqueries, query.shape[1]).astype(query.dtype),
        tiles.whole(dkeys, key.shape[1]).astype(key.dtype),
        tiles.whole(dvalues, key.shape[1]).astype(value.dtype),
        None,
    )


blockwise.defvjp(_forward, _backward)


class _Tiles:
    """How queries and keys are cut into blocks, and which keys a block may see."""

    def __init__(self, query, key, mask, causal, block):
        self.queries, self.keys = query.shape[1], key.shape[1]
        self.rows, self.columns = min(block, self.queries), min(block, self.keys)
        self.causal = causal
        self.count = -(-self.keys // self.columns)
        if mask is not None:
            mask = _pad(mask, 3, self.count * self.columns)
            if mask.shape[2] > 1:
                mask = _pad(mask, 2, -(-self.queries // self.rows) * self.rows)
        self.mask = mask

    def of_queries(self, x):
        """Returns "batch time heads depth" as "blocks batch heads rows depth"."""
        return _cut(x, self.rows)

    def of_keys(self, x):
        """Returns "batch time heads depth" as "blocks batch heads columns depth"."""
        return _cut(x, self.columns)

    def whole(self, blocks, length):
        """Returns the blocks side by side again, without what was padded."""
        count, batch, heads, size, depth = blocks.shape
        x = blocks.transpose(1, 0, 3, 2, 4).reshape(batch, count * size, heads, depth)
        return x[:, :length]

    def seen_by(self, number):
        """Returns how many blocks of keys a block of queries may see."""
        if not self.causal:
            return self.count
        return jnp.minimum(self.count, -(-(number + 1) * self.rows // self.columns))

    def visible(self, number, other):
        """Returns which of the keys of a block each query of another may see."""
        query = number * self.rows + jnp.arange(self.rows)[:, None]
        key = other * self.columns + jnp.arange(self.columns)
        visible = key < self.keys
        if self.causal:
            visible = visible & (key <= query)
        if self.mask is None:
            return visible
        mask = jax.lax.dynamic_slice_in_dim(
            self.mask, other * self.columns, self.columns, axis=3
        )
        if mask.shape[2] > 1:
            mask = jax.lax.dynamic_slice_in_dim(
                mask, number * self.rows, self.rows, axis=2
            )
        return visible & mask


def _cut(x, size):
    count = -(-x.shape[1] // size)
    batch, _, heads, depth = x.shape
    x = _pad(x, 1, count * size).reshape(batch, count, size, heads, depth)
    return x.transpose(1, 0, 3, 2, 4)


def _pad(x, axis, length):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)


def _dot(subscripts, a, b):
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(subscripts, a, b, preferred_element_type=wide)
