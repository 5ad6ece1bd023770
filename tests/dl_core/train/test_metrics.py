"""Metrics against NumPy: however the examples are split into padded batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.train.metrics import Mean, Percentiles, classification

PERCENTS = (0.0, 15.0, 50.0, 85.0, 100.0)


@st.composite
def padded_batches(draw):
    """Examples, and the same in batches with padding that must not count."""
    shape = draw(st.sampled_from([(), (2,), (2, 3)]))
    seed = draw(st.integers(0, 2**16))
    sizes = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1))
    sizes = [*sizes, (1, 0)]  # At least one example.
    random = np.random.default_rng(seed)
    junk = draw(st.sampled_from([1e6, np.nan, np.inf]))
    batches, examples = [], []
    for real, padding in sizes:
        values = random.normal(size=(real + padding, *shape)).astype(np.float32)
        mask = random.permutation([1.0] * real + [0.0] * padding).astype(np.float32)
        examples.append(values[mask > 0])
        values[mask == 0] = junk
        batches.append((values, mask))
    return np.concatenate(examples), batches


def merged(parts):
    return functools.reduce(lambda a, b: a.merge(b), parts).compute()


@settings(deadline=None, max_examples=25)
@given(padded_batches())
def test_mean_of_any_split(drawn):
    examples, batches = drawn
    with jax.disable_jit():
        found = merged([Mean.of(jnp.asarray(v), jnp.asarray(m)) for v, m in batches])
    np.testing.assert_allclose(found, examples.mean(0), rtol=1e-5, atol=1e-6)
    assert np.shape(found) == examples.shape[1:]


@settings(deadline=None, max_examples=25)
@given(padded_batches())
def test_percentiles_of_any_split(drawn):
    examples, batches = drawn
    parts = [Percentiles(jnp.asarray(v), jnp.asarray(m), PERCENTS) for v, m in batches]
    wanted = np.percentile(examples, PERCENTS, axis=0)
    np.testing.assert_allclose(merged(parts), wanted, rtol=1e-6)
    assert np.shape(merged(parts)) == wanted.shape


def test_they_leave_a_compiled_function():
    @jax.jit
    def evaluate(values, mask):
        return Mean.of(values, mask), Percentiles(values, mask, (50.0,))

    mean, median = evaluate(jnp.array([1.0, 2.0, 6.0, 99.0]), jnp.array([1, 1, 1, 0.0]))
    assert mean.compute() == pytest.approx(3)
    assert median.compute() == pytest.approx([2])


def test_a_mean_of_weights_other_than_one_is_over_the_rows_that_count():
    found = Mean.of(jnp.array([2.0, 4.0]), jnp.array([1.0, 1.0])).merge(
        Mean.of(jnp.array([6.0, 0.0]), jnp.array([1.0, 0.0]))
    )
    assert found.compute() == pytest.approx(4)


def test_millions_of_examples_are_counted_exactly():
    batch = Mean.of(jnp.ones(1 << 20), jnp.ones(1 << 20))
    total = jax.device_get(batch)
    for _ in range(40):
        total = total.merge(jax.device_get(batch))
    assert total.compute() == pytest.approx(1)
    assert float(total.count) == 41 * (1 << 20)


def test_a_classification_is_measured_as_by_torch_without_the_padding():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    labels = rng.integers(4, size=6).astype(np.int32)
    mask = np.array([1, 1, 1, 1, 0, 0], np.float32)
    found = classification(*map(jnp.asarray, (logits, labels, mask)))
    loss = torch.nn.functional.cross_entropy(
        torch.tensor(logits[:4]), torch.tensor(labels[:4]).long()
    )
    np.testing.assert_allclose(found["loss"].compute(), float(loss), rtol=1e-6)
    right = (logits[:4].argmax(1) == labels[:4]).mean()
    np.testing.assert_allclose(found["accuracy"].compute(), right, rtol=1e-6)
