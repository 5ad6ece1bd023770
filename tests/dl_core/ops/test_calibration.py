"""Calibration against scikit-learn, a plain loop, and simulation."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from dl_core.ops.calibration import (
    CalibratedError,
    CalibrationError,
    calibrated_error,
    expected_calibration_error,
    reliability,
)
from dl_core.train.metrics import Mean

cases = given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 7, 500]),
    bins=st.sampled_from([1, 4, 15]),
)


@functools.partial(jax.jit, static_argnums=2)
def diagram_of(confidence, correct, bins):
    return reliability(confidence, correct, bins).mean(0)


def sample(seed, size):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2, 0.7, size).astype(np.float32)
    return confidence, rng.random(size) < confidence**2


@cases
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_diagram_is_that_of_scikit_learn(seed, size, bins):
    confidence, correct = sample(seed, size)
    diagram = diagram_of(confidence, correct, bins)
    share, predicted, happened = np.asarray(diagram)
    filled = share > 0
    theirs = calibration_curve(correct, confidence, n_bins=bins, strategy="uniform")
    np.testing.assert_allclose(happened[filled] / share[filled], theirs[0], atol=1e-5)
    np.testing.assert_allclose(predicted[filled] / share[filled], theirs[1], atol=1e-5)
    assert np.isclose(share.sum(), 1, atol=1e-5)


@cases
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_error_is_that_of_a_plain_loop(seed, size, bins):
    confidence, correct = sample(seed, size)
    diagram = diagram_of(confidence, correct, bins)
    expected = 0.0
    for low, high in zip(np.arange(bins), np.arange(1, bins + 1), strict=True):
        inside = (confidence > low / bins) & (confidence <= high / bins)
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].mean()
            expected += inside.mean() * abs(gap)
    error = expected_calibration_error(diagram)
    np.testing.assert_allclose(error, expected, atol=1e-5)


def test_a_bin_holds_its_upper_edge():
    edges = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    share = reliability(edges, jnp.ones(5), 4).mean(0)[0]
    np.testing.assert_allclose(share, [0.4, 0.2, 0.2, 0.2])
    theirs = calibration_curve([1] * 5, np.asarray(edges), n_bins=4)[1]
    np.testing.assert_allclose(theirs, [0.125, 0.5, 0.75, 1.0])


def test_batches_merge_and_padding_does_not_count():
    confidence, correct = sample(0, 60)
    whole = reliability(jnp.asarray(confidence), jnp.asarray(correct)).mean(0)
    padded = np.concatenate([confidence, [0.3] * 4]).astype(np.float32)
    parts = reliability(jnp.asarray(padded), jnp.asarray([*correct, *[True] * 4]))
    mask = jnp.asarray([1.0] * 60 + [0.0] * 4)
    merged = Mean.of(parts[:32], mask[:32]).merge(Mean.of(parts[32:], mask[32:]))
    np.testing.assert_allclose(merged.compute(), whole, atol=1e-6)
    for metric, measure in (
        (CalibrationError, expected_calibration_error(whole)),
        (CalibratedError, calibrated_error(whole, 60)),
    ):
        merged = metric.of(parts[:32], mask[:32]).merge(
            metric.of(parts[32:], mask[32:])
        )
        np.testing.assert_allclose(merged.compute(), measure, atol=1e-6)


def test_one_who_is_always_right_and_sure_errs_by_nothing():
    diagram = reliability(jnp.ones(9), jnp.ones(9)).mean(0)
    assert expected_calibration_error(diagram) == 0
    assert calibrated_error(diagram, 9) == 0


@pytest.mark.parametrize("size", [200, 2_000])
def test_a_calibrated_predictor_measures_the_calibrated_error(size):
    rng = np.random.default_rng(0)
    confidence = jnp.asarray(rng.uniform(0.2, 1, size), jnp.float32)
    happened = rng.random((400, size)) < np.asarray(confidence)
    measure = jax.vmap(lambda correct: reliability(confidence, correct).mean(0))
    diagrams = measure(jnp.asarray(happened))
    simulated = expected_calibration_error(diagrams).mean()
    np.testing.assert_allclose(calibrated_error(diagrams[0], size), simulated, rtol=0.1)


def test_shapes_that_differ_are_told():
    plain = inspect.unwrap(reliability)
    with pytest.raises(ValueError, match=r"confidence \(3,\) and correct \(2,\)"):
        plain(jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match="0 bins"):
        plain(jnp.ones(3), jnp.ones(3), 0)
