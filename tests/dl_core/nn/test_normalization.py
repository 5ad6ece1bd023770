"""Normalisation layers, Flax's among them, against torch's, step by step."""

import copy
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrizations

from dl_core.nn.conv import Conv, ConvTranspose
from dl_core.nn.group_conv import GroupConv
from dl_core.nn.normalization import BatchNorm, SpectralNorm

few = settings(max_examples=6, deadline=None, derandomize=True)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def to_torch(x):
    """Returns a leaf with channels first."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy()).requires_grad_()


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


@st.composite
def batches(draw):
    """The shape of a batch, a momentum, and which parameters there are."""
    shape = draw(st.lists(st.integers(2, 5), min_size=2, max_size=4))
    return tuple(shape), draw(st.sampled_from([0.0, 0.5, 0.9])), draw(st.booleans())


@few
@given(batches())
def test_batch_norm_is_torchs_over_several_updates(case):
    shape, momentum, affine = case
    layer = BatchNorm(
        momentum, epsilon=1e-3, unbiased=True, use_scale=affine, use_bias=affine
    )
    kind = {2: "1d", 3: "1d", 4: "2d"}[len(shape)]
    other = getattr(torch.nn, f"BatchNorm{kind}")(
        shape[-1], eps=1e-3, momentum=1 - momentum, affine=affine
    )
    variables = layer.init(jax.random.key(0), jnp.zeros(shape), train=True)
    params = {
        name: 1 + noise(n, *value.shape)
        for n, (name, value) in enumerate(variables.get("params", {}).items())
    }
    if affine:
        other.weight.data = torch.tensor(np.asarray(params["scale"]))
        other.bias.data = torch.tensor(np.asarray(params["bias"]))

    @jax.jit
    def train_step(params, statistics, x, cotangent):
        def apply(params, x):
            return layer.apply(
                {"params": params, "batch_stats": statistics},
                x,
                train=True,
                mutable=["batch_stats"],
            )

        y, back, updates = jax.vjp(apply, params, x, has_aux=True)
        return y, back(cotangent), updates["batch_stats"]

    statistics = variables["batch_stats"]
    for step in range(3):
        x = 3 + 2 * noise(10 + step, *shape)
        cotangent = noise(20 + step, *shape)
        other.zero_grad()
        tensor = to_torch(x)
        expected = other(tensor)
        expected.backward(to_torch(cotangent).detach())
        y, (by_params, by_x), statistics = train_step(params, statistics, x, cotangent)
        close(y, from_torch(expected))
        close(by_x, from_torch(tensor.grad))
        close(statistics["mean"], other.running_mean)
        close(statistics["var"], other.running_var)
        if affine:
            close(by_params["scale"], other.weight.grad)
            close(by_params["bias"], other.bias.grad)

    other.eval()
    tensor = to_torch(x)
    expected = other(tensor)
    expected.backward(to_torch(cotangent).detach())
    variables = {"params": params, "batch_stats": statistics}

    @jax.jit
    def evaluate(variables, x, cotangent):
        y, back = jax.vjp(lambda x: layer.apply(variables, x, train=False), x)
        return y, *back(cotangent)

    y, by_x = evaluate(variables, x, cotangent)
    close(y, from_torch(expected))
    close(by_x, from_torch(tensor.grad))


def test_biased_batch_norm_is_flaxs_with_the_same_variables():
    x = 3 + noise(0, 4, 5, 6)
    ours, theirs = BatchNorm(momentum=0.8), nn.BatchNorm(momentum=0.8)
    variables = ours.init(jax.random.key(0), x, train=False)
    other = theirs.init(jax.random.key(0), x, use_running_average=True)
    assert jax.tree.structure(variables) == jax.tree.structure(other)
    for train in (True, False):
        y, updates = ours.apply(variables, x, train=train, mutable=["batch_stats"])
        expected, expected_updates = theirs.apply(
            variables, x, use_running_average=not train, mutable=["batch_stats"]
        )
        close(y, expected)
        jax.tree.map(close, updates, expected_updates)


def test_batch_norm_keeps_its_digits_far_from_zero():
    x = 1000 + noise(0, 64, 3)
    y, _ = BatchNorm().init_with_output(jax.random.key(0), x, train=True)
    expected = torch.nn.functional.batch_norm(
        torch.tensor(np.asarray(x, np.float64)), None, None, training=True
    )
    np.testing.assert_allclose(y, expected, atol=1e-3)


def test_batch_norm_refuses_a_single_value_as_torchs_does():
    layer, x = BatchNorm(), jnp.zeros((1, 3))
    variables = layer.init(jax.random.key(0), x, train=True)
    assert layer.apply(variables, x, train=False).shape == (1, 3)
    with pytest.raises(ValueError, match=r"more than one value .* \(1, 3\)"):
        layer.apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="more than 1 value"):
        torch.nn.BatchNorm1d(3)(torch.zeros(1, 3))


LAYERS = {
    "dense": (nn.Dense(5), torch.nn.Linear(4, 5), (2, 4)),
    "conv": (
        Conv(5, 3, stride=2, padding=1),
        torch.nn.Conv2d(4, 5, 3, stride=2, padding=1),
        (2, 5, 6, 4),
    ),
    "grouped": (
        Conv(6, 3, padding="valid", groups=2),
        torch.nn.Conv2d(4, 6, 3, groups=2),
        (2, 5, 6, 4),
    ),
    "one_dimension": (Conv(5, 2, padding="valid"), torch.nn.Conv1d(4, 5, 2), (2, 6, 4)),
    "transposed": (
        ConvTranspose(5, 4, stride=2, padding=1),
        torch.nn.ConvTranspose2d(4, 5, 4, stride=2, padding=1),
        (2, 3, 4, 4),
    ),
    "transposed_grouped": (
        ConvTranspose(6, 3, stride=2, groups=2),
        torch.nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        (2, 3, 4, 4),
    ),
}
layers = pytest.mark.parametrize("name", LAYERS)


def weight_of(name, kernel):
    """Returns a kernel as torch's weight: "out in *window", or "in out *window"."""
    if name.startswith("transposed"):
        return np.moveaxis(kernel, (-2, -1), (0, 1))
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def kernel_of(name, weight):
    if name.startswith("transposed"):
        return np.moveaxis(weight, (0, 1), (-2, -1))
    return np.moveaxis(weight, (0, 1), (-1, -2))


