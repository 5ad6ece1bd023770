"""Ringing noise with echoes against SciPy's filters and Toeplitz solver."""

import functools
import math

import jax
import numpy as np
import pytest
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter

from dl_core.data import echoes
from dl_core.ops import mu_law

SIGNAL = echoes.Signal(length=256, delays=(7, 20))
sound = jax.jit(echoes.sound, static_argnums=(0, 2))


@functools.cache
def simulated(count=400, burn_in=4_000):
    """Returns the signal made sample by sample, by SciPy, with a past of its own."""
    noise = np.random.default_rng(0).normal(size=(count, burn_in + 256))
    denominator = np.append(1, -echoes.recursion(SIGNAL))
    x = lfilter([1], denominator, noise)[:, burn_in:]
    return x * 0.25 / x.std()


def test_the_signal_has_the_autocorrelation_of_its_recursion():
    lags = np.arange(60)
    ours = np.asarray(sound(SIGNAL, jax.random.key(0), 400))
    assert ours.shape == (400, 256)
    np.testing.assert_allclose(ours.std(), 0.25, rtol=0.03)
    found, wanted = (echoes.autocorrelation(x, lags) for x in (ours, simulated()))
    np.testing.assert_allclose(found, wanted, atol=0.06)
    assert (np.abs(ours) > 1).mean() < 1e-3


def test_what_is_left_after_the_recursion_is_white_noise():
    x = np.asarray(sound(SIGNAL, jax.random.key(1), 100), float)
    memory = len(echoes.recursion(SIGNAL))
    left = lfilter(np.append(1, -echoes.recursion(SIGNAL)), [1], x)[:, memory:]
    _, deviation = echoes.best_prediction(SIGNAL, 1_000)
    np.testing.assert_allclose(left.std(), deviation, rtol=0.02)
    correlation = echoes.autocorrelation(left, np.arange(1, 40))
    assert np.abs(correlation).max() < 0.05


@pytest.mark.parametrize("reach", [1, 5, 9, 29, 200])
def test_the_best_prediction_is_that_of_scipy(reach):
    weights, deviation = echoes.best_prediction(SIGNAL, reach)
    h = lfilter([1], np.append(1, -echoes.recursion(SIGNAL)), np.eye(1, 6_000)[0])
    covariance = np.array([h[: len(h) - lag] @ h[lag:] for lag in range(reach + 1)])
    covariance *= 0.25**2 / covariance[0]
    expected = solve_toeplitz(covariance[:-1], covariance[1:])
    np.testing.assert_allclose(weights, expected[: len(weights)], atol=1e-3)
    np.testing.assert_allclose(expected[len(weights) :], 0, atol=1e-3)
    error = math.sqrt(covariance[0] - expected @ covariance[1:])
    np.testing.assert_allclose(deviation, error, rtol=1e-3)


def test_no_other_linear_prediction_needs_fewer_bits():
    x = sound(SIGNAL, jax.random.key(2), 200)
    codes = mu_law.encode(x)
    bits = {r: echoes.least_bits(SIGNAL, r, x, codes).mean() for r in (1, 9, 29, 99)}
    assert bits[1] > bits[9] > bits[29]
    np.testing.assert_allclose(bits[29], bits[99], rtol=1e-6)
    # The entropy of a normal distribution cut into narrow intervals.
    _, deviation = echoes.best_prediction(SIGNAL, 29)
    width = np.log(256) / 255 * 2 / 255 * (1 + 255 * np.abs(x))
    entropy = math.log2(deviation * math.sqrt(2 * math.pi * math.e))
    expected = entropy - np.log2(width)[:, 128:].mean()
    np.testing.assert_allclose(bits[29], expected, atol=0.03)
