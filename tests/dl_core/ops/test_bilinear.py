"""Bilinear pooling against torch, its sketch and its codes against scikit-learn."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import sparse_encode
from sklearn.kernel_approximation import PolynomialCountSketch

from dl_core.ops import bilinear

few = settings(max_examples=8, deadline=None, derandomize=True)


@st.composite
def pairs(draw):
    """Features of two modalities at the same positions: none, a row, or a plane."""
    positions = draw(st.sampled_from([(), (5,), (3, 4)]))
    channels = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    return [normal(random, 2, *positions, count) for count in channels]


def normal(random, *shape):
    return jnp.asarray(random.standard_normal(shape), jnp.float32)


def flat_torch(x):
    """Returns "batch positions channels" that takes gradients."""
    x = np.asarray(x)
    return torch.tensor(x.reshape(len(x), -1, x.shape[-1])).requires_grad_()


def assert_same_with_gradients(ours, inputs, expected, tensors):
    """Compares the value, and the gradients of a random weighting of it."""
    weights = normal(np.random.default_rng(0), *expected.shape)

    @jax.jit
    def compute(inputs, weights):
        value, back = jax.vjp(ours, *inputs)
        return value, back(weights)

    value, gradients = compute(inputs, weights)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-5)
    expected.backward(torch.tensor(np.asarray(weights)))
    for gradient, tensor in zip(gradients, tensors, strict=True):
        wanted = tensor.grad.numpy().reshape(gradient.shape)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


@few
@given(pairs())
def test_bilinear_pool_is_the_mean_outer_product(pair):
    x, y = map(flat_torch, pair)
    expected = torch.bmm(x.transpose(1, 2), y).flatten(1) / x.shape[1]
    assert_same_with_gradients(bilinear.bilinear_pool, pair, expected, (x, y))


def test_with_its_normalisation_it_is_that_of_torch():
    features = normal(np.random.default_rng(0), 2, 4, 3, 5)
    x = flat_torch(features)
    products = torch.bmm(x.transpose(1, 2), x).flatten(1) / x.shape[1]
    roots = products.sign() * products.abs().sqrt()
    expected = torch.nn.functional.normalize(roots)
    assert_same_with_gradients(
        lambda x: bilinear.power_normalize(bilinear.bilinear_pool(x)),
        (features,),
        expected,
        (x,),
    )


def test_signed_sqrt_is_the_root_and_its_gradient_finite():
    x = jnp.asarray([-4.0, -1e-3, -1e-9, 1e-9, 0.25, 9.0])
    expected = np.sign(x) * np.sqrt(np.abs(x))
    np.testing.assert_allclose(bilinear.signed_sqrt(x), expected, rtol=1e-5)
    gradient = jax.vmap(jax.grad(bilinear.signed_sqrt))
    np.testing.assert_allclose(gradient(x), 0.5 / np.abs(expected), rtol=1e-5)

    epsilon = 1e-10
    tiny = jnp.linspace(-epsilon, epsilon, 101)
    error = bilinear.signed_sqrt(tiny) - np.sign(tiny) * np.sqrt(np.abs(tiny))
    assert np.abs(error).max() <= 1.001 * epsilon**0.5 / 4
    np.testing.assert_allclose(gradient(jnp.zeros(1)), epsilon**-0.5, rtol=1e-5)
    assert np.isfinite(gradient(tiny)).all()


@pytest.mark.parametrize("zeros", ["all", "one image", "one channel"])
def test_gradients_are_finite_where_features_are_exactly_zero(zeros):
    x = np.maximum(normal(np.random.default_rng(0), 2, 3, 3, 4), 0)
    x[{"all": ..., "one image": 0, "one channel": (..., 0)}[zeros]] = 0

    def first(x):
        return bilinear.power_normalize(bilinear.bilinear_pool(x))[:, 1].sum()

    value, gradient = jax.value_and_grad(first)(jnp.asarray(x))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_l2_normalize_leaves_a_vector_of_zeros_and_gives_it_no_gradient():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    y, back = jax.vjp(bilinear.l2_normalize, x)
    np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(back(jnp.ones((2, 2)))[0][1], 0)


@few
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 99))
def test_compact_pooling_is_sklearns_polynomial_count_sketch(channels, features, seed):
    reference = PolynomialCountSketch(
        degree=2, n_components=features, random_state=seed
    )
    x = np.random.default_rng(seed).standard_normal((4, channels)).astype(np.float32)
    expected = reference.fit_transform(x)
    sketches = tuple(
        bilinear.CountSketch(
            jnp.asarray(indices, jnp.int32), jnp.asarray(signs, jnp.float32), features
        )
        for indices, signs in zip(reference.indexHash_, reference.bitHash_, strict=True)
    )
    pooled = bilinear.compact_bilinear_pool(jnp.asarray(x), sketches)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-5)
    # Of positions it is the mean.
    pooled = bilinear.compact_bilinear_pool(jnp.asarray(x)[None], sketches)
    np.testing.assert_allclose(pooled[0], expected.mean(0), rtol=1e-5, atol=1e-5)


@few
@given(pairs(), st.integers(2, 9))
def test_compact_pooling_of_two_modalities_is_torchs_with_its_gradients(pair, features):
    keys = jax.random.split(jax.random.key(features))
    sketches = tuple(
        bilinear.CountSketch.random(key, x.shape[-1], features)
        for key, x in zip(keys, pair, strict=True)
    )
    tensors = [flat_torch(x) for x in pair]
    spectra = []
    for sketch, x in zip(sketches, tensors, strict=True):
        sketched = torch.zeros(*x.shape[:2], features).index_add(
            2,
            torch.tensor(np.asarray(sketch.indices)),
            x * torch.tensor(np.asarray(sketch.signs)),
        )
        spectra.append(torch.fft.fft(sketched))
    expected = torch.fft.ifft(spectra[0] * spectra[1]).real.mean(1)
    assert_same_with_gradients(
        lambda x, y: bilinear.compact_bilinear_pool(x, sketches, y),
        pair,
        expected,
        tensors,
    )


def test_sketches_keep_inner_products_in_expectation():
    random = np.random.default_rng(0)
    x, y = normal(random, 2, 6), normal(random, 2, 4)

    def product(key):
        keys = jax.random.split(key)
        sketches = tuple(
            bilinear.CountSketch.random(key, z.shape[-1], 32)
            for key, z in zip(keys, (x, y), strict=True)
        )
        one, other = bilinear.compact_bilinear_pool(x, sketches, y)
        return one @ other

    products = jax.jit(jax.vmap(product))(jax.random.split(jax.random.key(0), 4000))
    one, other = bilinear.bilinear_pool(x, y)
    assert abs(products.mean() - one @ other) < 4 * products.std() / 4000**0.5


@few
@given(pairs(), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0.0, 0.5]))
def test_factorized_is_torchs_bilinear_then_shrunk(pair, features, rank, beta):
    random = np.random.default_rng(features)
    u, v = (normal(random, x.shape[-1], features, rank) for x in pair)
    tensors = [torch.tensor(np.asarray(z)).requires_grad_() for z in (*pair, u, v)]
    weight = torch.einsum("ikr,jkr->kij", tensors[2], tensors[3])
    forms = torch.nn.functional.bilinear(tensors[0], tensors[1], weight)
    expected = torch.nn.functional.softshrink(forms, beta / 2)
    assert_same_with_gradients(
        lambda x, y, u, v: bilinear.factorized_bilinear(x, (u, v), y, beta=beta),
        (*pair, u, v),
        expected,
        tensors,
    )


def test_with_orthonormal_atoms_the_codes_are_the_lasso():
    random = np.random.default_rng(0)
    u = np.linalg.qr(random.standard_normal((5, 5)))[0]
    v = np.linalg.qr(random.standard_normal((4, 4)))[0]
    # All pairs of a column of u and one of v: rank-1 atoms, orthonormal as matrices.
    u, v = np.repeat(u, 4, 1)[:, :12], np.tile(v, 5)[:, :12]
    x, y = random.standard_normal((7, 5)), random.standard_normal((7, 4))
    beta = 0.6

    products = np.einsum("ni,nj->nij", x, y).reshape(7, -1)
    atoms = np.einsum("ik,jk->kij", u, v).reshape(12, -1)
    expected = sparse_encode(products, atoms, algorithm="lasso_cd", alpha=beta / 2)
    x, y, u, v = (jnp.asarray(z, jnp.float32) for z in (x, y, u, v))
    codes = bilinear.factorized_bilinear(x, (u[..., None], v[..., None]), y, beta=beta)
    np.testing.assert_allclose(codes, expected, atol=1e-5)
    assert 0.1 < (expected == 0).mean() < 0.9


def test_mlb_is_the_product_of_two_activations():
    random = np.random.default_rng(0)
    x, y = normal(random, 3, 5), normal(random, 3, 4)
    u, v = normal(random, 5, 6, 1), normal(random, 4, 6, 1)
    fused = bilinear.factorized_bilinear(x, (u, v), y, activation=jnp.tanh)
    expected = np.tanh(x @ u[..., 0]) * np.tanh(y @ v[..., 0])
    np.testing.assert_allclose(fused, expected, atol=1e-5)


def test_one_input_is_both():
    random = np.random.default_rng(0)
    x, factors = normal(random, 2, 3, 4), (normal(random, 4, 5, 2),) * 2
    keys = jax.random.split(jax.random.key(0))
    sketches = tuple(bilinear.CountSketch.random(key, 4, 8) for key in keys)
    for function, arguments in (
        (bilinear.bilinear_pool, ()),
        (bilinear.compact_bilinear_pool, (sketches,)),
        (bilinear.factorized_bilinear, (factors,)),
    ):
        both = function(x, *arguments, x)
        np.testing.assert_array_equal(function(x, *arguments), both)


def test_shapes_that_do_not_fit_are_told_when_traced():
    pool = inspect.unwrap(bilinear.bilinear_pool)
    compact = inspect.unwrap(bilinear.compact_bilinear_pool)
    factorized = inspect.unwrap(bilinear.factorized_bilinear)
    key = jax.random.key(0)
    sketch = bilinear.CountSketch.random(key, 3, 8)
    wider = bilinear.CountSketch.random(key, 3, 16)
    x, y = jnp.zeros((2, 4, 3)), jnp.zeros((2, 5, 3))
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) and \(2, 5, 3\)"):
        pool(x, y)
    with pytest.raises(ValueError, match="8 and 16"):
        compact(x, (sketch, wider))
    with pytest.raises(ValueError, match=r"\(3,\) channels does not fit \(2, 4, 7\)"):
        compact(jnp.zeros((2, 4, 7)), (sketch, sketch))
    with pytest.raises(ValueError, match=r"\(7, 5, 1\).*\(2, 4, 3\)"):
        factorized(x, (jnp.zeros((7, 5, 1)), jnp.zeros((3, 5, 1))))
