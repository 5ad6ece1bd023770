"""Attention layers against torch and against the formulas in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.nn import attention
from dl_core.ops.attention import causal_mask, padding_mask

BATCH, QUERIES, TIME, FEATURES, HEADS = 2, 4, 6, 8, 2


def normal(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def perturbed(variables):
    """Returns parameters without zeros, so that biases count."""
    leaves, tree = jax.tree.flatten(variables)
    moved = [x + 0.1 * normal(*x.shape, seed=i) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, moved)


# Multi-head attention.

LAYER = attention.MultiHeadAttention(HEADS, FEATURES)


def torchs(params):
    """Returns torch's layer with the same parameters."""
    layer = torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True)
    names = ("query", "key", "value")
    state = {
        "in_proj_weight": np.concatenate([params[n]["kernel"].T for n in names]),
        "in_proj_bias": np.concatenate([params[n]["bias"] for n in names]),
        "out_proj.weight": params["out"]["kernel"].T,
        "out_proj.bias": params["out"]["bias"],
    }
    layer.load_state_dict({k: torch.tensor(np.array(v)) for k, v in state.items()})
    return layer


LENGTHS = jnp.array([TIME, 3])
SEEN = jnp.arange(TIME) < LENGTHS[:, None]
PADDED = torch.tensor(~np.asarray(SEEN))
AFTER = torch.tensor(~np.tri(TIME, dtype=bool))
CASES = {
    "self": (False, {}, {}),
    "causal": (False, {"causal": True}, {"attn_mask": AFTER}),
    "padding": (
        False,
        {"mask": padding_mask(LENGTHS, TIME)},
        {"key_padding_mask": PADDED},
    ),
    "causal and padding": (
        False,
        {"mask": padding_mask(LENGTHS, TIME) & causal_mask(TIME)},
        {"key_padding_mask": PADDED, "attn_mask": AFTER},
    ),
    "cross": (
        True,
        {"mask": padding_mask(LENGTHS, TIME)},
        {"key_padding_mask": PADDED},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_multi_head_attention_is_torchs(case):
    cross, ours, theirs = CASES[case]
    memory = normal(BATCH, TIME, FEATURES)
    x = normal(BATCH, QUERIES, FEATURES, seed=1) if cross else memory
    variables = perturbed(LAYER.init(jax.random.key(0), x, train=False))
    weights = normal(*x.shape, seed=2)

    def loss(variables, x, memory):
        y = LAYER.apply(variables, x, memory if cross else None, train=False, **ours)
        return (y * weights).sum(), y

    (_, y), (dparams, dx, dmemory) = jax.jit(
        jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    )(variables, x, memory)
    layer = torchs(variables["params"])
    queries = torch.tensor(np.asarray(x), requires_grad=True)
    keys = torch.tensor(np.asarray(memory), requires_grad=True) if cross else queries
    expected, _ = layer(queries, keys, keys, need_weights=False, **theirs)
    (expected * torch.tensor(np.asarray(weights))).sum().backward()
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(dx, queries.grad, atol=1e-5)
    if cross:
        np.testing.assert_allclose(dmemory, keys.grad, atol=1e-5)
        assert not np.any(dmemory[1, 3:])
    kernels = [dparams["params"][n]["kernel"].T for n in ("query", "key", "value")]
    np.testing.assert_allclose(
        np.concatenate(kernels), layer.in_proj_weight.grad, atol=2e-5
    )


@pytest.mark.parametrize("rotary", [False, True])
def test_the_cache_gives_what_the_whole_pass_gives(rotary):
    layer = attention.MultiHeadAttention(HEADS, FEATURES, rotary=rotary, longest=TIME)
    x = normal(BATCH, TIME, FEATURES)
    variables = perturbed(layer.init(jax.random.key(0), x, train=False))
    whole = layer.apply(variables, x, causal=True, train=False)

    @jax.jit
    def step(cache, x):
        y, cache = layer.apply(
            {**variables, **cache}, x, train=False, decode=True, mutable=["cache"]
        )
        return cache, y

    cache = {}
    for t in range(TIME):
        cache, y = step(cache, x[:, t : t + 1])
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-5)
    assert all(len(leaf) == BATCH for leaf in jax.tree.leaves(cache))
    _, y = step(cache, x[:, :1])
    assert np.isnan(y).all()


def test_a_memory_is_projected_once():
    x, memory = normal(BATCH, 1, FEATURES), normal(BATCH, TIME, FEATURES, seed=1)
    variables = perturbed(LAYER.init(jax.random.key(0), x, memory, train=False))
    expected = LAYER.apply(variables, x, memory, train=False)
    pair = LAYER.apply(variables, memory, method="project")
    y = LAYER.apply(variables, x, pair, train=False)
    np.testing.assert_array_equal(y, expected)
    options = {"train": False, "decode": True, "mutable": ["cache"]}
    y, cache = LAYER.apply(variables, x, memory, **options)
    np.testing.assert_array_equal(y, expected)
    y, _ = LAYER.apply({**variables, **cache}, x, memory * np.nan, **options)
    np.testing.assert_array_equal(y, expected)


def test_dropped_weights_and_kept_ones():
    layer = attention.MultiHeadAttention(HEADS, FEATURES, dropout=0.5)
    x = normal(BATCH, TIME, FEATURES)
    variables = perturbed(layer.init(jax.random.key(0), x, train=False))
    rngs = {"dropout": jax.random.key(1)}
    dropped = layer.apply(variables, x, train=True, rngs=rngs)
    kept, seen = layer.apply(variables, x, train=False, mutable=["intermediates"])
    plain = layer.apply(variables, x, train=False)
    np.testing.assert_allclose(kept, plain, atol=1e-6)
    assert np.abs(dropped - plain).max() > 0.01
    (weights,) = seen["intermediates"]["weights"]
    assert weights.shape == (BATCH, HEADS, TIME, TIME)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_what_multi_head_attention_refuses():
    x = normal(BATCH, 2, FEATURES)
    with pytest.raises(ValueError, match="3 heads do not divide the 8 features"):
        attention.MultiHeadAttention(3, FEATURES).init(
            jax.random.key(0), x, train=False
        )
    with pytest.raises(ValueError, match="got 2 positions, longest=0"):
        LAYER.init(jax.random.key(0), x, train=False, decode=True)


# Scores of a recurrent decoder.


def softmax(logits, mask):
    logits = np.asarray(logits, np.float64)
    raised = np.exp(logits - logits.max(-1, keepdims=True)) * mask
    return raised / raised.sum(-1, keepdims=True)


def double(variables):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])


