"""The adding problem: its sequences and sums by NumPy, its baseline, its networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import leaves, replace
from experiments.sequences import adding


def batch_of(length, count, seed=0):
    config = replace(adding.Config(), {"length": length})
    return jax.tree.map(
        np.asarray, adding.make_batch(config, jax.random.key(seed), count)
    )


def test_two_numbers_are_marked_and_summed():
    batch = batch_of(50, 200)
    assert batch["inputs"].shape == (200, 50, 2)
    assert ((batch["inputs"] >= 0) & (batch["inputs"] <= 1)).all()
    for sequence, target in zip(batch["inputs"], batch["targets"], strict=True):
        numbers, marks = sequence.T
        (marked,) = np.nonzero(marks)
        assert marks[marked].tolist() == [1, 1]
        assert target == pytest.approx(numbers[marked].sum(), abs=1e-6)


def test_every_pair_of_positions_is_as_likely():
    marks = batch_of(5, 20_000)["inputs"][..., 1]
    pairs, counts = np.unique(marks, axis=0, return_counts=True)
    assert len(pairs) == 10
    # Four standard deviations of a count of 20,000 draws at a chance of 1 in 10.
    np.testing.assert_allclose(counts, 2_000, atol=4 * np.sqrt(20_000 * 0.1 * 0.9))


def test_batches_of_different_keys_and_lengths_differ():
    same, other = batch_of(20, 4), batch_of(20, 4, seed=1)
    assert np.array_equal(same["inputs"], batch_of(20, 4)["inputs"])
    assert not np.array_equal(same["targets"], other["targets"])
    assert batch_of(2, 4)["inputs"][..., 1].tolist() == [[1, 1]] * 4


def test_always_saying_one_has_the_error_of_the_baseline():
    errors = (batch_of(30, 50_000)["targets"] - 1) ** 2
    deviation = errors.std() / np.sqrt(len(errors))
    assert errors.mean() == pytest.approx(adding.BASELINE, abs=4 * deviation)


@pytest.mark.parametrize("name", ["tcn", "lstm", "gru", "rnn"])
@pytest.mark.parametrize(("preset", "size"), [("default", 58_051), ("paper", 70_369)])
def test_the_networks_are_of_one_size(name, preset, size):
    changes = {"model.name": name} | adding.PRESETS.get(preset, {})
    config = replace(adding.Config(), changes)
    state = jax.eval_shape(adding.init, config, jax.random.key(0))
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert count == size if name == "tcn" else count == pytest.approx(size, rel=0.01)


def test_the_tcn_sees_the_whole_sequence_at_every_length():
    for point in adding.SWEEPS["lengths"]:
        config = replace(adding.Config(), point)
        assert config.model.receptive_field >= config.length
    paper = leaves(replace(adding.Config(), adding.PRESETS["paper"]))
    last = {k: v for k, v in adding.SWEEPS["lengths"][-1].items() if k != "seed"}
    assert last == {path: paper[path].value for path in last}


def test_evaluation_measures_the_squared_error():
    config = replace(adding.Config(), adding.PRESETS["smoke"])
    state = adding.init(config, jax.random.key(0))
    batch = adding.make_batch(config, jax.random.key(1))
    mask = jnp.array([1.0] * 6 + [0.0] * 2)
    measured = adding.eval_step(config, state, batch | {"mask": mask})["loss"]
    sums = np.asarray(adding.predict(config, state.params, batch["inputs"]))
    expected = np.mean((sums - np.asarray(batch["targets"]))[:6] ** 2)
    assert measured.compute() == pytest.approx(expected, rel=1e-5)
