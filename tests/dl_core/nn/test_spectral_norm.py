"""Layers divided by their norm as operators on images, against torch's matrices."""

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dl_core.nn.conv import Conv, ConvTranspose, DepthwiseConv, SeparableConv
from dl_core.nn.normalization import SpectralNorm
from dl_core.ops.adversarial import gradient_penalty


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def weight(kernel):
    """Returns a kernel as torch's weight: "out in *window"."""
    return torch.tensor(np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1)).copy())


def transposed(kernel):
    return torch.tensor(np.moveaxis(np.asarray(kernel), (-2, -1), (0, 1)).copy())


# A layer, the shape of a batch, and the layer without its bias in torch.
LAYERS = {
    "dense": (
        nn.Dense(5),
        (2, 4),
        lambda x, p: functional.linear(x, weight(p["kernel"])),
    ),
    "conv": (
        Conv(5, 3),
        (2, 6, 5, 3),
        lambda x, p: functional.conv2d(x, weight(p["kernel"]), padding=1),
    ),
    "strided": (
        Conv(4, 4, stride=2, padding=1, lowering="loop"),
        (2, 8, 8, 3),
        lambda x, p: functional.conv2d(x, weight(p["kernel"]), stride=2, padding=1),
    ),
    "grouped_dilated": (
        Conv(6, 3, padding=2, dilation=2, groups=2),
        (2, 6, 6, 4),
        lambda x, p: functional.conv2d(
            x, weight(p["kernel"]), padding=2, dilation=2, groups=2
        ),
    ),
    "one_dimension": (
        Conv(5, 3, padding="valid"),
        (2, 9, 4),
        lambda x, p: functional.conv1d(x, weight(p["kernel"])),
    ),
    "depthwise": (
        DepthwiseConv(3),
        (2, 6, 6, 4),
        lambda x, p: functional.conv2d(x, weight(p["kernel"]), padding=1, groups=4),
    ),
    "separable": (
        SeparableConv(5, 3),
        (2, 6, 6, 4),
        lambda x, p: functional.conv2d(
            functional.conv2d(x, weight(p["depthwise"]["kernel"]), padding=1, groups=4),
            weight(p["pointwise"]["kernel"]),
        ),
    ),
    "transposed": (
        ConvTranspose(3, 4, stride=2, padding=1),
        (2, 4, 4, 5),
        lambda x, p: functional.conv_transpose2d(
            x, transposed(p["kernel"]), stride=2, padding=1
        ),
    ),
}
layers = pytest.mark.parametrize("name", LAYERS)


def largest_singular_value(function, shape, params):
    """Returns that of the dense matrix of a torch function on one input, by SVD."""
    first = np.moveaxis(np.zeros(shape), -1, 0).shape
    inputs = torch.eye(int(np.prod(first))).reshape(-1, *first)
    return np.linalg.norm(function(inputs, params).flatten(1).numpy(), 2)


def ratio(layer, inner, variables, x):
    """Returns what the layer divides `inner` by, from what both make of `x`."""

    def without_bias(function):
        return function(x) - function(jnp.zeros_like(x))

    params = {"params": variables["params"]["layer"]}
    plain = without_bias(lambda x: inner.apply(params, x))
    divided = without_bias(lambda x: layer.apply(variables, x, train=False))
    norm = jnp.vdot(plain, plain) / jnp.vdot(plain, divided)
    np.testing.assert_allclose(divided * norm, plain, rtol=1e-4, atol=1e-4)
    return norm


def improve(layer, variables, x, times=1):
    """Returns the variables after calls in training that change nothing else."""

    def step(_, variables):
        _, updates = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return {**variables, **updates}

    return jax.jit(lambda variables: jax.lax.fori_loop(0, times, step, variables))(
        variables
    )


