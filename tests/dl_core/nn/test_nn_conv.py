"""Convolution layers: against torch's and Flax's, and their parameters."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.nn.conv import Conv, ConvTranspose, DepthwiseConv, SeparableConv


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes(variables):
    return jax.tree.map(jnp.shape, variables["params"])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_is_flaxs_with_the_same_parameters(stride, groups):
    x = normal(0, 2, 9, 8, 4)
    theirs = nn.Conv(6, (3, 2), strides=stride, feature_group_count=groups)
    ours = Conv(6, (3, 2), stride=stride, groups=groups)
    variables = theirs.init(jax.random.key(0), x)
    own = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, own)
    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(variables, x), atol=1e-5
    )


@pytest.mark.parametrize("multiplier", [1, 3])
def test_separable_conv_equals_torchs_two_convolutions(multiplier):
    x = normal(0, 2, 9, 8, 4)
    layer = SeparableConv(6, 3, multiplier, padding=1, stride=2)
    params = layer.init(jax.random.key(0), x)["params"]
    depthwise = torch.nn.Conv2d(
        4, 4 * multiplier, 3, 2, padding=1, groups=4, bias=False
    )
    pointwise = torch.nn.Conv2d(4 * multiplier, 6, 1)
    for conv, name in ((depthwise, "depthwise"), (pointwise, "pointwise")):
        kernel = np.moveaxis(params[name]["kernel"], (-1, -2), (0, 1))
        conv.weight.data = torch.tensor(kernel.copy())
    pointwise.bias.data = torch.tensor(np.array(params["pointwise"]["bias"]))
    theirs = pointwise(depthwise(torch.tensor(np.moveaxis(x, -1, 1).copy())))
    np.testing.assert_allclose(
        layer.apply({"params": params}, x),
        np.moveaxis(theirs.detach().numpy(), 1, -1),
        atol=1e-5,
    )


def test_depthwise_channels_do_not_mix():
    x = normal(0, 1, 5, 5, 3)
    layer = DepthwiseConv(3, 2)
    variables = layer.init(jax.random.key(0), x)
    assert shapes(variables) == {"kernel": (3, 3, 1, 6), "bias": (6,)}
    seen = jax.jacobian(lambda x: layer.apply(variables, x).sum((0, 1, 2)))(x)
    found = np.abs(seen).sum((1, 2, 3)) > 0
    np.testing.assert_array_equal(found, np.repeat(np.eye(3, dtype=bool), 2, axis=0))


def test_conv_transpose_equals_torchs_layer():
    x = normal(0, 2, 5, 4, 6)
    layer = ConvTranspose(4, 3, stride=2, padding=1, output_padding=1, groups=2)
    params = layer.init(jax.random.key(0), x)["params"]
    params = {**params, "bias": jnp.arange(4.0)}
    other = torch.nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2)
    other.weight.data = torch.tensor(
        np.moveaxis(params["kernel"], (-2, -1), (0, 1)).copy()
    )
    other.bias.data = torch.arange(4.0)
    theirs = other(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    np.testing.assert_allclose(
        layer.apply({"params": params}, x),
        np.moveaxis(theirs.detach().numpy(), 1, -1),
        atol=1e-5,
    )


def test_without_a_bias_there_is_none():
    for layer in (
        Conv(4, 3, use_bias=False),
        DepthwiseConv(3, use_bias=False),
        ConvTranspose(4, 3, use_bias=False),
    ):
        variables = layer.init(jax.random.key(0), jnp.zeros((1, 5, 5, 2)))
        assert variables["params"].keys() == {"kernel"}


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            Conv(4, 3, groups=3),
            r"3 groups do not divide the 4 channels.*\(2, 9, 9, 4\)",
        ),
        (Conv(4, (3, 3, 3)), r"\(3, 3, 3\) does not fit.*\(2, 9, 9, 4\)"),
        (Conv(4, 0), r"kernel_size 0 does not fit.*\(2, 9, 9, 4\)"),
        (ConvTranspose(3, 3, groups=2), r"2 groups do not divide the 3 features"),
    ],
)
def test_what_does_not_fit_is_told_with_the_shapes(layer, words):
    def init():
        return layer.init(jax.random.key(0), jnp.zeros((2, 9, 9, 4)))

    with pytest.raises(ValueError, match=words):
        jax.eval_shape(inspect.unwrap(init))


def test_a_third_number_is_no_stride_by_place():
    with pytest.raises(TypeError, match="positional"):
        Conv(4, 3, 2)
