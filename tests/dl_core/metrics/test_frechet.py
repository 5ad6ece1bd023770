"""The Fréchet distance against torchmetrics, scipy's matrix root and closed forms."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import _compute_fid

from dl_core.metrics.frechet import FrechetDistance, frechet_distance
from dl_core.metrics.moments import gaussian


def draw(seed, n, dims):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(dims, dims))
    return random.normal(size=(n, dims)) @ mixing + random.normal(size=dims)


def distance(x, y):
    return frechet_distance(*gaussian(x), *gaussian(y))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), dims=st.integers(1, 24))
def test_as_torchmetrics_and_scipy_have_it(seed, dims):
    x, y = draw(seed, 3 * dims + 2, dims), draw(seed + 1, 4 * dims + 2, dims)
    (mean1, cov1), (mean2, cov2) = gaussian(x), gaussian(y)
    found = frechet_distance(mean1, cov1, mean2, cov2)
    theirs = _compute_fid(*map(torch.from_numpy, (mean1, cov1, mean2, cov2)))
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    by_root = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root).real
    assert found == pytest.approx(float(theirs), rel=1e-6)
    assert found == pytest.approx(by_root, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "dims"), [(5, 9, 40), (3, 200, 40), (30, 30, 31)])
def test_fewer_examples_than_dimensions(n, m, dims):
    x, y = draw(0, n, dims), draw(1, m, dims)
    # The nuclear norm of the product of the centred rows needs no root at all.
    products = scipy.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T)
    common = products.sum() / np.sqrt((n - 1) * (m - 1))
    spreads = np.var(x, 0, ddof=1).sum() + np.var(y, 0, ddof=1).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + spreads - 2 * common
    assert distance(x, y) == pytest.approx(wanted, rel=1e-9)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9)


@pytest.mark.parametrize(("n", "dims"), [(100, 8), (5, 40)])
def test_no_distance_from_itself(n, dims):
    x = draw(2, n, dims)
    assert 0 <= distance(x, x) < 1e-10 * np.var(x, axis=0).sum()


def test_commuting_covariances_have_a_closed_form():
    deviations = np.array([[1.0, 2, 0, 3], [2.0, 0, 0, 3]])
    means = np.array([[0.0, 1, 2, 3], [1.0, 1, 0, 3]])
    covariances = [np.diag(d**2) for d in deviations]
    found = frechet_distance(means[0], covariances[0], means[1], covariances[1])
    wanted = ((means[0] - means[1]) ** 2).sum() + (
        (deviations[0] - deviations[1]) ** 2
    ).sum()
    assert found == pytest.approx(wanted, rel=1e-12)


def test_to_a_single_point():
    """A collapsed generator: no covariance at all."""
    x = draw(3, 50, 4)
    collapsed = np.repeat(x[:1], 50, axis=0)
    wanted = ((x.mean(0) - x[0]) ** 2).sum() + np.var(x, axis=0, ddof=1).sum()
    assert distance(x, collapsed) == pytest.approx(wanted, rel=1e-12)


def test_what_is_not_finite_is_told():
    x = draw(4, 9, 3)
    broken = x.copy()
    broken[0, 0] = np.nan
    assert np.isnan(distance(x, broken))
    with np.errstate(invalid="ignore"):
        assert np.isnan(
            frechet_distance(*gaussian(x), np.zeros(3), np.full((3, 3), np.inf))
        )


def test_dimensions_must_agree():
    plain = inspect.unwrap(frechet_distance)
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        plain(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))


def test_streamed_over_padded_batches():
    x, y = (draw(seed, 90, 6).astype(np.float32) for seed in (5, 6))
    parts = []
    for start in range(0, 90, 32):
        rows = np.minimum(np.arange(start, start + 32), 89)
        mask = jnp.asarray(np.arange(start, start + 32) < 90, jnp.float32)
        parts.append(jax.jit(FrechetDistance.of)(x[rows], y[rows], mask))
    found = functools.reduce(lambda a, b: a.merge(b), jax.device_get(parts)).compute()
    assert found == pytest.approx(distance(x, y), rel=1e-5)
