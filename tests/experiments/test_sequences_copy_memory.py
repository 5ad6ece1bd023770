"""Copy memory: its sequences by NumPy, its baseline, its networks and its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace
from experiments.sequences import copy_memory


@pytest.mark.parametrize("delay", [1, 4, 30])
def test_sequences_are_those_of_the_task(delay):
    config = replace(copy_memory.Config(), {"delay": delay})
    batch = copy_memory.make_batch(config, jax.random.key(0), 300)
    inputs, targets = np.asarray(batch["inputs"]), np.asarray(batch["targets"])
    assert inputs.shape == targets.shape == (300, delay + 20)
    assert set(inputs[:, :10].flat) == set(range(1, 9))
    for sequence, target in zip(inputs, targets, strict=True):
        assert sequence[10:].tolist() == [0] * (delay - 1) + [9] * 11
        assert target.tolist() == [0] * (delay + 10) + sequence[:10].tolist()


@pytest.mark.parametrize(
    ("delay", "published"), [(500, 0.0400), (1_000, 0.0204)], ids=str
)
def test_the_baseline_is_the_loss_of_eight_equal_chances(delay, published):
    """Sure of every silence, one in eight for each of the last ten symbols."""
    chances = np.ones(delay + 20)
    chances[-10:] = 1 / 8
    assert copy_memory.baseline(delay) == pytest.approx(-np.log(chances).mean())
    assert copy_memory.baseline(delay) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize("name", ["tcn", "lstm", "gru", "rnn"])
def test_the_networks_have_about_ten_thousand_parameters(name):
    config = replace(copy_memory.Config(), {"model.name": name})
    state = jax.eval_shape(copy_memory.init, config, jax.random.key(0))
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert count == 9_510 if name == "tcn" else count == pytest.approx(9_510, rel=0.02)


def test_the_tcn_sees_the_symbols_at_every_delay():
    for points in copy_memory.SWEEPS.values():
        for preset in ({}, copy_memory.PRESETS["paper"]):
            for point in points:
                config = replace(copy_memory.Config(), preset | point)
                assert config.model.receptive_field >= config.delay + 11


def test_evaluation_measures_all_positions_and_the_last_ten():
    config = replace(copy_memory.Config(), copy_memory.PRESETS["smoke"])
    state = copy_memory.init(config, jax.random.key(0))
    batch = copy_memory.make_batch(config, jax.random.key(1))
    mask = jnp.array([1.0] * 6 + [0.0] * 2)
    metrics = copy_memory.eval_step(config, state, batch | {"mask": mask})

    logits = copy_memory.predict(config, state.params, batch["inputs"])
    logits, targets = np.asarray(logits, np.float64)[:6], batch["targets"][:6]
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(chances, targets[..., None], -1)
    right = (logits.argmax(-1) == targets)[:, -10:]
    assert metrics["loss"].compute() == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
    assert metrics["accuracy"].compute() == pytest.approx(right.mean())
