"""Attention: each query's average of values, weighted by how its key fits.

    softmax(scale · query keyᵀ + bias) value

Arrays are "batch time heads depth", as `jax.nn.dot_product_attention` has them. Four
ways to compute the same:

    einsum   the matrix of weights, as it is written
    blocks   block by block, in memory linear in the lengths (see `attention_blocks`)
    xla      `jax.nn.dot_product_attention`
    cudnn    the same through cuDNN's fused kernel: on GPUs, in half precision

`blocks`, which "auto" takes on CPUs from 128 queries and keys on, has gradients in
reverse mode and of the first order only; the others have all.

A position that may not be seen has a weight of exactly 0 and passes a gradient of
exactly 0 to its key and value; a query that may see nothing gets zeros, not NaN.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dl_core.ops.attention_blocks import block_of, blockwise

Lowering = Literal["auto", "einsum", "blocks", "xla", "cudnn"]
Mask = Bool[Array, "#batch #heads #queries seen"]

_LONG = 128
"""Queries and keys from which on blocks are faster on CPUs."""


def scaled_dot_product(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch values heads features"],
    mask: Mask | None = None,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
    lowering: Lowering = "auto",
) -> Float[Array, "batch queries heads features"]:
    """Returns what each query sees (Vaswani et al., 2017, arXiv:1706.03762).

    Args:
      query: what is asked, by each head.
      key: what answers to it.
      value: what is then seen.
      mask: True where a query may see a key.
      bias: added to the scaled products.
      scale: of the products; 1 / √depth where None.
      causal: whether query t may see the keys 0 … t alone, besides the mask.
      lowering: how it is computed; "auto" takes, on accelerators, cuDNN where that
        applies and XLA otherwise, on CPUs blocks for long sequences without a bias.

    Raises:
      ValueError: if shapes do not fit each other, or `blocks` is given a bias.
    """
    _check(query, key, value, mask, bias)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if lowering == "auto":
        lowering = _choose(query, key, value, mask, bias)
    if lowering == "blocks":
        if bias is not None:
            raise ValueError(
                "scaled_dot_product: blocks take no bias, which is as large as the "
                f"weights ({bias.shape}); expected lowering='einsum'"
            )
        return blockwise(query * scale, key, value, mask, causal, block_of(query))
    if lowering == "einsum":
        weights = attention_weights(
            query, key, mask, bias, scale=scale, causal=causal
        ).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return _jax_attention(query, key, value, mask, bias, scale, causal, lowering)


def attention_weights(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    mask: Mask | None = None,
    bias: Float[Array, "#batch #heads #queries keys"] | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
) -> Float[Array, "batch heads queries keys"]:
    """Returns the weights, in single precision or better.

    Args: as for `scaled_dot_product`.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=dtype
    )
    if bias is not None:
        logits = logits + bias
    if causal:
        mask = _and_causal(mask, *logits.shape[-2:])
    return masked_softmax(logits, mask)


def masked_softmax(
    logits: Float[Array, "*shape keys"], mask: Bool[Array, "*#shape keys"] | None = None
) -> Float[Array, "*shape keys"]:
    """Returns the softmax over the keys where the mask is True, and 0 elsewhere.

    Args:
      logits: of any size, also where the mask is False.
      mask: a row without True gives zeros; no mask lets all be seen.
    """
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    lowest = jnp.finfo(logits.dtype).min
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, lowest), axis=-1), 0)


def causal_mask(length: int) -> Bool[Array, "1 1 length length"]:
    """Returns the mask by which each position sees itself and those before it."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


def padding_mask(
    lengths: Int[Array, " batch"], keys: int
) -> Bool[Array, "batch 1 1 keys"]:
    """Returns the mask by which the first `lengths` keys are seen."""
    return (jnp.arange(keys) < lengths[:, None])[:, None, None]


def _and_causal(mask: Array | None, queries: int, keys: int) -> Array:
    causal = jnp.tril(jnp.ones((1, 1, queries, keys), bool))
    return causal if mask is None else mask & causal


def _choose(
    query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None
) -> Lowering:
    """Returns the lowering that "auto" stands for."""
    backend = jax.default_backend()
    if backend == "cpu" or value.shape[-1] != query.shape[-1]:
        long = min(query.shape[1], key.shape[1]) >= _LONG
        return "blocks" if long and bias is None else "einsum"
    biased = mask is not None or bias is not None
    return "cudnn" if backend == "gpu" and _fits_cudnn(query, key, biased) else "xla"


def _fits_cudnn(query: Array, key: Array, biased: bool) -> bool:
    """Returns whether cuDNN's kernel takes such arrays, forwards and backwards.

    What JAX asks of them: Nvidia's GPUs from Ampere on, half precision, a depth that is
    a multiple of 8 and at most 128 (256 from Hopper on), and, with a mask, which
    becomes a bias, even lengths.
    """
    # Those of AMD say "gfx90a" or the like, which is no number.
    major = str(getattr(jax.devices()[0], "compute_capability", "")).split(".")[0]
    new = major.isdecimal() and int(major) >= 8
    half = query.dtype in (jnp.float16, jnp.bfloat16) and key.dtype == query.dtype
    deep = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    even = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0
    return new and half and deep and (even or not biased)


def _jax_attention(query, key, value, mask, bias, scale, causal, implementation):
    """Calls JAX's own, whose queries that may see nothing see the mean of all."""
    queries, keys = query.shape[1], key.shape[1]
    sees = None
    if mask is not None:
        seen = _and_causal(mask, queries, keys) if causal else mask
        sees = seen.any(axis=-1).swapaxes(1, 2)[..., None]
        # cuDNN takes no mask with one row for all queries (jax#28974).
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], queries, keys))
    y = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias,
        mask,
        scale=scale,
        is_causal=causal,
        implementation=implementation,
    )
    return y if sees is None else jnp.where(sees, y, 0)


def _check(query, key, value, mask, bias) -> None:
    shapes = [x.shape for x in (query, key, value)]
    fit = (
        all(len(shape) == 4 for shape in shapes)
        and query.shape[0] == key.shape[0]
        and query.shape[2:] == key.shape[2:]
        and key.shape[:3] == value.shape[:3]
    )
    if not fit:
        raise ValueError(
            "scaled_dot_product: expected a query of (batch, queries, heads, depth), "
            "keys of (batch, keys, heads, depth) and values of (batch, keys, heads, "
            f"features), got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    full = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    for name, x in (("mask", mask), ("bias", bias)):
        if x is None:
            continue
        pairs = zip(x.shape[:-1], full[:-1], strict=False)
        if (
            x.ndim != 4
            or x.shape[-1] != full[-1]
            or any(a not in (1, b) for a, b in pairs)
        ):
            raise ValueError(
                f"scaled_dot_product: expected a {name} of (batch, heads, queries, "
                f"keys) = {full}, the first three of which may be 1, got {x.shape}"
            )
