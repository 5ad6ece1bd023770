"""The libraries' activations against torch's, and where their conventions part.

The project has none of its own: these pin what its experiments take from `jax.nn`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

# At 0, near it, across the bends, and so far out that an exponential overflows.
POINTS = np.float32([0, -0.0, 1e-30, -1e-30, 1e-3, -1e-3, 0.5, -0.5, 1, -1, 3, -3])
FAR = np.float32([6, -6, 15, -15, 30, -30, 88, -88, 100, -100, 1e4, -1e4, 1e38, -1e38])
x = np.concatenate([POINTS, FAR])

PAIRS = {
    "sigmoid": (jax.nn.sigmoid, torch.sigmoid),
    "tanh": (jnp.tanh, torch.tanh),
    "relu": (jax.nn.relu, torch.relu),
    "leaky_relu": (jax.nn.leaky_relu, functional.leaky_relu),
    "leaky_relu_slope": (
        functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
        functools.partial(functional.leaky_relu, negative_slope=0.2),
    ),
    "elu": (jax.nn.elu, functional.elu),
    "elu_alpha": (
        functools.partial(jax.nn.elu, alpha=0.7),
        functools.partial(functional.elu, alpha=0.7),
    ),
    "gelu_erf": (functools.partial(jax.nn.gelu, approximate=False), functional.gelu),
    "gelu_tanh": (
        functools.partial(jax.nn.gelu, approximate=True),
        functools.partial(functional.gelu, approximate="tanh"),
    ),
    "softplus": (jax.nn.softplus, functional.softplus),
}


def both(function, x):
    y, back = jax.vjp(function, jnp.asarray(x))
    return np.asarray(y), np.asarray(back(jnp.ones_like(y))[0])


def torch_both(function, x):
    tensor = torch.tensor(x, requires_grad=True)
    y = function(tensor)
    y.sum().backward()
    return y.detach().numpy(), tensor.grad.numpy()


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_are_torchs(name):
    ours, theirs = PAIRS[name]
    points = x[2:] if name.startswith("leaky") else x  # At 0 they differ, see below.
    y, gradient = both(ours, points)
    expected, expected_gradient = torch_both(theirs, points)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 1e4])
def test_softmax_is_torchs_along_any_axis(scale):
    random = np.random.default_rng(0)
    logits, cotangent = random.standard_normal((2, 3, 4, 5)).astype(np.float32)
    logits *= scale
    logits[0, 0] = -np.inf  # As a mask has it.
    for axis in (0, 1, -1):
        if axis == -1:
            logits = np.where(np.isinf(logits), 0, logits)
        y, back = jax.vjp(functools.partial(jax.nn.softmax, axis=axis), logits)
        tensor = torch.tensor(logits, requires_grad=True)
        expected = torch.softmax(tensor, axis)
        expected.backward(torch.tensor(cotangent))
        np.testing.assert_allclose(y, expected.detach(), atol=1e-6)
        np.testing.assert_allclose(back(cotangent)[0], tensor.grad, atol=1e-6)


def test_conventions_that_differ():
    # JAX's GELU is the tanh approximation by default, torch's the exact one.
    three = np.float32([3])
    approximate, _ = both(jax.nn.gelu, three)
    np.testing.assert_array_equal(approximate, both(PAIRS["gelu_tanh"][0], three)[0])
    assert np.abs(approximate - torch_both(functional.gelu, three)[0]) > 1e-4

    # Derivatives at the bend.
    zero = np.float32([0])
    assert both(jax.nn.relu, zero)[1] == torch_both(torch.relu, zero)[1] == 0
    assert both(lambda x: jnp.maximum(x, 0), zero)[1] == 0.5
    assert both(jax.nn.leaky_relu, zero)[1] == 1
    np.testing.assert_allclose(torch_both(functional.leaky_relu, zero)[1], 0.01)
