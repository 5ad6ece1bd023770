"""The delayed symbol is where it should be, and is seen exactly up to the field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace, to_arrays
from dl_core.errors import UserError
from dl_core.results import Run, Runs
from experiments.sequences import tcn_receptive_field as experiment


@pytest.mark.parametrize("delay", [0, 3, 9])
def test_the_symbol_is_alone_in_weak_noise(delay):
    config = replace(experiment.Config(), {"delay": delay, "length": 10})
    batch = jax.jit(experiment.make_batch)(to_arrays(config), jax.random.key(0))
    inputs, targets = np.asarray(batch["inputs"]), np.asarray(batch["targets"])
    assert inputs.shape == (32, 10, 4)
    assert set(targets) == {0, 1, 2, 3}
    for sequence, target in zip(inputs, targets, strict=True):
        one_hot = [float(symbol == target) for symbol in range(4)]
        assert sequence[-1 - delay].tolist() == one_hot
    noise = np.delete(inputs, 9 - delay, axis=1)
    assert np.abs(noise).max() < 0.15
    np.testing.assert_allclose(noise.std(), 0.02, rtol=0.1)


@pytest.mark.parametrize(("levels", "field"), [(3, 15), (5, 63)])
def test_the_output_depends_on_the_symbol_exactly_within_the_field(levels, field):
    config = replace(experiment.Config(), {"model.levels": levels})
    state = jax.jit(experiment.init)(to_arrays(config), jax.random.key(1))

    def outputs(inputs):
        return experiment.predict(config, state, inputs)

    inputs = jax.random.normal(jax.random.key(2), (8, config.length, config.symbols))
    gradient = jax.jit(jax.grad(lambda x: (outputs(x) ** 2).sum()))(inputs)
    from_the_last = np.abs(gradient).max((0, 2))[::-1]
    assert (from_the_last[:field] > 0).all()
    assert (from_the_last[field:] == 0).all()

    outputs = jax.jit(outputs)
    plain = outputs(inputs)
    changed = [outputs(inputs.at[:, -1 - t].add(1)) for t in (field - 1, field)]
    assert not jnp.array_equal(changed[0], plain)
    assert jnp.array_equal(changed[1], plain)


def test_the_symbol_is_learned_at_the_last_delay_in_sight_and_not_at_the_next():
    def learned(delay):
        config = to_arrays(replace(experiment.Config(), {**changes, "delay": delay}))
        state = init(config, jax.random.key(0))
        for number in range(150):
            key = jax.random.key(number)
            state, _ = step(config, state, make_batch(config, key), key)
        batch = make_test_batch(config, jax.random.key(1_000))
        logits = experiment.predict(config, state, batch["inputs"])
        return (logits.argmax(-1) == batch["targets"]).mean()

    changes = {"model.levels": 2, "length": 8}
    init, step = jax.jit(experiment.init), jax.jit(experiment.train_step)
    make_batch = jax.jit(experiment.make_batch)
    make_test_batch = jax.jit(experiment.make_test_batch)
    assert learned(6) > 0.99
    assert learned(7) < 0.35


def test_a_delay_longer_than_the_sequence_is_refused():
    config = replace(experiment.Config(), {"delay": 128})
    with pytest.raises(UserError, match=r"--config.delay=128: .*128"):
        experiment.data(config, None)


def test_the_longest_delay_bridged_is_found_for_each_seed():
    def run(seed, delay, accuracy):
        result = {"status": "done", "metrics": {"test/accuracy": accuracy}}
        return Run({"seed": seed, "delay": delay, "symbols": 4}, [], result)

    accuracies = {0: (1.0, 0.7, 0.3), 1: (0.9, 0.3, 0.2), 2: (0.2, 0.3, 0.25)}
    runs = Runs(
        run(seed, delay, accuracy)
        for seed, values in accuracies.items()
        for delay, accuracy in zip((6, 7, 8), values, strict=True)
    )
    assert experiment.bridged(runs) == [7, 6, -1]
