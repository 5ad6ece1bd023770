"""Likelihoods against torch's losses; samples of a Markov chain against its numbers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.ops.autoregression import bits_per_dimension, log_likelihood, sample


def test_the_likelihood_is_torchs_cross_entropy_in_nats():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5, 2)).astype(np.float32) * 5
    bits = rng.integers(2, size=logits.shape)
    wanted = functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(bits, dtype=torch.float32), reduction="none"
    )
    ours, slope = jax.jit(
        jax.value_and_grad(lambda x: log_likelihood(x, jnp.asarray(bits)).sum())
    )(logits)
    np.testing.assert_allclose(ours, -wanted.sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, bits - 1 / (1 + np.exp(-logits)), atol=1e-5)
    # Nearly certain, and right: what is lost is small, but not nothing.
    sure = log_likelihood(jnp.full((1, 1), 14.0), jnp.ones((1, 1), jnp.int32))
    np.testing.assert_allclose(sure, -np.log1p(np.exp(-14.0)), rtol=0.1)
    logits = rng.normal(size=(3, 4, 5, 7)).astype(np.float32)
    values = rng.integers(7, size=(3, 4, 5))
    wanted = functional.cross_entropy(
        torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(values), reduction="none"
    )
    ours = log_likelihood(jnp.asarray(logits), jnp.asarray(values))
    np.testing.assert_allclose(ours, -wanted.sum((1, 2)), rtol=1e-5)
    # All levels as likely: 8 bits a dimension.
    flat = log_likelihood(jnp.zeros((2, 3, 5, 256)), jnp.zeros((2, 3, 5), jnp.int32))
    np.testing.assert_allclose(bits_per_dimension(flat, 15), 8, rtol=1e-6)


def test_samples_of_a_chain_follow_its_transitions_in_either_order():
    """Each value is the one before it with a known probability."""
    stays, count = 0.8, 20_000
    logit = float(np.log(stays / (1 - stays)))

    def forwards(values):
        before = jnp.pad(values[:, :-1], ((0, 0), (1, 0)))
        return jnp.where(before > 0, logit, -logit)

    def backwards(values):
        return forwards(values[:, ::-1])[:, ::-1]

    def share(values):
        return (values[:, 1:] == values[:, :-1]).mean()

    start, key = jnp.zeros((count, 5), jnp.int32), jax.random.key(0)
    drawn = jax.jit(lambda key: sample(forwards, key, start))(key)
    # Of 80,000 transitions: a standard deviation of 0.0014.
    np.testing.assert_allclose(share(drawn), stays, atol=0.006)
    np.testing.assert_allclose(drawn[:, 0].mean(), 1 - stays, atol=0.015)
    order = jnp.arange(5)[::-1]
    drawn = jax.jit(lambda key: sample(backwards, key, start, order=order))(key)
    np.testing.assert_allclose(share(drawn), stays, atol=0.006)
    np.testing.assert_allclose(drawn[:, -1].mean(), 1 - stays, atol=0.015)


def test_logits_that_fit_no_values_are_refused():
    with pytest.raises(ValueError, match=r"logits \(2, 5\) do not fit values \(2, 4\)"):
        inspect.unwrap(log_likelihood)(jnp.zeros((2, 5)), jnp.zeros((2, 4)))
