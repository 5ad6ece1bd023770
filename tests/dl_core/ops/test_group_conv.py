"""Group convolution against the paper's sums, e2cnn, and its own symmetry."""

import inspect
import re

import e2cnn.nn
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import torch
from e2cnn import gspaces
from e2cnn.kernels import irreps_basis
from e2cnn.kernels.utils import psichi
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.ops import group_conv as ops

few = settings(max_examples=8, deadline=None, derandomize=True)
groups = pytest.mark.parametrize("group", ["p4", "p4m"])


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def matrices(group):
    """Returns the elements as matrices on (row, column), as the paper writes them."""
    turn, mirror = np.array([[0, -1], [1, 0]]), np.diag([1, -1])
    return [
        np.linalg.matrix_power(turn, r) @ np.linalg.matrix_power(mirror, m)
        for m in range(ops.ORDER[group] // 4)
        for r in range(4)
    ]


def paper(x, kernel, group, stride, padding):
    """Equations 10 (no group axis in `x`) and 11, in float64, sum by sum."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    elements = matrices(group)
    lifting = x.ndim == 4
    pads = [(0, 0), (padding, padding), (padding, padding)] + [(0, 0)] * (x.ndim - 3)
    x, centre = np.pad(x, pads), (kernel.shape[0] - 1) / 2
    # Outputs are where the whole window fits.
    rows, columns = (np.array(x.shape[1:3]) - len(kernel)) // stride + 1
    y = np.zeros((len(x), rows, columns, len(elements), kernel.shape[-1]))
    for n, g in enumerate(elements):
        for row, column in np.ndindex(rows, columns):
            for tap in np.ndindex(kernel.shape[:2]):
                # The element takes the tap, counted from the centre, to here.
                place = np.rint(g @ (np.array(tap) - centre) + centre).astype(int)
                at = place + stride * np.array([row, column])
                pixel = x[:, at[0], at[1]]
                if lifting:
                    y[:, row, column, n] += pixel @ kernel[tap]
                    continue
                for k, h in enumerate(elements):
                    [inner] = [
                        i
                        for i, e in enumerate(elements)
                        if (e == np.linalg.inv(g) @ h).all()
                    ]
                    y[:, row, column, n] += pixel[:, k] @ kernel[tap][inner]
    return y


@st.composite
def layers(draw):
    """A group, a stride, a padding, and the sizes of an input and a kernel."""
    group = draw(st.sampled_from(["p4", "p4m"]))
    size, stride = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, 2))
    height, width = draw(st.integers(4, 6)), draw(st.integers(4, 6))
    return group, size, stride, padding, height, width


@few
@given(layers())
def test_lifting_is_equation_10(layer):
    group, size, stride, padding, height, width = layer
    x, kernel = noise(0, 2, height, width, 2), noise(1, size, size, 2, 3)
    y = ops.lifting_conv(x, kernel, group, stride=stride, padding=padding)
    np.testing.assert_allclose(y, paper(x, kernel, group, stride, padding), atol=1e-5)


@few
@given(layers())
def test_group_convolution_is_equation_11(layer):
    group, size, stride, padding, height, width = layer
    order = ops.ORDER[group]
    x, kernel = noise(0, 1, height, width, order, 2), noise(1, size, size, order, 2, 2)
    y = ops.group_conv(x, kernel, stride=stride, padding=padding)
    expected = paper(x, kernel, group, stride, padding)
    np.testing.assert_allclose(y, expected, atol=2e-5)


def e2cnn_layer(group, size, lifting):
    """Returns a layer of e2cnn, and its filters "size size (group) in group out"."""
    space = {"p4": gspaces.Rot2dOnR2, "p4m": gspaces.FlipRot2dOnR2}[group](4)
    first = space.trivial_repr if lifting else space.regular_repr
    torch.manual_seed(0)
    layer = e2cnn.nn.R2Conv(
        e2cnn.nn.FieldType(space, [first] * 2),
        e2cnn.nn.FieldType(space, [space.regular_repr] * 3),
        kernel_size=size,
        bias=False,
    )
    bank = layer.expand_parameters()[0].detach().numpy()
    order = ops.ORDER[group]
    bank = bank.reshape(3, order, 2, -1, size, size).transpose(4, 5, 3, 2, 1, 0)
    return layer, jnp.asarray(bank[:, :, 0] if lifting else bank)


@groups
@pytest.mark.parametrize("lifting", [True, False])
def test_filters_and_output_are_e2cnns(group, lifting, monkeypatch):
    # Both of its own ask NumPy for what version 2 no longer does.
    monkeypatch.setattr(
        irreps_basis.R2FlipsDiscreteRotationsSolution,
        "__hash__",
        lambda self: hash(self.in_irrep),
    )
    monkeypatch.setattr(
        irreps_basis,
        "psichi",
        lambda *args, gamma, **options: psichi(
            *args, gamma=np.asarray(gamma), **options
        ),
    )
    layer, bank = e2cnn_layer(group, 3, lifting)
    kernel = bank[..., 0, :]  # The filter that the identity leaves as it is.
    ours = ops.lift_kernel(kernel, group) if lifting else ops.group_kernel(kernel)
    np.testing.assert_allclose(ours, bank, atol=1e-6)

    order = ops.ORDER[group]
    x = noise(2, 2, 6, 7, 1 if lifting else order, 2)
    channels = np.asarray(x).transpose(0, 4, 3, 1, 2).reshape(2, -1, 6, 7)
    tensor = e2cnn.nn.GeometricTensor(torch.tensor(channels), layer.in_type)
    expected = layer(tensor).tensor.detach().numpy().reshape(2, 3, order, 4, 5)
    expected = expected.transpose(0, 3, 4, 2, 1)
    if lifting:
        y = ops.lifting_conv(x[:, :, :, 0], kernel, group)
    else:
        y = ops.group_conv(x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@groups
@pytest.mark.parametrize("padding", ["valid", "same", "circular", 2])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_layers_are_equivariant(group, padding, stride, dilation):
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    first, second = noise(0, 3, 3, 2, 3), noise(1, 3, 3, ops.ORDER[group], 3, 2)

    @jax.jit
    def network(x):
        h = jnp.tanh(ops.lifting_conv(x, first, group, **options))
        return ops.group_conv(h, second, padding="same")

    x = noise(2, 1, 9, 9, 2) / 10
    y = network(x)
    for element in range(ops.ORDER[group]):
        turned = network(ops.transform(x, element))
        np.testing.assert_allclose(turned, ops.transform(y, element), atol=1e-5)
    assert np.abs(turned - y).max() > 0.1


def test_strides_break_the_symmetry_where_the_module_says():
    kernel = noise(0, 3, 3, 2, 3)

    def error(size):
        x = noise(1, 1, size, size, 2)
        y, turned = (
            ops.lifting_conv(x, kernel, "p4", stride=2, padding="same")
            for x in (x, ops.transform(x, 1))
        )
        return np.abs(turned - ops.transform(y, 1)).max()

    assert error(9) < 1e-5
    assert error(8) > 0.1


@pytest.mark.parametrize("reduce", ["max", "mean"])
@groups
def test_pooling_over_the_group_turns_with_the_image(group, reduce):
    x = noise(0, 2, 4, 5, ops.ORDER[group], 3)
    y = ops.group_pool(x, reduce=reduce)
    np.testing.assert_allclose(y, getattr(np, reduce)(x, axis=3), atol=1e-6)
    for element in range(ops.ORDER[group]):
        turned = ops.group_pool(ops.transform(x, element), reduce=reduce)
        np.testing.assert_allclose(turned, ops.transform(y, element), atol=1e-6)


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_pooling_over_reflections_leaves_a_feature_map_on_p4(reduce):
    x = noise(0, 2, 4, 5, 8, 3)
    y = ops.mirror_pool(x, reduce=reduce)
    for element in range(4):
        turned = ops.mirror_pool(ops.transform(x, element), reduce=reduce)
        np.testing.assert_allclose(turned, ops.transform(y, element), atol=1e-6)
    reflected = ops.mirror_pool(ops.transform(x, 4), reduce=reduce)
    expected = np.flip(y, 2)[:, :, :, [0, 3, 2, 1]]
    np.testing.assert_allclose(reflected, expected, atol=1e-6)


def test_transforms_compose_as_the_table_says():
    image, features = noise(0, 1, 3, 4, 2), noise(1, 1, 3, 4, 8, 2)
    for x in (image, features):
        for g, h in np.ndindex(8, 8):
            one = ops.transform(x, int(ops.PRODUCT[g, h]))
            np.testing.assert_array_equal(one, ops.transform(ops.transform(x, h), g))
    np.testing.assert_array_equal(
        ops.transform(image, 1)[0, :, :, 0], np.rot90(image[0, :, :, 0])
    )


@groups
def test_gradients(group):
    order = ops.ORDER[group]
    first, second = noise(0, 3, 3, 1, 2), noise(1, 3, 3, order, 2, 2) / order

    @jax.jit
    def network(*arguments):
        x, first, second = map(jnp.asarray, arguments)
        h = jnp.tanh(ops.lifting_conv(x, first, group, padding="same"))
        return ops.group_conv(h, second)

    arguments = noise(2, 1, 4, 4, 1), first, second
    jax.test_util.check_grads(network, arguments, order=1, modes=["rev"], rtol=2e-2)


@pytest.mark.parametrize(
    ("function", "arguments", "told"),
    [
        (ops.lift_kernel, [(3, 5, 2, 4), "p4"], "(3, 5, 2, 4)"),
        (ops.group_kernel, [(3, 5, 4, 2, 4)], "(3, 5, 4, 2, 4)"),
        (ops.group_kernel, [(3, 3, 6, 2, 4)], "(3, 3, 6, 2, 4)"),
        (ops.lifting_conv, [(1, 5, 5, 2), (3, 5, 2, 4), "p4"], "(3, 5, 2, 4)"),
        (ops.lifting_conv, [(1, 5, 5, 3), (3, 3, 2, 4), "p4"], "(1, 5, 5, 3)"),
        (ops.group_conv, [(1, 5, 5, 4, 2), (3, 3, 8, 2, 4)], "(1, 5, 5, 4, 2)"),
        (ops.group_conv, [(1, 5, 5, 4), (3, 3, 4, 2, 4)], "(1, 5, 5, 4)"),
        (ops.group_pool, [(1, 5, 5, 3, 2)], "(1, 5, 5, 3, 2)"),
        (ops.group_pool, [(1, 5, 5, 4)], "(1, 5, 5, 4)"),
        (ops.mirror_pool, [(1, 5, 5, 4, 2)], "(1, 5, 5, 4, 2)"),
        (ops.transform, [(5, 5, 4), 1], "(5, 5, 4)"),
        (ops.transform, [(1, 5, 5, 4, 2), 4], "(1, 5, 5, 4, 2)"),
    ],
)
def test_wrong_shapes_are_told(function, arguments, told):
    arguments = [jnp.zeros(a) if isinstance(a, tuple) else a for a in arguments]
    with pytest.raises(ValueError, match=re.escape(told)):
        inspect.unwrap(function)(*arguments)


def test_even_kernels_are_refused_where_they_cannot_be_centred():
    x, kernel = jnp.zeros((1, 6, 6, 4, 2)), jnp.zeros((2, 2, 4, 2, 2))
    with pytest.raises(ValueError, match=r"the kernel is odd, got \(2, 2, 4, 2, 2\)"):
        ops.group_conv(x, kernel, padding="same")
    assert ops.group_conv(x, kernel).shape == (1, 5, 5, 4, 2)
