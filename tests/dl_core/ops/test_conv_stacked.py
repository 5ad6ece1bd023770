"""Convolutions of stacked runs, whose kernels differ: against torch, run by run."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.ops.conv import conv, conv_transpose
from dl_core.ops.conv_lowerings import stacked

POINTS = 3
# Input, kernel (torch's), and the numbers.
CONVOLUTIONS = {
    "dense": ((2, 3, 9, 8), (4, 3, 3, 3), {"padding": 1}),
    "strided": ((2, 3, 9, 8), (4, 3, 4, 4), {"stride": 2, "padding": 1}),
    "dilated": ((2, 3, 9, 9), (4, 3, 3, 2), {"dilation": (2, 3), "padding": 2}),
    "pointwise": ((2, 5, 6, 6), (7, 5, 1, 1), {}),
    "grouped": ((2, 8, 7, 7), (12, 4, 3, 3), {"groups": 2, "stride": 2}),
    "depthwise": ((2, 6, 7, 7), (12, 1, 3, 3), {"groups": 6, "padding": 1}),
    "time": ((2, 3, 12), (4, 3, 3), {"dilation": 2}),
    "volume": ((1, 2, 5, 5, 5), (3, 2, 2, 2, 2), {}),
}
TRANSPOSED = {
    "dense": ((2, 3, 6, 5), (3, 4, 3, 3), {"padding": 1}),
    "strided": ((2, 3, 4, 4), (3, 4, 4, 4), {"stride": 2, "padding": 1}),
    "uneven": ((2, 3, 4, 5), (3, 4, 3, 3), {"stride": 2, "output_padding": 1}),
    "dilated": ((2, 3, 4, 4), (3, 4, 3, 3), {"stride": 2, "dilation": 2}),
    "grouped": ((2, 4, 4, 4), (4, 3, 4, 4), {"stride": 2, "groups": 2}),
    "depthwise": ((2, 6, 5, 5), (6, 1, 4, 4), {"stride": 2, "groups": 6}),
}
CASES = [
    *[pytest.param(conv, *case, id=name) for name, case in CONVOLUTIONS.items()],
    *[
        pytest.param(conv_transpose, *case, id=f"transposed {name}")
        for name, case in TRANSPOSED.items()
    ],
]


def arrays_of(shape, kernel_shape):
    """Inputs and kernels of each point, channels first."""
    random = np.random.default_rng(0)
    shapes = ((POINTS, *shape), (POINTS, *kernel_shape))
    return [random.normal(size=s).astype(np.float32) for s in shapes]


def ours_of(x, kernels, function):
    """Lays arrays of torch out as ours: channels last, kernels "*window in out"."""
    kernels = np.moveaxis(kernels, (1, 2), (-1, -2) if function is conv else (-2, -1))
    return np.moveaxis(x, 2, -1), kernels


def torchs(function, x, kernel, numbers):
    """Returns torch's output of one point, and the gradients of its cosine's sum."""
    name = {conv: "conv", conv_transpose: "conv_transpose"}[function]
    x, kernel = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    y = getattr(functional, f"{name}{x.ndim - 2}d")(x, kernel, **numbers)
    y.cos().sum().backward()
    return [a.detach().numpy() for a in (y, x.grad, kernel.grad)]


def all_points(function, numbers):
    """Returns the function of stacked arrays that gives what `torchs` gives."""

    def one(x, kernel):
        def loss(x, kernel):
            y = function(x, kernel, **numbers)
            return jnp.cos(y).sum(), y

        take = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, y), gradients = take(x, kernel)
        return y, *gradients

    def all_at_once(x, kernels):
        with stacked():
            return jax.vmap(one)(x, kernels)

    return all_at_once


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("function", "shape", "kernel_shape", "numbers"), CASES)
def test_every_point_gets_torchs_numbers(
    monkeypatch, backend, function, shape, kernel_shape, numbers
):
    x, kernels = arrays_of(shape, kernel_shape)
    wanted = [torchs(function, *pair, numbers) for pair in zip(x, kernels, strict=True)]
    y, dx, dk = (np.stack(each) for each in zip(*wanted, strict=True))
    wanted = (np.moveaxis(y, 2, -1), *ours_of(dx, dk, function))
    ours = ours_of(x, kernels, function)
    # What is chosen goes by the backend's name; it is computed here all the same.
    compiled = all_points(function, numbers)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    text = str(jax.make_jaxpr(compiled)(*ours))
    found = jax.jit(compiled)(*ours)
    assert "conv_general_dilated" not in text
    for mine, theirs in zip(found, wanted, strict=True):
        scale = max(1.0, np.abs(theirs).max())
        np.testing.assert_allclose(mine / scale, theirs / scale, atol=1e-5)


def test_gradient_penalties_of_stacked_critics_are_those_of_each_alone():
    x, kernels = (jnp.asarray(a) for a in arrays_of((2, 8, 8, 3), (4, 4, 3, 5)))

    def penalty(kernel, x):
        def critic(x):
            return jnp.tanh(conv(x, kernel, stride=2, padding=1)).sum()

        return (jax.grad(critic)(x) ** 2).sum()

    @jax.jit
    def together(kernels, x):
        with stacked():
            return jax.vmap(jax.grad(penalty))(kernels, x)

    alone = jnp.stack([jax.grad(penalty)(kernels[i], x[i]) for i in range(POINTS)])
    scale = jnp.abs(alone).max()
    np.testing.assert_allclose(together(kernels, x) / scale, alone / scale, atol=1e-5)


def test_functions_compiled_before_are_traced_anew():
    x, kernel = jnp.zeros((POINTS, 1, 6, 6, 2)), jnp.zeros((POINTS, 3, 3, 2, 2))
    function = jax.jit(inspect.unwrap(conv))

    def text(x, kernel):
        return str(jax.make_jaxpr(jax.vmap(function))(x, kernel))

    assert "conv_general_dilated" in text(x, kernel)
    with stacked():
        assert "conv_general_dilated" not in text(x, kernel)
    assert "conv_general_dilated" in text(x, kernel)
