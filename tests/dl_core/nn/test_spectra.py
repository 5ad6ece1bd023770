"""Spectra of a network's layers against NumPy's SVD of kernels and of matrices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch.nn import functional

from dl_core.nn.conv import Conv, ConvTranspose, SeparableConv
from dl_core.nn.normalization import BatchNorm, SpectralNorm
from dl_core.nn.spectra import layer_spectra


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


class Network(nn.Module):
    """Layers of all kinds, one applied twice, the order not that of the names."""

    norm: str = "none"

    @nn.compact
    def __call__(self, x, *, train):
        def constrained(layer):
            if self.norm == "none":
                return layer
            divided = SpectralNorm(layer, norm=self.norm, steps=50)
            return lambda x: divided(x, train=train)

        x = constrained(Conv(4, 4, stride=2, padding=1, name="strided"))(x)
        x = nn.relu(BatchNorm()(x, train=train))
        again = constrained(Conv(4, 3, lowering="loop", name="again"))
        x = again(nn.relu(again(x)))
        x = constrained(ConvTranspose(3, 4, stride=2, padding=1, name="grow"))(x)
        return constrained(nn.Dense(2, name="dense"))(x.reshape(len(x), -1))


NAMES = ["strided", "again", "grow", "dense"]
norms = pytest.mark.parametrize("norm", ["none", "kernel", "operator"])


@functools.cache
def start(norm):
    """Returns the network, an input, and variables after some training."""
    network, x = Network(norm), noise(0, 2, 6, 6, 3)

    @jax.jit
    def step(variables):
        _, updates = network.apply(variables, x, train=True, mutable=["batch_stats"])
        return {**variables, **updates}

    variables = jax.jit(lambda key: network.init(key, x, train=False))(
        jax.random.key(0)
    )
    for _ in range(0 if norm == "none" else 4):
        variables = step(variables)
    return network, variables, x


def operators(params):
    """Returns the matrix of each layer's map, made with torch."""

    def weight(name, places):
        kernel = np.moveaxis(np.asarray(params[name]["kernel"]), (-2, -1), places)
        return torch.tensor(kernel.copy())

    def matrix(function, *shape):
        eye = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
        return function(eye).flatten(1).numpy()

    strided, again = weight("strided", (1, 0)), weight("again", (1, 0))
    grow = weight("grow", (0, 1))
    return {
        "strided": matrix(
            lambda x: functional.conv2d(x, strided, stride=2, padding=1), 3, 6, 6
        ),
        "again": matrix(lambda x: functional.conv2d(x, again, padding=1), 4, 3, 3),
        "grow": matrix(
            lambda x: functional.conv_transpose2d(x, grow, stride=2, padding=1), 4, 3, 3
        ),
        "dense": np.asarray(params["dense"]["kernel"]),
    }


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-5)


@norms
def test_spectra_are_those_of_the_matrices_of_the_divided_kernels(norm):
    network, variables, x = start(norm)
    spectra = jax.jit(
        lambda variables: layer_spectra(
            network, variables, x, iterations=300, train=False
        )
    )(variables)
    assert list(spectra) == NAMES
    matrices = operators(variables["params"])
    for name, spectrum in spectra.items():
        kernel = np.asarray(variables["params"][name]["kernel"])
        values = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)
        operator = np.linalg.norm(matrices[name], 2)
        divisor = {"none": 1, "kernel": values[0], "operator": operator}[norm]
        close(spectrum["singular_values"], values / divisor)
        close(spectrum["operator_norm"], operator / divisor)


@norms
def test_it_can_be_traced_and_keeps_the_order(norm):
    network, variables, x = start(norm)

    def observe(variables):
        return layer_spectra(network, variables, x, iterations=20, train=False)

    alone = observe(variables)
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), variables)
    both = jax.jit(jax.vmap(observe))(pair)
    assert list(both) == NAMES
    for name in NAMES:
        jax.tree.map(lambda a, b: close(a[0], b), both[name], alone[name])


def test_one_example_of_the_size_does():
    network, variables, x = start("operator")
    spectra = jax.jit(lambda x: layer_spectra(network, variables, x, train=False))
    jax.tree.map(close, spectra(x[:1]), spectra(x))


def test_the_default_is_as_exact_as_it_says():
    layer, x = Conv(16, 3), jnp.zeros((1, 16, 16, 16))
    variables = layer.init(jax.random.key(0), x)
    kernel = np.moveaxis(np.asarray(variables["params"]["kernel"]), (-2, -1), (1, 0))
    kernel = torch.tensor(kernel.copy())

    def apply(function, x):
        x = torch.tensor(x, dtype=torch.float32).reshape(1, 16, 16, 16)
        return function(x, kernel, padding=1).numpy().ravel()

    operator = scipy.sparse.linalg.LinearOperator(
        (16**3, 16**3),
        matvec=lambda x: apply(functional.conv2d, x),
        rmatvec=lambda x: apply(functional.conv_transpose2d, x),
        dtype=np.float32,
    )
    (expected,) = scipy.sparse.linalg.svds(
        operator, k=1, return_singular_vectors=False, rng=0
    )
    found = float(layer_spectra(layer, variables, x)[""]["operator_norm"])
    assert 0.996 * expected < found < 1.0001 * expected


def test_separable_and_weight_normalised_layers():
    x = noise(0, 2, 6, 6, 3)
    layer = SpectralNorm(SeparableConv(4, 3), norm="operator", steps=100)
    variables = layer.init(jax.random.key(0), x, train=False)
    spectra = layer_spectra(layer, variables, x, train=False)
    assert list(spectra) == ["layer/depthwise", "layer/pointwise"]

    layer = nn.WeightNorm(Conv(4, 3))
    variables = layer.init(jax.random.key(0), x)
    (spectrum,) = layer_spectra(layer, variables, x).values()
    # Each column of the kernel has norm 1.
    close(jnp.sum(spectrum["singular_values"] ** 2), 4)