@layers
def test_the_layer_is_divided_by_the_norm_of_its_matrix(name):
    inner, shape, in_torch = LAYERS[name]
    layer, x = SpectralNorm(inner, norm="operator", steps=50), noise(0, *shape)
    variables = layer.init(jax.random.key(1), x, train=False)
    assert variables["batch_stats"]["vector"].shape == shape[1:]
    params = variables["params"]["layer"]
    norm = largest_singular_value(in_torch, shape[1:], params)
    # Before any training it is nearly so, and too little.
    assert 0.9 * norm < ratio(layer, inner, variables, x) < 1.0001 * norm
    variables = improve(layer, variables, x, 10)
    found = ratio(layer, inner, variables, x)
    np.testing.assert_allclose(found, norm, rtol=1e-4)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    side=st.integers(4, 7),
    size=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
)
def test_it_is_the_norm_for_the_size_of_the_images(side, size, stride, padding):
    inner = Conv(3, size, stride=stride, padding=padding, use_bias=False)
    layer, x = SpectralNorm(inner, norm="operator", steps=50), noise(0, 1, side, 5, 2)
    variables = layer.init(jax.random.key(2), x, train=False)
    kernel = variables["params"]["layer"]["kernel"]

    def in_torch(x, params):
        return functional.conv2d(
            x, weight(params["kernel"]), stride=stride, padding=padding
        )

    variables = improve(layer, variables, x, 20)
    norm = largest_singular_value(in_torch, x.shape[1:], {"kernel": kernel})
    found = ratio(layer, inner, variables, x)
    np.testing.assert_allclose(found, norm, rtol=1e-4)


def test_the_norm_stays_one_while_the_kernel_learns():
    inner, shape, in_torch = LAYERS["strided"]
    layer, x = SpectralNorm(inner, norm="operator"), noise(0, *shape)
    variables = layer.init(jax.random.key(1), x, train=False)

    @jax.jit
    def step(variables):
        def loss(params):
            y, updates = layer.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean((y - 1) ** 2), updates

        gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient)
        return {"params": params, **updates}

    before = variables["params"]["layer"]["kernel"]
    for _ in range(200):
        variables = step(variables)
    kernel = variables["params"]["layer"]["kernel"]
    assert np.linalg.norm(kernel - before) > 0.1 * np.linalg.norm(before)
    divided = kernel / ratio(layer, inner, variables, x)
    norm = largest_singular_value(in_torch, shape[1:], {"kernel": divided})
    np.testing.assert_allclose(norm, 1, atol=0.01)


def test_the_vector_is_state_saved_restored_and_left_alone_in_evaluation():
    inner, shape, _ = LAYERS["conv"]
    layer, x = SpectralNorm(inner, norm="operator"), noise(0, *shape)
    fresh = layer.init(jax.random.key(1), x, train=False)
    trained = improve(layer, fresh, x, 3)
    assert np.abs(
        trained["batch_stats"]["vector"] - fresh["batch_stats"]["vector"]
    ).max()
    _, updates = layer.apply(trained, x, train=False, mutable=["batch_stats"])
    jax.tree.map(
        np.testing.assert_array_equal, updates["batch_stats"], trained["batch_stats"]
    )
    saved = flax.serialization.to_bytes(trained)
    restored = flax.serialization.from_bytes(fresh, saved)
    for variables in (trained, restored):
        jax.tree.map(
            np.testing.assert_array_equal,
            improve(layer, variables, x),
            improve(layer, trained, x),
        )


