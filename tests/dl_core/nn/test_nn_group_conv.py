"""The layers of networks on p4 and p4m: symmetry, parameters, initial scale."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.nn.group_conv import GroupConv, LiftingConv
from dl_core.ops.group_conv import ORDER, group_pool, transform

groups = pytest.mark.parametrize("group", ["p4", "p4m"])


class Network(nn.Module):
    """Two layers with batch normalisation between them."""

    group: str

    @nn.compact
    def __call__(self, x, train):
        x = LiftingConv(3, 3, self.group)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return GroupConv(2, 3, self.group, padding="valid")(x)


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@groups
@pytest.mark.parametrize("train", [True, False])
def test_a_network_with_batch_normalisation_is_equivariant(group, train):
    x = random(0, 2, 7, 7, 1)
    network = Network(group)
    variables = network.init(jax.random.key(1), x, train=False)
    # Else zero biases and statistics would hide where they are added.
    variables = jax.tree.map(
        lambda v: v + 0.1 * jax.random.uniform(jax.random.key(2), v.shape), variables
    )
    assert variables["params"]["LiftingConv_0"]["bias"].shape == (3,)
    assert variables["params"]["BatchNorm_0"]["scale"].shape == (3,)

    @jax.jit
    def apply(x):
        return network.apply(variables, x, train=train, mutable=["batch_stats"])

    y, statistics = apply(x)
    for element in range(ORDER[group]):
        turned, turned_statistics = apply(transform(x, element))
        np.testing.assert_allclose(turned, transform(y, element), atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            turned_statistics,
            statistics,
        )
    invariant = group_pool(turned).max((1, 2))
    np.testing.assert_allclose(invariant, group_pool(y).max((1, 2)), atol=1e-5)


@groups
def test_the_initial_layers_keep_the_variance_of_their_input(group):
    x = random(0, 8, 8, 8, 16)
    lifted, _ = LiftingConv(64, 3, group, padding="valid").init_with_output(
        jax.random.key(1), x
    )
    np.testing.assert_allclose(jnp.var(lifted), 1, atol=0.1)
    x = random(2, 8, 8, 8, ORDER[group], 16)
    y, _ = GroupConv(64, 3, group, padding="valid").init_with_output(
        jax.random.key(3), x
    )
    np.testing.assert_allclose(jnp.var(y), 1, atol=0.1)


def test_what_does_not_fit_is_told():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"\(3, 5, 2, 4\)"):
        LiftingConv(4, (3, 5)).init(key, jnp.zeros((1, 6, 6, 2)))
    with pytest.raises(ValueError, match="is odd"):
        LiftingConv(4, 4).init(key, jnp.zeros((1, 6, 6, 2)))
    layer = GroupConv(4, 3, use_bias=False)
    assert list(layer.init(key, jnp.zeros((1, 6, 6, 4, 2)))["params"]) == ["kernel"]
