"""Bits a sequence, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.metrics import bits


def test_bits_and_wrong_bits_are_those_of_the_steps_that_count():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 5, 2)) * 3
    targets = random.integers(0, 2, (3, 5, 2)).astype(float)
    weight = np.array([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], float)
    chances = 1 / (1 + np.exp(-logits))
    right = np.where(targets == 1, chances, 1 - chances)
    expected = -(np.log2(right).sum(-1) * weight).sum(-1)
    said = tuple(jnp.asarray(x, jnp.float32) for x in (logits, targets, weight))
    np.testing.assert_allclose(bits.cost(*said), expected, rtol=1e-5)
    wrong = ((right < 0.5).sum(-1) * weight).sum(-1)
    np.testing.assert_array_equal(bits.wrong(*said), wrong)


def test_a_guess_costs_a_bit():
    zeros = jnp.zeros((1, 7, 8))
    assert bits.cost(zeros, zeros, jnp.ones((1, 7)))[0] == pytest.approx(56)