def additive(params, query, memory):
    hidden = query @ params["query"]["kernel"], memory @ params["memory"]["kernel"]
    return np.tanh(hidden[0][:, :, None] + hidden[1][:, None]) @ params["out"]


def general(params, query, memory):
    return query @ (memory @ params["memory"]["kernel"]).swapaxes(1, 2)


SCORES = {
    "additive": (attention.Additive(5), additive),
    "dot": (attention.Dot(), lambda _, q, m: q @ m.swapaxes(1, 2)),
    "general": (attention.General(FEATURES), general),
    "location": (
        attention.Location(10),
        lambda p, q, m: (q @ p["query"]["kernel"])[..., :TIME],
    ),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_by_their_formulas(name):
    score, formula = SCORES[name]
    query, memory = normal(BATCH, 3, FEATURES), normal(BATCH, TIME, FEATURES, seed=1)
    mask = SEEN
    variables = perturbed(score.init(jax.random.key(0), query, memory, mask))
    weights = score.apply(variables, query, memory, mask)
    params = double(variables) if variables else None
    logits = formula(params, np.float64(query), np.float64(memory))
    np.testing.assert_allclose(weights, softmax(logits, mask[:, None]), atol=1e-6)
    assert not np.any(weights[1, :, 3:])
    read = attention.context(weights, memory)
    np.testing.assert_allclose(read, np.asarray(weights) @ memory, atol=1e-6)
    keys = score.apply(variables, memory, method="keys")
    one = score.apply(variables, query[:, 0], memory, mask, keys)
    np.testing.assert_allclose(one, weights[:, 0], atol=1e-6)
    np.testing.assert_allclose(attention.context(one, memory), read[:, 0], atol=1e-6)


def test_a_memory_longer_than_location_knows():
    query, memory = normal(BATCH, FEATURES), normal(BATCH, TIME, FEATURES)
    with pytest.raises(ValueError, match="scores 5 positions, got a memory of 6"):
        attention.Location(5).init(jax.random.key(0), query, memory)


def test_products_of_different_sizes():
    query, memory = normal(BATCH, FEATURES), normal(BATCH, TIME, 3)
    with pytest.raises(ValueError, match=r"got \(2, 8\) and \(2, 6, 3\)"):
        attention.Dot().init(jax.random.key(0), query, memory)


# The two forms of the notes.


def test_parametric_queries_by_their_formula():
    layer = attention.ParametricQueries(queries=3, features=5, depth=4)
    x, mask = normal(BATCH, TIME, FEATURES), SEEN
    variables = layer.init(jax.random.key(0), x)
    y, kept = layer.apply(variables, x, mask, mutable=["intermediates"])
    params = double(variables)
    keys, values = (np.float64(x) @ params[n]["kernel"] for n in ("key", "value"))
    weights = softmax(params["queries"] @ keys.swapaxes(1, 2), mask[:, None])
    np.testing.assert_allclose(y, weights @ values, atol=1e-5)
    np.testing.assert_allclose(kept["intermediates"]["weights"][0], weights, atol=1e-6)
    order = np.array([2, 0, 1, 3, 4, 5])
    moved = layer.apply(variables, x[:, order], mask)
    np.testing.assert_allclose(moved, y, atol=1e-6)


def test_contextual_attention_by_its_formula_and_not_scaled():
    layer = attention.ContextualAttention(features=5, depth=4)
    x, memory = normal(BATCH, QUERIES, FEATURES), normal(BATCH, TIME, FEATURES, seed=1)
    mask = SEEN
    variables = layer.init(jax.random.key(0), x)
    params = double(variables)

    def formula(x, memory, mask):
        q, k, v = (
            np.float64(a) @ params[n]["kernel"]
            for a, n in ((x, "query"), (memory, "key"), (memory, "value"))
        )
        return softmax(q @ k.swapaxes(1, 2), mask) @ v

    np.testing.assert_allclose(layer.apply(variables, x), formula(x, x, 1), atol=1e-5)
    y = layer.apply(variables, x, memory, mask)
    np.testing.assert_allclose(y, formula(x, memory, mask[:, None]), atol=1e-5)
