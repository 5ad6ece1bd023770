"""Receptive fields: published ones, and four ways to one answer.

A formula over a list of layers, the traced program, the support of JAX's gradient, and
torch's Jacobian must agree.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.nn.conv import Conv, ConvTranspose, DepthwiseConv, SeparableConv
from dl_core.ops import pooling
from dl_core.ops.conv import conv, conv_transpose
from dl_core.ops.effective_receptive_field import (
    centre_gradient,
    effective_size,
    gradient_support,
)
from dl_core.ops.published_networks import IMAGE_SIZE, PUBLISHED, inception_v3
from dl_core.ops.receptive_field import (
    Branches,
    Layer,
    ReceptiveField,
    receptive_field,
)
from dl_core.ops.receptive_field_tracing import trace_receptive_fields

few = settings(max_examples=20, deadline=None, derandomize=True)


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers(name, dimension):
    layers, published = PUBLISHED[name]
    found = receptive_field(layers, input_size=IMAGE_SIZE, dimension=dimension)
    assert found == published


def test_the_centres_of_the_published_example():
    layers, _ = PUBLISHED["inception_resnet_v2"]
    field = receptive_field(layers, input_size=IMAGE_SIZE)
    assert (field.centre(0), field.centre(2)) == (37, 101)


def test_where_the_padding_depends_on_the_size_it_is_asked_for():
    assert receptive_field(inception_v3()) == PUBLISHED["inception_v3"][1]
    with pytest.raises(ValueError, match="depends on the input's size"):
        receptive_field(PUBLISHED["mobilenet_v1"][0])
    # The table of the same authors, for images of 321 × 321.
    assert receptive_field(
        PUBLISHED["mobilenet_v1"][0], input_size=321
    ) == ReceptiveField(315, 32, 157)
    assert receptive_field(
        PUBLISHED["resnet_v1_50"][0], input_size=321
    ) == ReceptiveField(483, 32, 241)


def test_dilations_1_2_4_grow_the_field_to_3_7_15():
    layers = [Layer(3, dilation=d) for d in (1, 2, 4)]
    sizes = [receptive_field(layers[: i + 1]).size for i in range(3)]
    assert sizes == [3, 7, 15]


# Random stacks in one dimension; a layer is (kind, Layer).


@st.composite
def stacks(draw):
    kinds = st.sampled_from(("conv", "max", "avg", "residual"))
    stack = []
    for kind in draw(st.lists(kinds, min_size=1, max_size=4)):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))
        if kind == "residual":
            kernel = 2 * draw(st.integers(0, 2)) + 1
            stride, padding = 1, dilation * (kernel // 2)
        elif kind != "conv":
            dilation = 1
        stack.append((kind, Layer(kernel, stride, padding, dilation)))
    return stack


def as_network(stack):
    return [
        Branches([], layer) if kind == "residual" else layer for kind, layer in stack
    ]


def as_jax(stack, *, smooth=False):
    """Returns the stack with weights of one; `smooth` averages for the maximum."""

    def function(x):
        for kind, layer in stack:
            window = {"stride": layer.stride, "padding": layer.padding}
            if kind == "max" and not smooth:
                x = pooling.max_pool(x, layer.kernel, **window)
            elif kind in ("max", "avg"):
                x = pooling.avg_pool(x, layer.kernel, **window)
            else:
                kernel = jnp.ones((layer.kernel, 1, 1))
                y = conv(x, kernel, dilation=layer.dilation, **window)
                x = x + y if kind == "residual" else y
        return x

    return function


def as_torch(stack):
    functional = torch.nn.functional

    def function(x):
        for kind, layer in stack:
            window = {"stride": layer.stride, "padding": layer.padding}
            if kind in ("max", "avg"):
                x = functional.avg_pool1d(x, layer.kernel, **window)
            else:
                kernel = torch.ones(1, 1, layer.kernel)
                y = functional.conv1d(x, kernel, dilation=layer.dilation, **window)
                x = x + y if kind == "residual" else y
        return x

    return function


def footprint(function, size):
    """Returns the first and the last input of each output by torch's Jacobian."""
    jacobian = torch.autograd.functional.jacobian(function, torch.ones(1, 1, size))
    return [extent(row != 0) for row in jacobian.reshape(-1, size).numpy()]


def extent(mask):
    (places,) = np.nonzero(mask)
    return places.min(), places.max()


def interval(field, output):
    first = output * field.stride - field.padding
    return first, first + field.size - 1


SIZE = 60


