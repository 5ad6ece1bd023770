"""The receptive-field experiment: its arithmetic, its trace and its gradients agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.ops.receptive_field_tracing import trace_receptive_fields
from experiments.convolution.receptive_field import (
    Model,
    Network,
    effective_fields,
    theory,
)

KINDS = {"plain": 7, "dilated": 3, "strided": 3, "pooled": 3}
SIZES = {"plain": [3, 5, 7, 9, 11, 13, 15], "pooled": [3, 8, 18]}


def images(count=4):
    random = np.random.default_rng(0)
    return jnp.asarray(random.random((count, 28, 28, 1)), jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_theory_is_what_the_network_traces_to(kind):
    model = Model(kind=kind, depth=KINDS[kind], width=2)
    fields = theory(model, 28)
    assert [field.size for field in fields] == SIZES.get(kind, [3, 7, 15])

    def network(x):
        return Network(model).init_with_output(jax.random.key(0), x)[0]

    _, endpoints = trace_receptive_fields(network, (1, 28, 28, 1))
    assert list(endpoints.values()) == [(field, field) for field in fields]


@pytest.mark.parametrize("kind", KINDS)
def test_the_effective_field_lies_inside_the_theoretical_one(kind):
    model = Model(kind=kind, depth=KINDS[kind])
    params = Network(model).init(jax.random.key(1), images(1))["params"]
    found = jax.jit(effective_fields, static_argnums=0)
    seen = found(model, params, images(), jax.random.key(2))
    for field, theirs in zip(theory(model, 28), np.asarray(seen), strict=True):
        first = (28 // field.stride - 1) // 2 * field.stride - field.padding
        outside = np.ones((28, 28), bool)
        outside[first : first + field.size, first : first + field.size] = False
        assert not theirs[outside].any()
        assert theirs[~outside].any()


def test_the_effective_field_is_torchs_gradient():
    model, x, key = Model(kind="plain", depth=2, width=3), images(), jax.random.key(4)
    params = Network(model).init(jax.random.key(3), x)["params"]
    ours = effective_fields(model, params, x, key)
    tensor = torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)
    y = tensor
    for layer in ("Conv_0", "Conv_1"):
        kernel = np.asarray(params[layer]["kernel"]).transpose(3, 2, 0, 1)
        y = torch.nn.functional.conv2d(torch.relu(y), torch.tensor(kernel), padding=1)
    signs = np.asarray(jax.random.rademacher(key, (4, 3), jnp.float32))
    y[:, :, 13, 13].backward(torch.tensor(signs))
    theirs = (tensor.grad**2).mean((0, 1)).numpy()
    np.testing.assert_allclose(ours[1], theirs, atol=1e-6)