def out_axis(name):
    """Returns the axis of torch's weight that is the last one of the kernel."""
    return int(name.startswith("transposed"))


def set_weight(name, module, params):
    kernel = np.asarray(params["kernel"])
    module.weight.data = torch.tensor(weight_of(name, kernel).copy())
    module.bias.data = torch.tensor(np.asarray(params["bias"]))


def matrix_of(kernel):
    return np.asarray(kernel).reshape(-1, kernel.shape[-1])


@layers
def test_spectral_norm_is_torchs_step_by_step(name):
    inner, module, shape = copy.deepcopy(LAYERS[name])
    layer, x = SpectralNorm(inner, steps=2), noise(0, *shape)
    variables = jax.jit(functools.partial(layer.init, train=False))(
        jax.random.key(1), x
    )
    params, statistics = variables["params"], variables["batch_stats"]
    set_weight(name, module, params["layer"])
    parametrizations.spectral_norm(module, "weight", 2, dim=out_axis(name))
    theirs = module.parametrizations.weight[0]
    kernel = params["layer"]["kernel"]
    # Torch's matrix has the channels before the window.
    u, v = (np.asarray(statistics["kernel"][name]) for name in "uv")
    v = np.moveaxis(v.reshape(kernel.shape[:-1]), -1, 0)
    theirs._u, theirs._v = torch.tensor(u), torch.tensor(v.flatten())

    @functools.partial(jax.jit, static_argnames="train")
    def both(params, statistics, x, cotangent, train):
        def apply(params, x):
            return layer.apply(
                {"params": params, "batch_stats": statistics},
                x,
                train=train,
                mutable=["batch_stats"],
            )

        y, back, updates = jax.vjp(apply, params, x, has_aux=True)
        return y, back(cotangent), updates["batch_stats"]

    for train in (True, True, True, False):
        module.train(train)
        tensor = to_torch(x)
        expected = module(tensor)
        cotangent = noise(2, *from_torch(expected).shape) / 10
        module.zero_grad()
        expected.backward(to_torch(cotangent).detach())
        before = statistics
        y, (by_params, by_x), statistics = both(params, statistics, x, cotangent, train)
        close(y, from_torch(expected))
        close(by_x, from_torch(tensor.grad))
        original = module.parametrizations.weight.original
        by_kernel = kernel_of(name, original.grad.numpy())
        close(by_params["layer"]["kernel"], by_kernel)
        close(by_params["layer"]["bias"], module.bias.grad)
        close(statistics["kernel"]["u"], theirs._u)
        moved = not np.array_equal(statistics["kernel"]["u"], before["kernel"]["u"])
        assert moved == train
        # A step of the optimiser, the same in both.
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, by_params)
        with torch.no_grad():
            original -= 0.1 * original.grad
            module.bias -= 0.1 * module.bias.grad