@few
@given(stacks())
def test_formula_trace_gradient_and_torch_agree(stack):
    field = receptive_field(as_network(stack), input_size=SIZE)
    (traced,) = trace_receptive_fields(as_jax(stack), (1, SIZE, 1))
    assert traced == field
    places = footprint(as_torch(stack), SIZE)
    for i, (first, last) in enumerate(places):
        start, end = interval(field, i)
        assert start <= first <= last <= end
        if 0 <= start <= end < SIZE:
            assert (first, last) == (start, end)
    support = gradient_support(as_jax(stack, smooth=True), (SIZE, 1), samples=1)
    assert extent(support) == places[(len(places) - 1) // 2]


@few
@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_transposed_convolutions_agree_with_torch(kernel, stride, data):
    padding = data.draw(st.integers(0, kernel - 1))
    dilation = data.draw(st.integers(1, 2))
    before = Layer(3, stride=2)
    layers = [before, Layer.transposed(kernel, stride, padding, 0, dilation)]
    field = receptive_field(layers, input_size=SIZE)
    options = {"stride": stride, "padding": padding, "dilation": dilation}

    def ours(x):
        y = conv(x, jnp.ones((3, 1, 1)), stride=2)
        return conv_transpose(y, jnp.ones((kernel, 1, 1)), lowering="xla", **options)

    def torchs(x):
        y = torch.nn.functional.conv1d(x, torch.ones(1, 1, 3), stride=2)
        return torch.nn.functional.conv_transpose1d(
            y, torch.ones(1, 1, kernel), **options
        )

    assert trace_receptive_fields(ours, (1, SIZE, 1)) == (field,)
    jacobian = torch.autograd.functional.jacobian(torchs, torch.ones(1, 1, SIZE))
    rows = jacobian.reshape(-1, SIZE).numpy() != 0
    middle = range(len(rows) // 2 // stride * stride, len(rows))[:stride]
    spans = {i: extent(rows[i]) for i in middle if rows[i].any()}
    assert field.size == max(last - first + 1 for first, last in spans.values())
    centres = [(first + last) / 2 for first, last in spans.values()]
    expected = [field.centre(i) for i in spans]
    np.testing.assert_allclose(np.mean(centres), np.mean(expected))


# Models.


def traced(model, shape=(1, 40, 40, 3)):
    """Returns the receptive fields of a Flax model, without variables."""

    def function(x):
        return model.init_with_output(jax.random.key(0), x)[0]

    return trace_receptive_fields(function, shape)


class Residual(nn.Module):
    """Everything a convolutional network is made of."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Conv(4, (3, 5), stride=2)(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        early = x
        y = SeparableConv(8, 3, dilation=2)(nn.gelu(x))
        x = nn.LayerNorm()(y + nn.Conv(8, (1, 1))(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = jnp.concatenate([pooling.avg_pool(x, 3, stride=1, padding=1), x], -1)
        return nn.Dense(3)(x), {"early": early, "mean": x.mean((1, 2))}


def test_a_flax_model_with_its_endpoints():
    outputs, endpoints = traced(Residual())
    first = Layer((3, 5), 2, "same")
    rest = [
        Branches(Layer(3, padding="same", dilation=2), []),
        Layer(3, 2, "same"),
        Branches(Layer(3, padding=1), []),
    ]
    for dimension in (0, 1):
        where = {"input_size": 40, "dimension": dimension}
        assert outputs[dimension] == receptive_field([first, *rest], **where)
        assert endpoints["early"][dimension] == receptive_field(first, **where)
        assert endpoints["mean"][dimension] == ReceptiveField(40, 0, 0)


def test_the_gradient_of_a_model_with_positive_weights_has_the_traced_support():
    ones = nn.initializers.ones
    model = nn.Sequential(
        [
            Conv(2, 3, stride=2, kernel_init=ones),
            nn.relu,
            lambda x: pooling.max_pool(x, 2),
            Conv(2, (3, 1), dilation=2, kernel_init=ones),
        ]
    )

    def function(x):
        return model.init_with_output(jax.random.key(0), x)[0]

    support = gradient_support(function, (40, 40, 1), samples=64)
    fields = trace_receptive_fields(function, (1, 40, 40, 1))
    for dimension, field in enumerate(fields):
        seen = extent(support.any(1 - dimension))
        assert seen == interval(field, 4)  # The middle of ten outputs.


@pytest.mark.parametrize("lowering", ["auto", "patches"])
def test_the_lowering_of_a_convolution_does_not_matter(lowering):
    layers = [
        Conv(4, 3, stride=2, lowering=lowering),
        Conv(4, 3, dilation=2, groups=2, lowering=lowering),
        DepthwiseConv(3, lowering="shifts" if lowering == "patches" else lowering),
        Conv(2, 1, lowering=lowering),
    ]
    plain = [dataclasses.replace(layer, lowering="xla") for layer in layers]
    assert traced(nn.Sequential(layers)) == traced(nn.Sequential(plain))


def test_causal_and_circular_padding_and_upsampling():
    causal = [Conv(2, 3, padding="causal", dilation=d) for d in (1, 2, 4)]
    (field,) = traced(nn.Sequential(causal), (1, 40, 2))
    assert field == ReceptiveField(15, 1, 14)
    circular = [
        Conv(2, 3, padding="circular"),
        Conv(2, 5, stride=2, padding="circular"),
    ]
    zeros = [Conv(2, 3, padding=1), Conv(2, 5, stride=2, padding=2)]
    assert traced(nn.Sequential(circular)) == traced(nn.Sequential(zeros))
    twice = [lambda x: x.repeat(2, 1).repeat(2, 2), Conv(2, 3)]
    transposed = ConvTranspose(3, 2, stride=2, lowering="xla")
    assert traced(nn.Sequential(twice)) == traced(
        nn.Sequential([transposed, Conv(2, 3)])
    )


@pytest.mark.parametrize(
    "head",
    [
        pooling.global_avg_pool,
        pooling.global_max_pool,
        lambda x: nn.Dense(2)(x.reshape(len(x), -1)),
        nn.GroupNorm(1),
    ],
)
def test_what_reads_all_positions_has_the_whole_input_as_its_field(head):
    fields = traced(nn.Sequential([Conv(2, 3), head]), (1, 12, 16, 3))
    assert fields == (ReceptiveField(12, 0, 0), ReceptiveField(16, 0, 0))


def test_attention_along_one_dimension_sees_all_of_that_one():
    rows = nn.Sequential([Conv(2, 3), nn.MultiHeadDotProductAttention(1)])
    fields = traced(rows, (1, 12, 16, 3))
    assert fields == (ReceptiveField(3, 1, 1), ReceptiveField(16, 0, 0))


def test_cropping_picking_and_turning_move_the_field():
    def function(x):
        x = conv(x, jnp.ones((3, 3, 1, 1)))
        return x[:, 2:-2, ::3], x[:, 4], x[:, ::-1], jnp.zeros(3)

    fields = trace_receptive_fields(function, (1, 20, 20, 1))
    cropped, picked, turned, nothing = fields
    assert cropped == (ReceptiveField(3, 1, -2), ReceptiveField(3, 3, 0))
    assert picked == (ReceptiveField(3, 0, -4), ReceptiveField(3, 1, 0))
    assert turned == (ReceptiveField(3, -1, -17), ReceptiveField(3, 1, 0))
    assert nothing == (ReceptiveField(0, 0, 0),) * 2


# What cannot be told.


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: jnp.sort(x, 1), "the primitive sort of"),
        (lambda x: jnp.cumsum(x, 1), "the primitive cumsum of"),
        (lambda x: x[:, jnp.array([0, 3])], "the primitive gather of"),
        (lambda x: x[:, ::2] + x[:, :10], "strides are 2 and 1"),
        (lambda x: x.reshape(1, 10, 2, 20, 1), "takes the positions apart"),
        (lambda x: x.reshape(1, -1), r"the output \(1, 400\) mixes"),
    ],
)
def test_what_cannot_be_followed_is_named(function, says):
    with pytest.raises(ValueError, match=says):
        trace_receptive_fields(function, (1, 20, 20, 1))


def test_networks_that_are_not_one():
    with pytest.raises(ValueError, match="strides are 1 and 2"):
        receptive_field(Branches([], Layer(1, stride=2)))
    with pytest.raises(ValueError, match="sizes are 20, 18"):
        receptive_field(Branches([], Layer(3)), input_size=20)
    with pytest.raises(ValueError, match="does not fit an input of 4 positions"):
        receptive_field([Layer(3, dilation=2)], input_size=4)
    with pytest.raises(ValueError, match="below 1"):
        receptive_field(Layer(0))


# Effective fields.


def test_the_gradient_at_the_centre_weighs_the_features():
    x = jnp.ones((2, 5, 5, 1))
    kernel = jnp.stack([jnp.zeros((3, 3)), jnp.ones((3, 3))], -1)[:, :, None]

    def function(x):
        return conv(x, kernel)

    def gradient_at(x):
        return centre_gradient(function, x, lambda y: jnp.array([[7.0, 1], [7, -2]]))

    gradient = jax.jit(gradient_at)(x)
    assert set(np.unique(gradient[0])) == {0, 1}
    assert gradient[1].sum() == -18
    assert (gradient[:, 1:4, 1:4] != 0).all()


@pytest.mark.parametrize("sigma", [4.0, 8.0])
def test_the_effective_size_of_a_gaussian(sigma):
    axis = np.arange(-40, 41)
    field = np.exp(-(axis**2 + axis[:, None] ** 2) / (2 * sigma**2))
    disc = math.pi * 2 * sigma**2 * math.log(1 / 0.0455)
    assert abs(effective_size(field) / math.sqrt(disc) - 1) < 0.01


def test_the_effective_size_of_a_box_is_its_side():
    field = np.zeros((20, 20))
    field[3:10, 4:11] = 0.5
    assert effective_size(field) == 7
