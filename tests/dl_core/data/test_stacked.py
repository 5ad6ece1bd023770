"""Stacks of digits: channels, modes and what may be expected, against NumPy, SciPy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.data.stacked import (
    CHANNELS,
    MODES,
    StackCoverage,
    draw_stacks,
    expected_modes,
    modes_of,
    split_stacks,
)


def test_stacks_are_digits_drawn_with_equal_chances():
    digits = np.broadcast_to(
        np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 2, 3, 1)
    )
    stacks = np.asarray(draw_stacks(jax.random.key(0), jnp.asarray(digits), 4_000))
    assert stacks.shape == (4_000, 2, 3, CHANNELS)
    chosen = stacks[:, 0, 0]
    np.testing.assert_array_equal(
        stacks, np.broadcast_to(chosen[:, None, None], stacks.shape)
    )
    for channel in chosen.T:
        assert scipy.stats.chisquare(np.bincount(channel, minlength=20)).pvalue > 1e-3
    pairs = scipy.stats.contingency.crosstab(chosen[:, 0], chosen[:, 1]).count
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-3


def test_each_key_draws_other_stacks():
    digits = jnp.arange(200, dtype=jnp.uint8).reshape(200, 1, 1, 1)
    first, same, other = (draw_stacks(jax.random.key(k), digits, 8) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_colour_images_are_refused():
    digits = jnp.zeros((5, 4, 4, 3), jnp.uint8)
    with pytest.raises(ValueError, match=r"grey images, got \(5, 4, 4, 3\)"):
        inspect.unwrap(draw_stacks)(jax.random.key(0), digits, 2)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=st.integers(1, 5), height=st.integers(1, 4), width=st.integers(1, 4))
def test_channels_become_images_in_the_order_of_the_modes_digits(n, height, width):
    random = np.random.default_rng(n)
    stacks = random.uniform(size=(n, height, width, CHANNELS)).astype(np.float32)
    split = split_stacks(jnp.asarray(stacks))
    wanted = [stack[..., [c]] for stack in stacks for c in range(CHANNELS)]
    np.testing.assert_array_equal(split, wanted)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, MODES - 1), min_size=1, max_size=9))
def test_a_mode_is_its_digits_read_as_a_number(modes):
    digits = [int(digit) for mode in modes for digit in f"{mode:03}"]
    np.testing.assert_array_equal(modes_of(jnp.array(digits)), modes)


def test_expected_modes_are_what_uniform_draws_have():
    random = np.random.default_rng(0)
    for samples in (1, 40, 2_500):
        drawn = random.integers(MODES, size=(400, samples))
        found = [len(np.unique(row)) for row in drawn]
        error = 4 * np.std(found) / np.sqrt(len(found)) + 1e-9
        assert abs(np.mean(found) - expected_modes(samples)) <= error
    assert expected_modes(26_000) == pytest.approx(1_000, abs=1e-6)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 3_000), kinds=st.integers(1, MODES), parts=st.integers(1, 4)
)
def test_coverage_of_batches_is_scipys_of_the_whole(samples, kinds, parts):
    random = np.random.default_rng(samples)
    modes = random.permutation(MODES)[random.integers(kinds, size=samples)]
    total = StackCoverage(np.zeros(MODES, np.float32))
    for part in np.array_split(modes, parts):
        padded, mask = np.zeros((2, 3_000))
        padded[: len(part)], mask[: len(part)] = part, 1
        batch = StackCoverage.of(jnp.int32(padded), jnp.float32(mask), MODES)
        total = total.merge(batch)
    found = total.compute()
    counts = np.bincount(modes, minlength=MODES)
    kl = scipy.stats.entropy(counts, np.full(MODES, 1 / MODES))
    assert found["modes"] == len(np.unique(modes))
    assert found["modes_kl"] == pytest.approx(kl, abs=1e-9)
    few = len(np.unique(modes)) < 0.1 * MODES * (1 - (1 - 1 / MODES) ** samples)
    assert found["collapsed"] == few
