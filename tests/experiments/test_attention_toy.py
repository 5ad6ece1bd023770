"""The shapes experiment: the networks' sizes, what they can see, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace
from dl_core.data import shapes
from dl_core.errors import UserError
from experiments.attention import toy


def config_of(name, preset="smoke", **changes):
    return replace(toy.Config(), {**toy.PRESETS[preset], "model.name": name, **changes})


def count(config):
    state = jax.eval_shape(toy.init, config, jax.random.key(0))
    return sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(state.params))


def test_the_published_networks_have_the_courses_sizes():
    assert count(config_of("convolution", "paper")) == 62_337
    assert count(config_of("attention", "paper")) == 54_081


def test_networks_of_one_size():
    most = count(toy.Config(model=toy.Network(name="convolution")))
    for name in ("attention", "positions"):
        config = toy.Config(model=toy.Network(name=name))
        assert 0.93 * most < count(config) <= most
        assert count(config) == config.model.size(name, config.model.width)


@pytest.mark.parametrize(("name", "far"), [("convolution", False), ("attention", True)])
def test_attention_alone_sees_far(name, far):
    config = config_of(name, **{"model.channels": 16})
    params = toy.init(config, jax.random.key(0)).params
    inputs = jnp.asarray(shapes.read(config.data)["test"]["inputs"][:1])
    seen = jax.grad(lambda x: toy.predict(config, params, x)[0, 50])(inputs)[0]
    assert np.any(seen[40:61])
    assert np.any(seen[:40]) == np.any(seen[61:]) == far


def test_the_error_is_the_mean_square_of_what_counts():
    config = config_of("positions")
    state = toy.init(config, jax.random.key(0))
    test = {k: jnp.asarray(x[:4]) for k, x in shapes.read(config.data)["test"].items()}
    mask = jnp.array([1.0, 1, 1, 0])
    error = toy.eval_step(config, state, {**test, "mask": mask})["error"].compute()
    drawn = np.float64(toy.predict(config, state.params, test["inputs"]))
    squares = (drawn - np.asarray(test["targets"])) ** 2
    assert error == pytest.approx(squares[:3].mean(), rel=1e-5)


def test_sequences_too_long_for_the_digits():
    config = config_of("positions", **{"data.length": 200})
    with pytest.raises(UserError, match=r"--config.data.length=200: 7 binary digits"):
        toy.data(config, None)
