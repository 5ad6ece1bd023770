"""Streaming moments against numpy.cov, however the rows are split and padded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.metrics.moments import Gaussian, Moments, gaussian


def one_shot(rows):
    rows = np.asarray(rows, np.float64)
    return rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))


def streamed(batches):
    parts = [jax.device_get(Moments.of(jnp.asarray(x), m)) for x, m in batches]
    return functools.reduce(lambda a, b: a.merge(b), parts).compute()


def check(found, rows, atol):
    mean, covariance = one_shot(rows)
    assert isinstance(found, Gaussian)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7, atol=atol)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5, atol=atol)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    dims=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1),
    junk=st.sampled_from([1e6, np.nan, np.inf]),
)
def test_any_split_is_one_shot(dims, seed, sizes, junk):
    random = np.random.default_rng(seed)
    batches, rows = [], []
    for real, padding in [*sizes, (2, 1)]:
        x = random.normal(size=(real + padding, dims)).astype(np.float32)
        mask = random.permutation([1.0] * real + [0.0] * padding).astype(np.float32)
        rows.append(x[mask > 0])
        x[mask == 0] = junk
        batches.append((x, jnp.asarray(mask)))
    with jax.disable_jit():
        check(streamed(batches), np.concatenate(rows), 1e-6)


def test_far_from_zero_no_digits_are_lost():
    random = np.random.default_rng(0)
    rows = (1e4 + random.normal(size=(1_024, 3))).astype(np.float32)
    ones = jnp.ones(128)
    found = streamed([(part, ones) for part in np.split(rows, 8)])
    check(found, rows, 1e-6)
    # Of the usual sums in float32 nothing is left.
    naive = (rows.T @ rows - len(rows) * np.outer(rows.mean(0), rows.mean(0))) / 1_023
    assert np.abs(naive - one_shot(rows)[1]).max() > 0.5


def test_merging_is_exact_to_float64():
    random = np.random.default_rng(1)
    parts = [100 + random.normal(size=(n, 4)) for n in (7, 1, 30)]

    def of(rows):
        deviations = rows - rows.mean(0)
        scatter = deviations.T @ deviations
        return Moments(np.float64(len(rows)), rows.mean(0), np.zeros(4), scatter)

    found = functools.reduce(lambda a, b: a.merge(b), map(of, parts)).compute()
    mean, covariance = one_shot(np.concatenate(parts))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-12, atol=1e-14)


def test_batches_whose_means_differ_widely():
    random = np.random.default_rng(2)
    parts = [
        (10.0**power + random.normal(size=(64, 2))).astype(np.float32)
        for power in range(4)
    ]
    check(streamed([(x, jnp.ones(64)) for x in parts]), np.concatenate(parts), 1e-2)


def test_it_leaves_a_compiled_and_mapped_function():
    random = np.random.default_rng(3)
    rows = random.normal(size=(2, 9, 3)).astype(np.float32)
    found = jax.jit(jax.vmap(Moments.of))(rows, jnp.ones((2, 9)))
    for i, part in enumerate(rows):
        check(jax.tree.map(lambda x: x[i], jax.device_get(found)).compute(), part, 1e-6)  # noqa: B023


@pytest.mark.parametrize("dims", [1, 5])
def test_of_rows_at_hand(dims):
    rows = np.random.default_rng(4).normal(size=(6, dims)).astype(np.float32)
    mean, covariance = gaussian(rows)
    assert covariance.shape == (dims, dims)
    np.testing.assert_allclose(mean, one_shot(rows)[0], rtol=1e-12)
    np.testing.assert_allclose(covariance, one_shot(rows)[1], rtol=1e-12)


def test_one_row_has_no_covariance():
    with pytest.raises(ValueError, match="two rows or more, and there are 1"):
        gaussian(np.ones((1, 3)))
    alone = Moments.of(jnp.ones((2, 3)), jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="two rows or more, and there are 1"):
        alone.compute()
