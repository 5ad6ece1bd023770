"""Pooling against torch's, and against Flax's for the paddings that torch lacks."""

import inspect

import flax.linen
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.ops import pooling

torch.set_num_threads(1)  # Colliding values are then placed in order.
few = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def pools(draw):
    """Features with many ties, a few NaN and infinities, and windows over them."""
    rank = draw(st.integers(1, 3))
    window = [draw(st.integers(1, 3)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    padding = [draw(st.integers(0, size // 2)) for size in window]
    spatial = [draw(st.integers(3, 6)) for _ in range(rank)]
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = jnp.asarray(random.integers(-2, 3, (2, *spatial, 3)), jnp.float32)
    return x, {"window": window, "stride": stride, "padding": padding}


def with_odd_values(x):
    random = np.random.default_rng(x.size)
    x = np.where(random.random(x.shape) < 0.1, np.nan, x)
    return jnp.where(random.random(x.shape) < 0.5, -jnp.inf, x)


def noise(shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def to_torch(x, requires_grad=False):
    """Returns the array with channels first."""
    tensor = torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())
    return tensor.requires_grad_() if requires_grad else tensor


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def torch_pool(kind, x, window, stride, padding, **options):
    """Returns what torch pools, a cotangent for it, and the gradient of x by it."""
    function = getattr(torch.nn.functional, f"{kind}_pool{x.ndim - 2}d")
    x = to_torch(x, requires_grad=True)
    outputs = function(x, window, stride, padding, **options)
    y = outputs[0] if isinstance(outputs, tuple) else outputs
    cotangent = noise(from_torch(y).shape)
    y.backward(to_torch(cotangent))
    return outputs, cotangent, from_torch(x.grad)


@few
@given(pools(), st.booleans())
def test_max_pool_is_torchs_with_its_index_and_gradients(case, odd):
    x, arguments = case
    x = with_odd_values(x) if odd else x
    (expected, places), cotangent, expected_gradient = torch_pool(
        "max", x, **arguments, return_indices=True
    )

    @jax.jit  # One program compiles faster than each of its operations.
    def compute(x, cotangent):
        y, back = jax.vjp(lambda x: pooling.max_pool(x, **arguments), x)
        by_hand = pooling.max_pool_input_gradient(x, cotangent, **arguments)
        argmax = pooling.max_pool_with_argmax(x, **arguments)
        return y, *argmax, back(cotangent)[0], by_hand

    y, values, indices, gradient, by_hand = compute(x, cotangent)
    np.testing.assert_array_equal(y, from_torch(expected))
    np.testing.assert_array_equal(values, y)
    np.testing.assert_array_equal(indices, from_torch(places))
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
    np.testing.assert_allclose(by_hand, expected_gradient, atol=1e-5)


@few
@given(pools(), st.booleans())
def test_avg_pool_is_torchs_with_its_gradients(case, count_include_pad):
    x, arguments = case
    counting = {"count_include_pad": count_include_pad}
    expected, cotangent, expected_gradient = torch_pool(
        "avg", x, **arguments, **counting
    )

    @jax.jit
    def compute(x, cotangent):
        y, back = jax.vjp(lambda x: pooling.avg_pool(x, **arguments, **counting), x)
        by_hand = pooling.avg_pool_input_gradient(
            cotangent, x.shape[1:-1], **arguments, **counting
        )
        return y, back(cotangent)[0], by_hand

    y, gradient, by_hand = compute(x, cotangent)
    np.testing.assert_allclose(y, from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
    np.testing.assert_allclose(by_hand, expected_gradient, atol=1e-5)


@few
@given(pools())
def test_max_unpool_is_torchs_where_windows_overlap_too(case):
    x, arguments = case
    pool = jax.jit(lambda x: pooling.max_pool_with_argmax(x, **arguments))
    pooled, indices = pool(x)
    place = jax.jit(lambda *pooled: pooling.max_unpool(*pooled, x.shape[1:-1]))
    unpool = getattr(torch.nn.functional, f"max_unpool{x.ndim - 2}d")
    for values in (pooled, noise(pooled.shape)):  # Equal where they collide, or not.
        expected = unpool(
            to_torch(values),
            to_torch(indices).long(),
            *arguments.values(),
            output_size=x.shape[1:-1],
        )
        np.testing.assert_array_equal(place(values, indices), from_torch(expected))


def test_max_unpool_gradient_is_torchs_without_overlap():
    x = noise((2, 4, 6, 3))
    values, indices = pooling.max_pool_with_argmax(x, 2)
    placed, back = jax.vjp(
        lambda values: pooling.max_unpool(values, indices, (4, 6)), values
    )
    tensor = to_torch(values, requires_grad=True)
    expected = torch.nn.functional.max_unpool2d(tensor, to_torch(indices).long(), 2)
    cotangent = noise(placed.shape)
    expected.backward(to_torch(cotangent))
    np.testing.assert_allclose(back(cotangent)[0], from_torch(tensor.grad), atol=1e-5)


def test_where_values_collide_the_last_window_wins_and_gets_the_gradient():
    values = jnp.asarray([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    indices = jnp.asarray([1, 1, 0], jnp.int32).reshape(1, 3, 1)
    placed, back = jax.vjp(lambda x: pooling.max_unpool(x, indices, (4,)), values)
    np.testing.assert_array_equal(placed.ravel(), [3, 2, 0, 0])
    gradient = back(jnp.arange(1.0, 5.0).reshape(1, 4, 1))[0]
    np.testing.assert_array_equal(gradient.ravel(), [0, 2, 1])


def test_unpooling_what_was_pooled_keeps_the_maxima_and_their_gradient():
    x = noise((1, 5, 5, 2))

    def keep(x):
        values, indices = pooling.max_pool_with_argmax(x, 3, stride=1)
        return pooling.max_unpool(values, indices, (5, 5))

    kept, back = jax.vjp(keep, x)
    np.testing.assert_array_equal(kept, np.where(kept != 0, x, 0))
    # An element that is the maximum of several windows is still there only once.
    np.testing.assert_array_equal(back(jnp.ones_like(x))[0], kept != 0)


@settings(few, max_examples=8)
@given(pools())
def test_same_padding_is_flaxs(case):
    x, arguments = case
    window, stride = tuple(arguments["window"]), tuple(arguments["stride"])
    for ours, theirs in (
        (pooling.max_pool, flax.linen.max_pool),
        (pooling.avg_pool, flax.linen.avg_pool),
    ):
        for padding in ("same", "valid"):
            expected = theirs(x, window, stride, padding.upper())
            pooled = ours(x, window, stride=stride, padding=padding)
            np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_one_padding_for_each_side_and_windows_that_overhang_are_left_out():
    x = noise((2, 7, 6, 3))
    sides = [(2, 0), (0, 1)]  # 9 and 7 places: the last window of the rows fits, …
    tensor = to_torch(x)
    for kind, filling in (("max", -np.inf), ("avg", 0.0)):
        padded = torch.nn.functional.pad(tensor, (0, 1, 2, 0), value=filling)
        expected = getattr(torch.nn.functional, f"{kind}_pool2d")(padded, 3, 2)
        ours = getattr(pooling, f"{kind}_pool")(x, 3, stride=2, padding=sides)
        assert ours.shape == (2, 4, 3, 3)
        np.testing.assert_allclose(ours, from_torch(expected), atol=1e-5)
    assert pooling.max_pool(x, 4).shape == (2, 1, 1, 3)  # … here none of the second.


def test_global_pools_are_torchs_with_their_gradients():
    x = jnp.round(noise((2, 4, 5, 3)))
    for ours, theirs in (
        (pooling.global_max_pool, torch.nn.functional.adaptive_max_pool2d),
        (pooling.global_avg_pool, torch.nn.functional.adaptive_avg_pool2d),
    ):
        tensor = to_torch(x, requires_grad=True)
        expected = theirs(tensor, 1)
        y, back = jax.vjp(ours, x)
        np.testing.assert_allclose(y, expected[..., 0, 0].detach(), atol=1e-6)
        cotangent = noise(y.shape)
        expected.backward(torch.tensor(cotangent)[..., None, None])
        np.testing.assert_allclose(
            back(cotangent)[0], from_torch(tensor.grad), atol=1e-6
        )


def test_max_pool_knows_second_derivatives():
    x = noise((1, 4, 4, 1))
    pool = jax.jit(lambda x: pooling.max_pool(x, 2, stride=1) ** 2)
    jax.test_util.check_grads(pool, (x,), order=2, rtol=1e-2)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 3), {"window": 2}, r"axes, not \(2, 3\)"),
        ((2, 5, 5, 3), {"window": (2, 2, 2)}, r"each of 2 axes.*\(2, 5, 5, 3\)"),
        ((2, 5, 5, 3), {"window": 2, "stride": 0}, "at least 1"),
        ((2, 5, 5, 3), {"window": 2, "padding": 2}, "less than the window"),
        ((2, 5, 5, 3), {"window": 2, "padding": [(1,), (1,)]}, "low and a high"),
        ((2, 5, 5, 3), {"window": 6}, r"larger than what it pools.*\(2, 5, 5, 3\)"),
        ((2, 5, 5, 3), {"window": 2, "padding": "full"}, '"full"'),
    ],
)
def test_windows_that_do_not_fit_are_told_when_traced(shape, arguments, message):
    for function in (pooling.max_pool, pooling.avg_pool, pooling.max_pool_with_argmax):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda x, function=function: inspect.unwrap(function)(x, **arguments),
                jnp.zeros(shape),
            )


def test_unpooling_and_gradients_of_other_shapes_are_told_when_traced():
    x = jnp.zeros((2, 4, 4, 3))
    values, indices = pooling.max_pool_with_argmax(x, 2)
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 3\).*\(16,\)"):
        inspect.unwrap(pooling.max_unpool)(values, indices, (16,))
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 3\), not \(2, 4, 4, 3\)"):
        inspect.unwrap(pooling.max_pool_input_gradient)(x, x, 2)
    with pytest.raises(ValueError, match=r"\(2, 2, 2, 3\), not \(2, 4, 4, 3\)"):
        inspect.unwrap(pooling.avg_pool_input_gradient)(x, (4, 4), 2)
