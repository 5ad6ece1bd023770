"""Positional encodings against their formulas, and what rotations keep."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.nn import positions


def test_binary_digits_are_the_positions():
    digits = np.asarray(positions.binary(100, 7), int)
    for place, row in enumerate(digits):
        assert int("".join(map(str, row[::-1])), 2) == place
    with pytest.raises(ValueError, match="3 digits tell 8 positions apart, got 9"):
        positions.binary(9, 3)


def test_sinusoids_by_their_formula():
    table = positions.sinusoidal(50, 6)
    for t in (0, 1, 7, 49):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            assert table[t, 2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[t, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)
    with pytest.raises(ValueError, match="must be even, got 5"):
        positions.sinusoidal(3, 5)


def test_rotary_turns_pairs_as_complex_numbers():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8))
    turned = positions.rotary(jnp.asarray(x, jnp.float32), jnp.arange(5))
    pairs = x[..., ::2] + 1j * x[..., 1::2]
    angles = np.arange(5)[:, None] / 10_000 ** (np.arange(4) / 4)
    expected = pairs * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(turned[..., ::2], expected.real, atol=1e-6)
    np.testing.assert_allclose(turned[..., 1::2], expected.imag, atol=1e-6)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = np.random.default_rng(1).standard_normal((2, 1, 1, 1, 8))

    def product(first, second):
        a = positions.rotary(jnp.asarray(q), jnp.array([first]))
        b = positions.rotary(jnp.asarray(k), jnp.array([[second]]))
        return float((a * b).sum())

    assert product(3, 7) == pytest.approx(product(40, 44), abs=1e-5)
    assert product(3, 7) != pytest.approx(product(3, 8), abs=1e-3)


def test_learned_positions():
    layer = positions.Learned(4, 3)
    variables = layer.init(jax.random.key(0), jnp.arange(4))
    table = variables["params"]["table"]
    found = layer.apply(variables, jnp.array([[2], [5]]))
    np.testing.assert_array_equal(found[0, 0], table[2])
    assert np.isnan(found[1]).all()
    with pytest.raises(ValueError, match="4 positions are known, got 5"):
        layer.apply(variables, jnp.arange(5))