@layers
def test_spectral_norm_finds_the_largest_singular_value(name):
    inner, _, shape = LAYERS[name]
    layer, x = SpectralNorm(inner, steps=50), noise(0, *shape)
    variables = jax.jit(functools.partial(layer.init, train=False))(
        jax.random.key(1), x
    )
    kernel = variables["params"]["layer"]["kernel"]

    sigma = np.linalg.norm(matrix_of(kernel), 2)
    divided = {**variables["params"]["layer"], "kernel": kernel / sigma}
    expected = inner.apply({"params": divided}, x)

    @functools.partial(jax.jit, static_argnums=1)
    def apply(variables, train):
        return layer.apply(variables, x, train=train, mutable=["batch_stats"])

    # Before any training it is nearly so.
    np.testing.assert_allclose(apply(variables, False)[0], expected, rtol=0.1)
    for _ in range(4):
        variables = {**variables, **apply(variables, True)[1]}
    close(apply(variables, False)[0], expected)


def test_spectral_norm_reaches_every_kernel_of_a_layer():
    layer = SpectralNorm(nn.Sequential([nn.Dense(3), nn.tanh, nn.Dense(2)]))
    x = noise(0, 2, 4)
    variables = layer.init(jax.random.key(0), x, train=True)
    vectors = jax.tree.map(jnp.shape, variables["batch_stats"])
    assert vectors == {
        "layers_0/kernel": {"u": (3,), "v": (4,)},
        "layers_2/kernel": {"u": (2,), "v": (3,)},
    }
    group = SpectralNorm(GroupConv(2, 3)).init(
        jax.random.key(0), jnp.zeros((1, 5, 5, 4, 3)), train=True
    )
    assert group["batch_stats"]["kernel"]["v"].shape == (3 * 3 * 4 * 3,)


def test_a_kernel_of_zeros_stays_one():
    layer = SpectralNorm(nn.Dense(3, kernel_init=nn.initializers.zeros))
    y, _ = layer.init_with_output(jax.random.key(0), noise(0, 2, 4), train=False)
    np.testing.assert_array_equal(y, np.zeros((2, 3)))


@layers
def test_flaxs_weight_norm_is_torchs(name):
    inner, module, shape = copy.deepcopy(LAYERS[name])
    layer, x = nn.WeightNorm(inner), noise(0, *shape)
    params = jax.jit(layer.init)(jax.random.key(1), x)["params"]
    scale_name = "layer_instance/kernel/scale"
    np.testing.assert_array_equal(params[scale_name], 1)
    set_weight(name, module, params["layer_instance"])
    axis = out_axis(name)
    parametrizations.weight_norm(module, dim=axis)
    originals = module.parametrizations.weight
    scale, direction = originals.original0, originals.original1
    # Torch's scale begins at the norm of the kernel, so that nothing changes.
    norms = np.linalg.norm(matrix_of(params["layer_instance"]["kernel"]), axis=0)
    close(scale.detach().flatten(), norms)
    params = {**params, scale_name: noise(2, *norms.shape)}
    scale.data = torch.tensor(np.asarray(params[scale_name])).reshape(scale.shape)

    tensor = to_torch(x)
    expected = module(tensor)
    cotangent = noise(3, *from_torch(expected).shape)
    expected.backward(to_torch(cotangent).detach())

    @jax.jit
    def value_and_gradients(params, x, cotangent):
        y, back = jax.vjp(lambda p, x: layer.apply({"params": p}, x), params, x)
        return y, back(cotangent)

    y, (by_params, by_x) = value_and_gradients(params, x, cotangent)
    close(y, from_torch(expected))
    close(by_x, from_torch(tensor.grad))
    close(by_params[scale_name], scale.grad.flatten())
    by_kernel = kernel_of(name, direction.grad.numpy())
    close(by_params["layer_instance"]["kernel"], by_kernel)
