"""The backward pass by hand against autodiff and against torch."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.ops.conv import conv
from dl_core.ops.conv_gradients import (
    conv_input_gradient,
    conv_kernel_gradient,
    insert_zeros,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@given(
    window=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    rest=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_both_gradients_equal_torch_and_autodiff(
    window, rest, stride, padding, dilation
):
    spatial = [dilation * (k - 1) + rest for k in window]
    x, kernel = normal(0, 2, *spatial, 3), normal(1, *window, 3, 4)
    numbers = {"stride": stride, "padding": padding, "dilation": dilation}

    def forward(x, kernel):
        return conv(x, kernel, lowering="xla", **numbers)

    @jax.jit
    def both(x, kernel, cotangent):
        ours = (
            conv_input_gradient(cotangent, kernel, spatial, **numbers),
            conv_kernel_gradient(x, cotangent, window, **numbers),
        )
        return ours, jax.vjp(forward, x, kernel)[1](cotangent)

    cotangent = normal(2, *jax.eval_shape(forward, x, kernel).shape)
    ours, by_autodiff = both(x, kernel, cotangent)
    tx = torch.tensor(np.moveaxis(x, -1, 1).copy())
    tw = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
    tg = torch.tensor(np.moveaxis(cotangent, -1, 1).copy())
    rank = len(window)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        *(tg, tx, tw, None, [stride] * rank, [padding] * rank, [dilation] * rank),
        *(False, [0] * rank, 1, [True, True, False]),
    )
    theirs = (
        np.moveaxis(dx.numpy(), 1, -1),
        np.moveaxis(dw.numpy(), (0, 1), (-1, -2)),
    )
    for mine, torchs, automatic in zip(ours, theirs, by_autodiff, strict=True):
        np.testing.assert_allclose(mine, torchs, atol=2e-5, rtol=1e-5)
        np.testing.assert_allclose(mine, automatic, atol=2e-5, rtol=1e-5)


def test_zeros_come_between_neighbours():
    x = jnp.arange(1.0, 5).reshape(1, 2, 2, 1)
    spread = insert_zeros(x, 3)[0, ..., 0]
    wanted = np.zeros((4, 4))
    wanted[::3, ::3] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(spread, wanted)


def test_a_gradient_of_another_convolution_is_refused():
    wrong = jnp.zeros((2, 5, 5, 4))
    with pytest.raises(ValueError, match=r"\(batch, 3, 3, 4\).*\(2, 5, 5, 4\)"):
        inspect.unwrap(conv_input_gradient)(wrong, jnp.zeros((3, 3, 1, 4)), (5, 5))
    with pytest.raises(ValueError, match=r"\(batch, 3, 3, 4\).*\(2, 5, 5, 4\)"):
        inspect.unwrap(conv_kernel_gradient)(jnp.zeros((2, 5, 5, 1)), wrong, (3, 3))