@pytest.mark.parametrize("lowering", ["auto", "loop"])
def test_first_and_second_gradients_are_torchs_with_the_vectors_held(lowering):
    inner = Conv(4, 4, stride=2, padding=1, lowering=lowering)
    layer, x, other = (
        SpectralNorm(inner, norm="operator"),
        noise(0, 3, 6, 6, 2),
        noise(1, 3, 6, 6, 2),
    )
    variables = layer.init(jax.random.key(1), x, train=False)
    params, mix = variables["params"], jnp.array([0.2, 0.5, 0.9])

    @jax.jit
    def gradients(params):
        def loss(params, x):
            y = layer.apply({**variables, "params": params}, x, train=False)
            return jnp.sum(y**3)

        def penalty(params):
            def score(x):
                y = layer.apply({**variables, "params": params}, x, train=False)
                return jnp.tanh(y).sum((1, 2, 3))

            return gradient_penalty(score, x, other, mix)

        return jax.grad(loss, (0, 1))(params, x), jax.grad(penalty)(params)

    ((by_params, by_x), by_params_again) = gradients(params)

    def first(x):
        return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())

    w = weight(params["layer"]["kernel"]).requires_grad_()
    bias = torch.tensor(np.asarray(params["layer"]["bias"])).requires_grad_()
    v = first(variables["batch_stats"]["vector"][None])
    with torch.no_grad():
        u = functional.conv2d(v, w, stride=2, padding=1)
        u /= u.norm()

    def divided(x):
        norm = (u * functional.conv2d(v, w, stride=2, padding=1)).sum()
        return functional.conv2d(x, w / norm, bias, stride=2, padding=1)

    def kernel(weight):
        return np.moveaxis(weight.numpy(), (0, 1), (-1, -2))

    tensor = first(x).requires_grad_()
    by_w, by_tensor = torch.autograd.grad((divided(tensor) ** 3).sum(), (w, tensor))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(by_params["layer"]["kernel"], kernel(by_w), **close)
    np.testing.assert_allclose(by_x, np.moveaxis(by_tensor.numpy(), 1, -1), **close)

    share = torch.tensor(np.asarray(mix)).reshape(-1, 1, 1, 1)
    between = (first(x) + share * (first(other) - first(x))).requires_grad_()
    scores = divided(between).tanh().sum()
    (slope,) = torch.autograd.grad(scores, between, create_graph=True)
    penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
    by_w, by_bias = torch.autograd.grad(penalty, (w, bias))
    again = by_params_again["layer"]
    np.testing.assert_allclose(again["kernel"], kernel(by_w), **close)
    np.testing.assert_allclose(again["bias"], by_bias, **close)


def test_in_a_loop_and_vmapped_it_is_what_it_is_alone():
    layer = SpectralNorm(Conv(4, 3, lowering="loop"), norm="operator")
    x = noise(0, 2, 6, 6, 3)

    def step(variables, x):
        def loss(params):
            y, updates = layer.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.tanh(y)), updates

        gradient, updates = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradient)
        return {"params": params, **updates}

    def train(key):
        variables = layer.init(key, x, train=False)
        return jax.lax.scan(
            lambda variables, _: (step(variables, x), None), variables, length=3
        )[0]

    keys = jax.random.split(jax.random.key(3), 2)
    together = jax.jit(jax.vmap(train))(keys)
    for number, key in enumerate(keys):
        alone = layer.init(key, x, train=False)
        for _ in range(3):
            alone = step(alone, x)
        pairs = zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True)
        for stacked, leaf in pairs:
            np.testing.assert_allclose(stacked[number], leaf, rtol=1e-4, atol=1e-5)


def test_a_kernel_of_zeros_stays_one():
    inner = Conv(3, 3, kernel_init=nn.initializers.zeros)
    layer, x = SpectralNorm(inner, norm="operator"), noise(0, 2, 4, 4, 2)
    variables = layer.init(jax.random.key(0), x, train=False)
    gradient = jax.grad(
        lambda params: layer.apply(
            {**variables, "params": params}, x, train=False
        ).sum()
    )(variables["params"])
    assert np.isfinite(gradient["layer"]["kernel"]).all()
    np.testing.assert_array_equal(layer.apply(variables, x, train=False), 0)


def test_what_has_no_norm_as_an_operator_is_refused():
    x = noise(0, 2, 6, 6, 3)
    stack = SpectralNorm(nn.Sequential([nn.Dense(3), nn.tanh]), norm="operator")
    with pytest.raises(ValueError, match=r"got a Sequential on .* \(2, 6, 6, 3\)"):
        stack.init(jax.random.key(0), x, train=False)
    layer = SpectralNorm(Conv(4, 3), norm="operator")
    variables = layer.init(jax.random.key(0), x, train=False)
    with pytest.raises(
        ValueError, match=r"made for .* \(6, 6, 3\), got \(2, 8, 8, 3\)"
    ):
        layer.apply(variables, noise(0, 2, 8, 8, 3), train=False)
