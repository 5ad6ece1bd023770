"""Multiply-adds against torch's counter, and against a paper's table."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dl_core.nn.conv import Conv, DepthwiseConv
from dl_core.ops.conv import conv, conv_transpose
from dl_core.ops.cost import multiply_adds, parameter_count


def torchs(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops() // 2


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rank=st.integers(1, 3),
    groups=st.sampled_from((1, 2, 4)),
    channels=st.sampled_from((4, 8)),
    features=st.sampled_from((4, 12)),
    window=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_convolutions_cost_what_torch_says(
    rank, groups, channels, features, window, stride, padding, dilation
):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    options["groups"] = groups
    size = (7, 6, 5)[:rank]
    theirs = torchs(
        lambda x, w: getattr(torch, f"conv{rank}d")(x, w, **options),
        torch.zeros(2, channels, *size),
        torch.zeros(features, channels // groups, *[window] * rank),
    )
    ours = multiply_adds(
        lambda x, w: conv(x, w, **options, lowering="xla"),
        abstract(2, *size, channels),
        abstract(*[window] * rank, channels // groups, features),
    )
    assert ours == theirs


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolutions_cost_what_torch_says(stride, groups):
    theirs = torchs(
        lambda x, w: torch.conv_transpose2d(x, w, stride=stride, groups=groups),
        torch.zeros(2, 4, 5, 6),
        torch.zeros(4, 6 // groups, 3, 3),
    )
    ours = multiply_adds(
        lambda x, w: conv_transpose(x, w, stride=stride, groups=groups, lowering="xla"),
        abstract(2, 5, 6, 4),
        abstract(3, 3, 4, 6 // groups),
    )
    # At stride 1 it is an ordinary convolution, padded: those products count as well.
    assert ours == (theirs if stride > 1 else 2 * 7 * 8 * 6 * 9 * 4 // groups)


def test_matrix_products_cost_what_torch_says():
    theirs = torchs(torch.bmm, torch.zeros(3, 4, 5), torch.zeros(3, 5, 6))
    assert multiply_adds(jnp.matmul, abstract(3, 4, 5), abstract(3, 5, 6)) == theirs


def test_programs_within_programs_are_counted():
    w = abstract(5, 5)

    def function(w):
        @jax.checkpoint
        def body(x, _):
            return jnp.tanh(x @ w), None

        y, _ = jax.lax.scan(jax.jit(body), w, None, length=7)
        return jax.lax.cond(y.sum() > 0, lambda: y @ w @ w, lambda: y @ w)

    assert multiply_adds(function, w) == (7 + 2) * 5**3
    assert multiply_adds(jax.nn.relu, w) == 0


def test_the_backward_pass_costs_twice_the_forward_one():
    def loss(w, x):
        return (x @ w).sum()

    forward = multiply_adds(loss, abstract(5, 6), abstract(4, 5))
    both = multiply_adds(
        jax.value_and_grad(loss, argnums=(0, 1)), abstract(5, 6), abstract(4, 5)
    )
    assert both == 3 * forward


def test_a_loop_of_unknown_length_is_refused():
    def function(w):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, w)

    with pytest.raises(ValueError, match="while"):
        multiply_adds(function, abstract(3, 3))


class MobileNet(nn.Module):
    """Howard et al., 2017, table 1, with and without separable convolutions."""

    separable: bool

    @nn.compact
    def __call__(self, x):
        def conv(features, size, stride=1):
            return Conv(features, size, stride=stride, use_bias=False, lowering="xla")

        def norm(x):  # Of which only the parameters are of interest.
            return nn.BatchNorm(use_running_average=True)(x)

        x = norm(conv(32, 3, 2)(x))
        strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
        features = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
        for stride, size in zip(strides, features, strict=True):
            if self.separable:
                layer = DepthwiseConv(3, stride=stride, use_bias=False, lowering="xla")
                x = norm(conv(size, 1)(norm(layer(x))))
            else:
                x = norm(conv(size, 3, stride)(x))
        return nn.Dense(1_000)(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("separable", "adds", "parameters"), [(True, 569, 4.2), (False, 4866, 29.3)]
)
def test_mobilenet_costs_what_its_paper_says(separable, adds, parameters):
    network, x = MobileNet(separable), abstract(1, 224, 224, 3)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    # The second number of the paper leaves the last layer's million out, it seems.
    millions = multiply_adds(network.apply, variables, x) / 1e6
    assert round(millions - (0 if separable else 1.024)) == adds
    assert round(parameter_count(variables["params"]) / 1e6, 1) == parameters


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    window=st.sampled_from((1, 3, 5)),
    features=st.integers(1, 40),
    channels=st.integers(1, 9),
)
def test_a_separable_convolution_costs_a_known_share(window, features, channels):
    x = abstract(1, 8, 8, channels)

    def cost(*layers):
        network = nn.Sequential(layers)
        variables = jax.eval_shape(network.init, jax.random.key(0), x)
        return multiply_adds(network.apply, variables, x)

    standard = cost(Conv(features, window, lowering="xla"))
    separable = cost(
        DepthwiseConv(window, lowering="xla"), Conv(features, 1, lowering="xla")
    )
    # Exactly 1/N + 1/k².
    assert separable * features * window**2 == standard * (window**2 + features)


def test_parameters_of_shapes_are_counted():
    assert inspect.unwrap(parameter_count)({"a": abstract(3, 4), "b": abstract()}) == 13
