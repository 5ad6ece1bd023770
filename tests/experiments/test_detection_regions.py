"""A step of Fast and of Faster R-CNN reaches every weight."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace


@pytest.fixture(scope="module")
def batch():
    """Two images with two objects each, and a row of padding."""
    boxes = jnp.array([[2.0, 3, 9, 9], [20, 8, 44, 30], [0, 0, 0, 0]])
    labels = jnp.array([2, 1, -1], jnp.int32)
    one = {
        "image": jax.random.normal(jax.random.key(0), (48, 64, 3)),
        "boxes": boxes,
        "labels": labels,
        "proposals": boxes + 2,
        "proposal_mask": labels >= 0,
    }
    return jax.tree.map(lambda x: jnp.stack([x, x]), one)


@pytest.mark.parametrize("name", ["fast_rcnn", "faster_rcnn"])
def test_a_step_moves_every_weight_and_its_losses_sum_up(name, batch):
    experiment = importlib.import_module(f"experiments.detection.{name}")
    config = replace(experiment.Config(), experiment.PRESETS["smoke"])
    state = jax.jit(experiment.init)(config, jax.random.key(1))
    step = jax.jit(experiment.train_step)
    new, losses = step(config, state, batch, jax.random.key(2))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, new.params)
    still = [
        jax.tree_util.keystr(p) for p, m in jax.tree.leaves_with_path(moved) if not m
    ]
    assert not still
    parts = sum(value for name, value in losses.items() if name != "loss")
    np.testing.assert_allclose(losses["loss"], parts, rtol=1e-5)
