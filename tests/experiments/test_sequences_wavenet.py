"""WaveNet on echoes: its field, its two generators, and how they are timed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace, to_arrays
from dl_core.errors import UserError
from dl_core.nn.streaming import init_stream, step
from experiments.sequences import wavenet


def small(**changes):
    """Returns a config and a state of a small network, its weights doubled."""
    config = replace(
        wavenet.Config(),
        {
            "model.levels": 3,
            "model.channels": 4,
            "model.skip_channels": 5,
            "signal.levels": 16,
            **changes,
        },
    )
    state = jax.jit(wavenet.init)(to_arrays(config), jax.random.key(0))
    return config, state.replace(params=jax.tree.map(lambda x: 2 * x, state.params))


@pytest.mark.parametrize("changes", [{}, {"model.stacks": 2, "model.levels": 2}])
def test_the_receptive_field_is_where_gradients_come_from(changes):
    config, state = small(**changes)
    network, field = config.network, config.network.receptive_field

    def last(x):
        return jnp.sin(network.apply({"params": state.params}, x)[0, -1]).sum()

    gradient = jax.jit(jax.grad(last))(jnp.ones((1, 30, 1)) / 3)[0, :, 0]
    assert field == 2 + config.model.stacks * (2**config.model.levels - 1)
    assert (np.asarray(gradient != 0) == (np.arange(30) >= 30 - field)).all()


def test_a_sample_is_predicted_from_those_before_it_alone():
    config, state = small()
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 16, (1, 30)))
    nats = jax.jit(functools.partial(wavenet.nats, config.network))
    before = nats(state.params, codes)
    after = nats(state.params, codes.at[0, 20].set((codes[0, 20] + 1) % 16))
    np.testing.assert_array_equal(before[0, :20], after[0, :20])
    assert (before[0, 20 : 21 + config.network.receptive_field] != 0).all()
    changed = np.flatnonzero(np.asarray(before != after)[0])
    assert changed.min() == 20
    assert changed.max() <= 20 + config.network.receptive_field


def test_what_is_cached_has_the_logits_of_the_whole_sequence():
    config, state = small()
    network, variables = config.network, {"params": state.params}
    x = jax.random.normal(jax.random.key(1), (2, 30, 1))
    start = init_stream(network, variables, x[:, 0])
    advance = functools.partial(step, network, variables)
    scan = jax.jit(lambda x: jax.lax.scan(advance, start, x)[1])
    found = scan(x.swapaxes(0, 1)).swapaxes(0, 1)
    expected = jax.jit(network.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_both_generators_draw_the_same_samples():
    config, state = small()
    network, key, length = config.network, jax.random.key(5), 25
    codes = wavenet._generate(network, state.params, key, 2, length)
    keys = jax.random.split(key, length)
    # Zeros before the start: a window longer than the field, whose sums they are not.
    sequence = jnp.zeros((2, 1, 1))
    whole = jax.jit(network.apply)
    for t in range(length):
        padded = jnp.pad(sequence, ((0, 0), (0, length - t), (0, 0)))
        logits = whole({"params": state.params}, padded)[:, t]
        new = jax.random.categorical(keys[t], logits)
        np.testing.assert_array_equal(new, codes[:, t])
        x = wavenet.amplitudes(new[:, None], 16)
        sequence = jnp.concatenate([sequence, x], axis=1)
    assert len(np.unique(codes)) > 4
    field = network.receptive_field
    window = sequence[:, -1 - field : -1]
    window = wavenet._next_window(network, state.params, keys[-1], window)
    np.testing.assert_allclose(window, sequence[:, -field:], rtol=1e-6)


def test_generation_is_timed_at_the_end_where_that_is_asked_for():
    config, _ = small(**{"timing.run": True, "timing.cached": 30, "steps": 3})
    assert wavenet.score(config, {"step": np.int32(0)}) == {}
    assert (
        wavenet.score(replace(config, {"timing.run": False}), {"step": np.int32(3)})
        == {}
    )
    found = wavenet.score(config, {"step": np.int32(3)})
    assert found["speedup"] == found["cached"] / found["naive"] > 0


def test_a_sequence_too_short_for_the_echoes_is_refused():
    config = replace(wavenet.Config(), {"signal.length": 200})
    with pytest.raises(UserError, match=r"length=200: expected at least 224"):
        wavenet.data(config, None)
