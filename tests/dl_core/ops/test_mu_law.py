"""The µ-law against the formula in double precision, and against counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.ops.mu_law import compress, decode, encode, expand, log_probability

levels_of = pytest.mark.parametrize("levels", [2, 16, 64, 255, 256])


def formula(x, mu):
    return np.sign(x) * np.log(1 + mu * np.abs(x)) / np.log(1 + mu)


def nearest(x, levels):
    """Returns the level nearest to each amplitude on the compressed scale."""
    places = np.linspace(-1, 1, levels)
    return np.abs(formula(x, levels - 1)[:, None] - places).argmin(1)


@pytest.mark.parametrize("mu", [1, 63, 255])
def test_the_curve_is_the_formula_and_expand_its_inverse(mu):
    x = np.concatenate([np.linspace(-1, 1, 999), [1e-7, -1e-7, 0]])
    y = compress(jnp.asarray(x, jnp.float32), mu)
    np.testing.assert_allclose(y, formula(x, mu), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(expand(y, mu), x, rtol=1e-5, atol=1e-9)


@levels_of
def test_every_level_comes_back(levels):
    codes = jnp.arange(levels)
    x = decode(codes, levels)
    np.testing.assert_array_equal(encode(x, levels), codes)
    assert (np.diff(x) > 0).all()
    np.testing.assert_array_equal(x, -x[::-1])
    np.testing.assert_allclose([x[0], x[-1]], [-1, 1], rtol=1e-6)


@levels_of
def test_an_amplitude_goes_to_the_nearest_level(levels):
    x = np.random.default_rng(0).uniform(-1, 1, 2_000) ** 3
    found = np.asarray(encode(jnp.asarray(x, jnp.float32), levels))
    # Rounding may decide where two levels are as near.
    margin = np.abs((formula(x, levels - 1) + 1) / 2 * (levels - 1) % 1 - 0.5)
    clear = margin > 1e-4
    np.testing.assert_array_equal(found[clear], nearest(x, levels)[clear])
    assert (np.diff(found[np.argsort(x)]) >= 0).all()


def test_loud_sounds_go_to_the_last_levels():
    codes = encode(jnp.array([-9.0, -1.0, 1.0, 9.0, jnp.inf]))
    np.testing.assert_array_equal(codes, [0, 0, 255, 255, 255])


def test_the_probabilities_of_all_levels_are_those_of_counting():
    levels, mean, deviation = 32, 0.1, 0.3
    log = log_probability(jnp.arange(levels), jnp.full(levels, mean), deviation, levels)
    found = np.exp(log)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-5)
    x = np.random.default_rng(0).normal(mean, deviation, 200_000)
    codes = encode(jnp.asarray(x, jnp.float32), levels)
    shares = np.bincount(codes, minlength=levels) / len(x)
    np.testing.assert_allclose(found, shares, atol=4e-3)


def test_improbable_levels_have_finite_logarithms_and_gradients():
    codes = jnp.array([0, 128, 255])

    def total(mean):
        return log_probability(codes, mean, 0.01).sum()

    value, gradient = jax.value_and_grad(total)(jnp.array([0.9, -0.5, -0.9]))
    assert np.isfinite(value)
    assert value < -1_000
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("call", [encode, decode])
def test_one_level_is_refused(call):
    x = jnp.zeros(3, jnp.int32 if call is decode else jnp.float32)
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        call(x, 1)
