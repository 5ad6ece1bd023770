"""Digits as sequences: the pixels, their order, and what networks make of them."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.config import replace, to_arrays
from dl_core.errors import UserError
from dl_core.models.sequence import parameters
from dl_core.ops.cost import parameter_count
from experiments.sequences import sequential_mnist as experiment


def sequences(images, **changes):
    config = replace(experiment.Config(), changes)
    batch = {"image": images, "label": np.zeros(len(images), int)}
    prepare = jax.jit(experiment.to_sequences)
    return np.asarray(prepare(to_arrays(config), batch, None)["inputs"])


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)


@pytest.mark.parametrize("size", [28, 14, 4])
def test_pixels_are_read_row_by_row_pooled_and_normalised(images, size):
    x = torch.tensor(images[..., 0]).float() / 255
    pooled = functional.avg_pool2d(x[:, None], 28 // size)
    expected = (pooled.flatten(1) - 0.1307) / 0.3081
    found = sequences(images, **{"data.size": size})
    assert found.shape == (3, size**2, 1)
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)


def test_the_permuted_task_shuffles_all_images_in_one_way_whatever_the_seed(images):
    plain = sequences(images)
    permuted = sequences(images, permuted=True)
    order = experiment.permutation(14**2)
    np.testing.assert_array_equal(permuted, plain[:, order])
    np.testing.assert_array_equal(permuted, sequences(images, permuted=True, seed=7))


@pytest.mark.parametrize("length", [196, 784])
def test_the_permutation_is_one_and_is_fixed(length):
    order = experiment.permutation(length)
    assert sorted(order) == list(range(length))
    np.testing.assert_array_equal(order, experiment.permutation(length))
    assert (order == np.arange(length)).mean() < 0.05


def test_the_pixels_mean_and_deviation_are_about_those_of_mnist(data_dir):
    config = replace(experiment.Config(), {"data.size": 28})
    batches = experiment.data(config, data_dir).train
    inputs = sequences(batches.resident["image"][:2_000], **{"data.size": 28})
    assert abs(inputs.mean()) < 0.05
    assert abs(inputs.std() - 1) < 0.05


def test_the_networks_have_the_published_size_and_see_every_pixel():
    paper = replace(experiment.Config(), experiment.PRESETS["paper"])
    for config in (experiment.Config(), paper):
        assert config.model.receptive_field >= config.data.size**2
        state = jax.eval_shape(experiment.init, config, jax.random.key(0))
        count = parameter_count(state.params)
        assert count == parameters(config.model, 1, 10)
    assert 65_000 < count < 70_000


def test_the_logits_depend_on_the_first_pixel_and_dropout_acts_in_training_alone():
    config = replace(experiment.Config(), {"model.channels": 8, "model.dropout": 0.5})
    config = to_arrays(config)
    state = jax.jit(experiment.init)(config, jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (4, 196, 1))
    batch = {"inputs": inputs, "label": np.arange(4)}

    def logits(x):
        return experiment.classify(config, state, x)

    gradient = jax.jit(jax.grad(lambda x: (logits(x) ** 2).sum()))(inputs)
    assert (np.abs(gradient).max((0, 2)) > 0).all()
    step = jax.jit(experiment.train_step)
    losses = {
        float(step(config, state, batch, jax.random.key(n))[1]["loss"]) for n in (0, 1)
    }
    assert len(losses) == 2


def test_a_size_that_does_not_divide_the_images_is_refused():
    config = replace(experiment.Config(), {"data.size": 13})
    with pytest.raises(UserError, match=r"--config.data.size=13: .*divisor of 28"):
        experiment.data(config, None)


def test_the_table_names_what_the_sweeps_run():
    for row in experiment.TABLE:
        points = experiment.SWEEPS[row.sweep]
        chosen = [p for p in points if p["permuted"] == row.where["permuted"]]
        assert len({point["seed"] for point in chosen}) == 5
        names = {point.get("model.name", "tcn") for point in chosen}
        assert set(row.published) <= names
