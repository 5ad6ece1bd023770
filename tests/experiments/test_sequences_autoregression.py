"""Likelihoods are torch's losses; what is known of a digit stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.config import replace, to_arrays
from dl_core.data.digits import first_digits
from dl_core.errors import UserError
from experiments.sequences import autoregression

SMALL = {"model.depth": 1, "model.units": 9, "model.channels": 2, "data.size": 4}


def config_of(**changes):
    return to_arrays(replace(autoregression.Config(), {**SMALL, **changes}))


def bytes_of(count):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "levels"), [("made", 2), ("pixel_cnn", 2), ("gated_pixel_cnn", 256)]
)
def test_the_measured_likelihood_is_torchs_loss(name, levels):
    config = config_of(**{"model.name": name, "data.levels": levels})
    state = jax.jit(autoregression.init)(config, jax.random.key(1))
    images = np.random.default_rng(0).integers(levels, size=(3, 4, 4, 1))
    mask = jnp.array([1.0, 1.0, 0.0])  # The last is padding.
    batch = {"image": jnp.asarray(images), "mask": mask}
    found = jax.jit(autoregression.eval_step)(config, state, batch)
    model = autoregression.make_model(config)
    logits = jax.jit(model.apply)({"params": state.params}, images)[0][:2]
    given = torch.tensor(np.array(logits))
    wanted = torch.tensor(images[:2])
    if levels == 2:
        given, wanted = given.double(), wanted.double()
        nats = functional.binary_cross_entropy_with_logits(
            given, wanted, reduction="sum"
        )
    else:
        nats = functional.cross_entropy(
            given.reshape(-1, levels), wanted.reshape(-1), reduction="sum"
        )
    np.testing.assert_allclose(found["nll"].compute(), nats / 2, rtol=1e-5)
    wanted = nats / 2 / 16 / np.log(2)
    np.testing.assert_allclose(found["bits"].compute(), wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["made", "pixel_cnn"])
def test_completions_keep_the_upper_half_of_each_digit(name):
    config = config_of(**{"model.name": name})
    state = jax.jit(autoregression.init)(config, jax.random.key(1))
    observe = jax.jit(autoregression.observe)
    seen, other = (observe(config, state, jax.random.key(seed)) for seed in (2, 3))
    digits, completions = seen["digits"], seen["completions"]
    assert completions.shape == (2, *digits.shape) == (2, 10, 4, 4, 1)
    for draw in completions:
        np.testing.assert_array_equal(draw[:, :2], digits[:, :2])
        assert (draw[:, 2:] != digits[:, 2:]).any()
    assert (completions[0] != completions[1]).any()
    np.testing.assert_array_equal(digits, other["digits"])
    assert seen["samples"].shape == (20, 4, 4, 1)
    assert (seen["samples"] != other["samples"]).any()
    assert set(np.unique(seen["samples"])) == {0, 1}


def test_binary_images_are_drawn_anew_to_train_on_and_once_to_test_on(data_dir):
    config = config_of()
    data = autoregression.data(config, data_dir)
    batch = {"image": jnp.asarray(bytes_of(500))}
    one, two = (
        autoregression.prepare(config, batch, jax.random.key(seed)) for seed in (0, 1)
    )
    assert set(np.unique(one["image"])) == {0, 1}
    assert (one["image"] != two["image"]).any()
    grey = bytes_of(500).reshape(500, 4, 7, 4, 7).mean((2, 4)) / 255
    drawn = (one["image"] + two["image"])[..., 0] / 2
    # Of 8,000 pixels, two draws each: a standard deviation of 0.004.
    np.testing.assert_allclose((drawn - grey).mean(), 0, atol=0.02)
    test = data.evaluation["test"]
    again = autoregression.data(config_of(), data_dir).evaluation["test"]
    np.testing.assert_array_equal(test.resident["uniform"], again.resident["uniform"])
    inputs = next(test.eval_inputs())
    resident = jax.tree.map(jnp.asarray, test.resident)
    batch = test.assemble(config, resident, inputs, None)
    assert batch["image"].shape == (200, 4, 4, 1)
    wanted = test.resident["uniform"][:200] < (
        test.resident["image"][:200].reshape(200, 4, 7, 4, 7, 1).mean((2, 4)) / 255
    )
    assert (batch["image"] == wanted).mean() > 0.9999  # Rounding may flip a pixel.


def test_eight_bits_are_the_bytes_themselves():
    config = config_of(**{"data.levels": 256, "data.size": 28})
    batch = {"image": jnp.asarray(bytes_of(3))}
    made = autoregression.prepare(config, batch, jax.random.key(0))
    np.testing.assert_array_equal(made["image"], batch["image"])
    digits = jnp.asarray(first_digits())
    levels = autoregression.quantise(digits, jnp.zeros_like(digits), 256)
    np.testing.assert_array_equal(levels, np.round(first_digits() * 255))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"data.size": 5}, "--config.data.size=5: expected a divisor of 28"),
        (
            {"data.levels": 3, "model.name": "made"},
            "--config.data.levels=3: expected 2",
        ),
    ],
)
def test_what_does_not_fit_is_a_users_error(changes, flag, data_dir):
    with pytest.raises(UserError, match=flag):
        autoregression.data(config_of(**changes), data_dir)
