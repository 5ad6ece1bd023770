"""Gradients by time against products of Jacobians, norms against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.ops.gradient_flow import growth, norm, state_gradients

TIME, SIZE = 6, 4


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_linear_recurrence_gives_powers_of_its_matrix():
    matrix, inputs, weights = noise(0, SIZE, SIZE), noise(1, TIME, SIZE), noise(2, SIZE)
    found = state_gradients(
        lambda h, x: matrix @ h + x, jnp.zeros(SIZE), inputs, lambda h: weights @ h
    )
    for t in range(TIME):
        power = np.linalg.matrix_power(matrix.astype(float), TIME - 1 - t)
        np.testing.assert_allclose(found[t], power.T @ weights, rtol=1e-4, atol=1e-4)


def test_they_are_those_of_going_on_from_the_state():
    kernel, inputs = noise(0, SIZE, SIZE), {"x": noise(1, TIME, SIZE)}

    def step(state, now):
        c, h = state
        c = 0.9 * c + jnp.tanh(kernel @ h + now["x"])
        return c, jnp.sin(c)

    def loss(state):
        return (state[0] * state[1] ** 2).sum()

    start = jnp.zeros(SIZE), jnp.ones(SIZE)
    found = state_gradients(step, start, inputs, loss)
    state = start
    for t in range(TIME):
        state = step(state, {"x": inputs["x"][t]})

        def rest(state, after=t + 1):
            for x in inputs["x"][after:]:
                state = step(state, {"x": x})
            return loss(state)

        for ours, wanted in zip(found, jax.grad(rest)(state), strict=True):
            np.testing.assert_allclose(ours[t], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-35, 1e-22, 1.0, 1e22, 1e35])
def test_norms_neither_underflow_nor_overflow(scale):
    x = noise(0, 3, SIZE) * np.float32(scale)
    wanted = np.linalg.norm(x.astype(np.float64), axis=-1)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, rtol=1e-6)


def test_the_norm_of_nothing_is_0():
    assert norm(jnp.zeros((2, SIZE))).tolist() == [0, 0]


def test_growth_is_the_factor_of_an_exponential():
    distances = np.arange(50)
    assert growth(3 * 0.9**distances) == pytest.approx(0.9)
    assert np.isfinite(growth(np.zeros(50, np.float32)))
