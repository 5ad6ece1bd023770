"""Stacked digits: what a step draws, what is counted, and what is told to users."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace, to_arrays
from dl_core.data import load
from dl_core.data.stacked import MODES, expected_modes
from dl_core.errors import UserError
from experiments.gans import mode_collapse as module


def tiny(**changes):
    return replace(module.Config(), module.PRESETS["smoke"] | changes)


@pytest.fixture(scope="module")
def made(data_dir):
    return module.data(replace(module.Config(), {"data.size": 32}), data_dir)


def batch_of(config, batches, seed=0):
    resident = {name: jnp.asarray(x) for name, x in batches.resident.items()}
    inputs = {"indices": jnp.zeros(batches.batch_size, jnp.int32)}
    return batches.assemble(config, resident, inputs, jax.random.key(seed))


def test_real_stacks_have_about_the_modes_that_uniform_draws_have(made):
    modes = made.evaluation["real"].resident["mode"]
    assert modes.shape == (2_500,)
    found = len(np.unique(modes))
    assert abs(found - expected_modes(2_500)) < 30
    tens = np.bincount(modes // 10 % 10, minlength=10) / len(modes)
    np.testing.assert_allclose(tens, 0.1, atol=0.03)


def test_test_digits_are_read_right(data_dir):
    test = load("mnist_subset", "test", data_dir)
    images = module.to_unit(jnp.asarray(test["image"][:500]), 16)
    read = module.read_digits("mnist_subset", images)
    assert np.mean(np.asarray(read) == test["label"][:500]) > 0.9


def test_a_batch_holds_training_digits_one_a_channel(made, data_dir):
    config = replace(module.Config(), {"data.size": 32})
    digits = load("mnist_subset", "train", data_dir)["image"]
    known = {x.tobytes() for x in np.pad(digits, [(0, 0), (2, 2), (2, 2), (0, 0)])}
    stacks = np.asarray(batch_of(config, made.train)["example"])
    assert stacks.shape == (5 * 64, 32, 32, 3)
    pixels = np.round(127.5 * (stacks + 1)).astype(np.uint8)
    channels = [stack[..., c] for stack in pixels for c in range(3)]
    assert all(channel.tobytes() in known for channel in channels)
    assert len({channel.tobytes() for channel in channels}) > 800


def test_stacks_and_latents_are_drawn_anew(made):
    config = replace(module.Config(), {"data.size": 32})
    first, other = (batch_of(config, made.train, seed) for seed in (1, 2))
    for name, values in first.items():
        assert (values != other[name]).mean() > 0.05


def test_clipping_bounds_every_weight_of_the_critic(data_dir):
    config = tiny(constraint="clipping", critic_steps=2, clip=0.005)
    batches = module.data(config, data_dir).train
    arrays, key = to_arrays(config), jax.random.key(0)
    state = module.init(arrays, key)
    new, losses = jax.jit(module.train_step)(
        arrays, state, batch_of(arrays, batches), key
    )
    assert all(np.isfinite(x) for x in losses.values())
    assert int(new.step) == 1
    largest = max(np.abs(x).max() for x in jax.tree.leaves(new.critic.params))
    assert np.isclose(largest, 0.005)


def test_a_generator_of_one_image_has_collapsed(data_dir):
    config = tiny(samples=40, **{"data.size": 16})
    data, config = module.data(config, data_dir), to_arrays(config)
    state = module.init(config, jax.random.key(0))
    state = state.replace(average=jax.tree.map(jnp.zeros_like, state.average))
    latents = jnp.asarray(data.evaluation["test"].resident["latents"])
    batch = {"latents": latents, "mask": jnp.ones(40)}
    found = module.eval_step(config, state, batch)["coverage"].compute()
    assert found["modes"] == 1
    assert found["modes_kl"] == pytest.approx(np.log(MODES))
    assert found["collapsed"] == 1
    modes = jnp.asarray(data.evaluation["real"].resident["mode"])
    batch = {"mode": modes, "mask": jnp.ones(40)}
    assert module.eval_step(config, state, batch)["coverage"].compute()["modes"] > 30


def test_only_a_critic_without_a_constraint_normalises_batches():
    for constraint, normalises in (("none", True), ("gradient_penalty", False)):
        config = tiny(constraint=constraint, **{"model.batch_norm": True})
        state = module.init(to_arrays(config), jax.random.key(0))
        assert ("batch_stats" in state.critic.collections) == normalises


def test_colour_images_are_refused(data_dir):
    with pytest.raises(UserError, match=r"cifar10: expected grey images"):
        inspect.unwrap(module.data)(tiny(**{"data.name": "cifar10"}), data_dir)
