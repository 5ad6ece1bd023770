"""Attention against torch's, and each way to compute it against the others."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.ops import attention as ops
from dl_core.ops.attention_blocks import blockwise

BATCH, QUERIES, KEYS, HEADS, DEPTH = 2, 7, 9, 2, 8


def arrays(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(BATCH, length, HEADS, DEPTH) for length in lengths]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def random_mask():
    mask = np.random.default_rng(1).random((BATCH, HEADS, QUERIES, KEYS)) < 0.5
    mask[..., 0] = True
    return jnp.asarray(mask)


MASKS = {
    "none": None,
    "any": random_mask(),
    "padding": ops.padding_mask(jnp.array([KEYS, 4]), KEYS),
}
LOWERINGS = ("einsum", "blocks", "xla")


def value_and_gradients(function, *inputs):
    """Returns the output and the gradients of a weighted sum of it."""

    def total(*inputs):
        y = function(*inputs)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    numbers = tuple(range(len(inputs)))
    (_, y), gradients = jax.jit(jax.value_and_grad(total, numbers, has_aux=True))(
        *inputs
    )
    return y, *gradients


def torchs(query, key, value, mask, causal):
    q, k, v = (
        torch.tensor(np.asarray(x)).swapaxes(1, 2).requires_grad_()
        for x in (query, key, value)
    )
    seen = np.ones((1, 1, QUERIES, KEYS), bool) if mask is None else np.asarray(mask)
    if causal:
        seen = seen & np.tril(np.ones((QUERIES, KEYS), bool))
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.tensor(seen)
    ).swapaxes(1, 2)
    y.backward(torch.cos(torch.arange(y.numel())).reshape(y.shape))
    return [y.detach(), *(x.grad.swapaxes(1, 2) for x in (q, k, v))]


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_torchs(mask, causal, lowering):
    inputs, mask = arrays(QUERIES, KEYS, KEYS), MASKS[mask]
    found = value_and_gradients(
        functools.partial(
            ops.scaled_dot_product, mask=mask, causal=causal, lowering=lowering
        ),
        *inputs,
    )
    for ours, theirs in zip(found, torchs(*inputs, mask, causal), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "keys", "block", "causal", "rows"),
    [
        (7, 7, 3, True, True),
        (1, 9, 4, False, False),
        (11, 5, 2, True, False),
        (5, 8, 8, False, True),
    ],
)
def test_blocks_of_any_size_are_the_whole(queries, keys, block, causal, rows):
    query, key, value = arrays(queries, keys, keys)
    rng = np.random.default_rng(queries)
    mask = jnp.asarray(rng.random((BATCH, 1, queries if rows else 1, keys)) < 0.5)

    def whole(query, key, value):
        return ops.scaled_dot_product(
            query, key, value, mask, scale=1, causal=causal, lowering="einsum"
        )

    def cut(query, key, value):
        return blockwise(query, key, value, mask, causal, block)

    inputs = query, key, value
    pairs = zip(
        value_and_gradients(cut, *inputs),
        value_and_gradients(whole, *inputs),
        strict=True,
    )
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_what_is_masked_has_no_influence_and_no_gradient(lowering):
    query, key, value = arrays(QUERIES, KEYS, KEYS)
    mask = ops.padding_mask(jnp.array([KEYS, 4]), KEYS)
    function = functools.partial(ops.scaled_dot_product, mask=mask, lowering=lowering)
    y, _, dkey, dvalue = value_and_gradients(function, query, key, value)
    assert not np.any(dkey[1, 4:])
    assert not np.any(dvalue[1, 4:])
    assert np.all(dvalue[0])
    key, value = key.at[1, 4:].set(1e4), value.at[1, 4:].set(-1e4)
    np.testing.assert_array_equal(function(query, key, value), y)
    weights = ops.attention_weights(query, key, mask)
    assert not np.any(weights[1, ..., 4:])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_query_that_sees_nothing_gets_zeros_and_passes_no_gradient(lowering):
    inputs = arrays(QUERIES, KEYS, KEYS)
    mask = random_mask().at[0, :, 3].set(False)
    function = functools.partial(ops.scaled_dot_product, mask=mask, lowering=lowering)
    y, *gradients = value_and_gradients(function, *inputs)
    assert not np.any(y[0, 3])
    assert not np.any(gradients[0][0, 3])
    assert all(np.isfinite(x).all() for x in (y, *gradients))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_is_what_xla_is(masked, causal):
    rng = np.random.default_rng(3)
    shapes = [(BATCH, 64, HEADS, 32), *[(BATCH, 96, HEADS, 32)] * 2]
    inputs = [jnp.asarray(rng.standard_normal(x), jnp.bfloat16) for x in shapes]
    mask = None
    if masked:
        mask = jnp.asarray(rng.random((BATCH, HEADS, 64, 96)) < 0.5)
        mask = mask.at[0, :, 3].set(False).at[1, ..., 40:].set(False)
    both = [
        value_and_gradients(
            functools.partial(
                ops.scaled_dot_product, mask=mask, causal=causal, lowering=lowering
            ),
            *inputs,
        )
        for lowering in ("cudnn", "xla")
    ]
    for ours, theirs in zip(*both, strict=True):
        ours, theirs = np.float32(ours), np.float32(theirs)
        np.testing.assert_allclose(ours, theirs, atol=0.05, rtol=0.05)
    if masked:
        y, dquery, dkey, _ = both[0]
        assert not np.any(y[0, 3])
        assert not np.any(dquery[0, 3])
        assert not np.any(dkey[1, 40:])


@pytest.mark.parametrize(
    ("query", "mask", "capability", "wanted"),
    [
        (((2, 8, 4, 32), jnp.bfloat16), None, "8.0", "cudnn"),
        (((2, 8, 4, 32), jnp.bfloat16), (1, 1, 8, 8), "9.0", "cudnn"),
        (((2, 7, 4, 32), jnp.float16), None, "9.0", "cudnn"),
        (((2, 7, 4, 32), jnp.bfloat16), (1, 1, 7, 7), "9.0", "xla"),
        (((2, 8, 4, 32), jnp.bfloat16), None, "7.5", "xla"),
        (((2, 8, 4, 32), jnp.bfloat16), None, "gfx90a", "xla"),
        (((2, 8, 4, 20), jnp.bfloat16), None, "9.0", "xla"),
        (((2, 8, 4, 32), jnp.float32), None, "9.0", "xla"),
    ],
)
def test_on_gpus_cudnn_is_chosen_where_it_applies(
    query, mask, capability, wanted, monkeypatch
):
    device = types.SimpleNamespace(compute_capability=capability)
    x = jnp.zeros(*query)
    mask = None if mask is None else jnp.ones(mask, bool)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert ops._choose(x, x, x, mask, None) == wanted


def test_a_bias_is_added_to_the_scaled_products():
    query, key, value = arrays(QUERIES, KEYS, KEYS)
    bias = np.random.default_rng(2).standard_normal((1, HEADS, QUERIES, KEYS))
    bias = jnp.asarray(bias, jnp.float32)
    tensors = [torch.tensor(np.asarray(x)).swapaxes(1, 2) for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=torch.tensor(np.asarray(bias)), scale=0.3
    ).swapaxes(1, 2)
    for lowering in ("auto", "einsum", "xla"):
        y = ops.scaled_dot_product(
            query, key, value, bias=bias, scale=0.3, lowering=lowering
        )
        np.testing.assert_allclose(y, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"blocks take no bias.*einsum"):
        ops.scaled_dot_product(query, key, value, bias=bias, lowering="blocks")


def test_blocks_need_memory_linear_in_the_length():
    def temporary(length):
        x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)

        def loss(query, key, value):
            return ops.scaled_dot_product(
                query, key, value, causal=True, lowering="auto"
            ).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8_192) < 2.5 * temporary(4_096) < 4 * 4_096**2


def test_half_precision_has_sums_in_single():
    inputs = arrays(QUERIES, KEYS, KEYS)
    halves = [x.astype(jnp.bfloat16) for x in inputs]
    for lowering in ("einsum", "blocks"):
        y = ops.scaled_dot_product(*halves, lowering=lowering)
        assert y.dtype == jnp.bfloat16
        expected = ops.scaled_dot_product(*inputs, lowering="einsum")
        np.testing.assert_allclose(y.astype(np.float32), expected, atol=0.03)


def test_masks():
    np.testing.assert_array_equal(ops.causal_mask(3)[0, 0], np.tri(3, dtype=bool))
    mask = ops.padding_mask(jnp.array([2, 0]), 3)
    assert mask.tolist() == [[[[True, True, False]]], [[[False] * 3]]]


def test_shapes_that_do_not_fit():
    query, key, value = arrays(QUERIES, KEYS, KEYS)
    with pytest.raises(
        ValueError, match=r"keys of .*\(2, 9, 2, 8\) and \(2, 8, 2, 8\)"
    ):
        ops.scaled_dot_product(query, key, value[:, 1:])
    with pytest.raises(ValueError, match=r"a mask of .*\(2, 2, 7, 9\).*\(2, 1, 1, 8\)"):
        ops.scaled_dot_product(query, key, value, jnp.ones((BATCH, 1, 1, 8), bool))
