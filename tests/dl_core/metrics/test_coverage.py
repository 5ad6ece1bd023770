"""Modes covered against scipy.stats.entropy, in one go and in batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.metrics.coverage import Coverage, mode_coverage


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 300), modes=st.integers(1, 50))
def test_as_scipy_has_it(seed, n, modes):
    labels = np.random.default_rng(seed).integers(0, modes, n)
    labels = np.minimum(labels, seed % modes)
    found = mode_coverage(labels, modes)
    shares = np.array([(labels == mode).mean() for mode in range(modes)])
    assert found.covered == len(set(labels.tolist()))
    wanted = scipy.stats.entropy(shares, np.full(modes, 1 / modes))
    assert found.kl == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_a_perfect_generator_and_one_that_has_collapsed():
    assert mode_coverage(np.arange(1_000), 1_000) == (
        1_000,
        pytest.approx(0, abs=1e-12),
    )
    assert mode_coverage(np.full(50, 7), 1_000) == (1, pytest.approx(np.log(1_000)))
    labels = np.random.default_rng(0).integers(0, 1_000, 26_000)
    assert mode_coverage(labels, 1_000).kl == pytest.approx(999 / 52_000, rel=0.1)


def test_in_padded_batches_of_a_mapped_function():
    labels = np.random.default_rng(1).integers(0, 5, (2, 21))
    labels[1] = np.minimum(labels[1], 2)
    of = jax.jit(jax.vmap(functools.partial(Coverage.of, modes=5), (0, None)))
    parts = []
    for start in range(0, 21, 8):
        rows = np.minimum(np.arange(start, start + 8), 20)
        mask = jnp.asarray(np.arange(start, start + 8) < 21, jnp.float32)
        parts.append(jax.device_get(of(labels[:, rows], mask)))
    for point in range(2):
        mine = [Coverage(part.counts[point]) for part in parts]
        found = functools.reduce(lambda a, b: a.merge(b), mine).compute()
        covered, kl = mode_coverage(labels[point], 5)
        assert found == {"modes": covered, "modes_kl": pytest.approx(kl)}


def test_what_is_no_mode():
    with pytest.raises(ValueError, match="from 0 to 4, one or more, got 3"):
        mode_coverage(np.array([0, 4, 5]), 5)
    with pytest.raises(ValueError, match="got 0"):
        mode_coverage(np.array([], int), 5)
    counted = Coverage.of(jnp.array([-1, 0, 5]), jnp.ones(3), 5)
    np.testing.assert_array_equal(counted.counts, [1, 0, 0, 0, 0])
