"""Colours against kornia's, which are torchvision's; PCA against scikit-learn's."""

import functools
import importlib
import inspect
import itertools

import jax
import jax.numpy as jnp
import kornia.color
import kornia.enhance as theirs
import numpy as np
import pytest
import sklearn.decomposition
import torch

from dl_core.ops import augment


@pytest.fixture(autouse=True)
def torchvisions_grey(monkeypatch):
    """kornia's grey is 0.299 red, torchvision's 0.2989."""
    weights = torch.tensor([0.2989, 0.587, 0.114])
    kornias = functools.partial(kornia.color.rgb_to_grayscale, rgb_weights=weights)
    module = importlib.import_module("kornia.enhance.adjust")
    monkeypatch.setattr(module, "rgb_to_grayscale", kornias)


def image_of(seed, *shape):
    image = np.random.default_rng(seed).random(shape or (6, 7, 3), np.float32)
    image[0, 0], image[0, 1], image[0, 2] = 0, 1, 0.5  # Grey has no hue.
    return jnp.asarray(image)


def kornias(name, image, factor):
    x = torch.tensor(np.moveaxis(np.asarray(image), -1, 0)[None])
    y = getattr(theirs, name)(x, factor)
    return np.moveaxis(y.numpy()[0], 0, -1)


ADJUSTMENTS = [
    (augment.adjust_brightness, "adjust_brightness_accumulative"),
    (augment.adjust_contrast, "adjust_contrast_with_mean_subtraction"),
    (augment.adjust_saturation, "adjust_saturation_with_gray_subtraction"),
]


@pytest.mark.parametrize(("ours", "name"), ADJUSTMENTS)
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.9])
def test_blends_are_kornias(ours, name, factor):
    image = image_of(0)
    expected = kornias(name, image, factor)
    np.testing.assert_allclose(ours(image, factor), expected, atol=1e-6)
    gray = image[..., :1]
    if name != "adjust_saturation_with_gray_subtraction":
        expected = kornias(name, gray, factor)
        np.testing.assert_allclose(ours(gray, factor), expected, atol=1e-6)


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 0.07, 0.45])
def test_hue_is_kornias(turns):
    image = image_of(1)
    expected = kornias("adjust_hue", image, 2 * np.pi * turns)
    np.testing.assert_allclose(augment.adjust_hue(image, turns), expected, atol=1e-5)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_all_orders_are_the_adjustments_one_after_another(order):
    image, factors = image_of(2), np.array([1.3, 0.6, 1.5, 0.2], np.float32)
    names = [name for _, name in ADJUSTMENTS]
    expected = image
    for number in order:
        expected = (
            kornias("adjust_hue", expected, 2 * np.pi * float(factors[3]))
            if number == 3
            else kornias(names[number], expected, float(factors[number]))
        )
    ours = adjust(image, jnp.asarray(factors), jnp.array(order))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


adjust = jax.jit(augment.adjust_colors)


def test_nothing_to_adjust_changes_nothing():
    image = image_of(3)
    same = adjust(image, jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2, 3, 1, 0]))
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(augment.color_jitter(jax.random.key(0), image), image)
    levels = (255 * image).astype(jnp.uint8)
    np.testing.assert_array_equal(
        augment.color_jitter(jax.random.key(0), levels), levels
    )


def test_grey_images_have_neither_saturation_nor_hue():
    gray = image_of(4, 5, 5, 1)
    np.testing.assert_array_equal(augment.adjust_saturation(gray, 0.3), gray)
    np.testing.assert_array_equal(augment.adjust_hue(gray, 0.3), gray)


def test_bytes_give_the_nearest_levels_of_what_floats_give():
    levels = np.random.default_rng(5).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    for adjust, factor in (
        (augment.adjust_brightness, 1.4),
        (augment.adjust_contrast, 0.5),
        (augment.adjust_saturation, 1.7),
        (augment.adjust_hue, 0.3),
    ):
        ours = adjust(jnp.asarray(levels), factor)
        exact = adjust(jnp.asarray(levels / np.float32(255)), factor)
        assert ours.dtype == jnp.uint8
        np.testing.assert_allclose(ours, 255 * exact, atol=0.5 + 1e-3)


def test_jitter_draws_the_factors_torchvision_draws():
    image = jnp.full((1, 1, 3), 0.25)
    jitter = jax.jit(
        jax.vmap(lambda key: augment.color_jitter(key, image, brightness=0.4))
    )
    factors = jitter(jax.random.split(jax.random.key(0), 2_000))[:, 0, 0, 0] / 0.25
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4 + 1e-5
    np.testing.assert_allclose(factors.mean(), 1, atol=0.02)


def test_jitter_is_a_function_of_the_key_eager_compiled_or_in_a_batch():
    images = jnp.stack([image_of(i) for i in range(3)])

    def jitter(key, image):
        return augment.color_jitter(
            key, image, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
        )

    keys = jax.random.split(jax.random.key(1), 3)
    batch = jax.jit(jax.vmap(jitter))(keys, images)
    for i in range(3):
        np.testing.assert_allclose(batch[i], jitter(keys[i], images[i]), atol=1e-5)
    assert np.abs(jitter(keys[0], images[0]) - jitter(keys[1], images[0])).max() > 0.01


def test_gradients_are_kornias_and_finite_for_greys():
    image, order = 0.2 + 0.6 * image_of(6), jnp.array([1, 3, 0, 2])
    factors = jnp.array([0.9, 0.8, 1.1, 0.1])
    weights = image_of(7)
    by_image, by_factors = jax.grad(
        lambda x, f: (weights * adjust(x, f, order)).sum(), argnums=(0, 1)
    )(image, factors)
    pixels = torch.tensor(np.moveaxis(np.asarray(image), -1, 0)[None].copy())
    strengths = torch.tensor(np.asarray(factors))
    pixels.requires_grad_(), strengths.requires_grad_()
    y = theirs.adjust_contrast_with_mean_subtraction(pixels, strengths[1:2])
    y = theirs.adjust_hue(y, 2 * np.pi * strengths[3:4])
    y = theirs.adjust_brightness_accumulative(y, strengths[:1])
    y = theirs.adjust_saturation_with_gray_subtraction(y, strengths[2:3])
    (torch.tensor(np.moveaxis(np.asarray(weights), -1, 0).copy()) * y).sum().backward()
    expected = np.moveaxis(pixels.grad.numpy()[0], 0, -1)
    colored = np.ptp(image, axis=-1) > 0  # A grey's hue has no derivative.
    np.testing.assert_allclose(by_image[colored], expected[colored], atol=1e-4)
    np.testing.assert_allclose(by_factors, strengths.grad, rtol=1e-4, atol=1e-4)
    assert np.isfinite(by_image).all()


def test_principal_colors_are_scikit_learns_whatever_the_batches():
    random = np.random.default_rng(0)
    images = random.random((20, 4, 5, 3)) @ random.random((3, 3)) / 3
    colors = augment.principal_colors([images[:7], images[7], images[8:]])
    pca = sklearn.decomposition.PCA().fit(images.reshape(-1, 3))
    np.testing.assert_allclose(colors.variances, pca.explained_variance_, rtol=1e-5)
    alike = np.abs(colors.directions.T @ pca.components_.T)
    np.testing.assert_allclose(alike, np.eye(3), atol=1e-5)
    levels = np.round(255 * images).astype(np.uint8)
    of_bytes = augment.principal_colors(iter([levels]))
    np.testing.assert_allclose(of_bytes.variances, colors.variances, rtol=2e-2)


def test_pca_jitter_adds_one_color_with_the_papers_covariance():
    random = np.random.default_rng(1)
    images = 0.5 + 0.1 * random.standard_normal((50, 8, 3)) @ random.random((3, 3))
    colors = augment.principal_colors([images])
    image = 0.5 + 0.01 * image_of(7)
    jitter = jax.jit(
        jax.vmap(lambda key: augment.pca_jitter(key, image, colors, sigma=0.5))
    )
    added = jitter(jax.random.split(jax.random.key(0), 20_000)) - image
    np.testing.assert_allclose(added, added[:, :1, :1] + 0 * added, atol=1e-6)
    # Σ α_i λ_i p_i has the covariance σ² Σ λ_i² p_i p_iᵀ: that of the pixels, squared.
    covariance = np.cov(images.reshape(-1, 3), rowvar=False)
    expected = 0.25 * covariance @ covariance
    found = np.cov(np.asarray(added)[:, 0, 0].T)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_pca_jitter_of_grey_is_brightness():
    gray = 0.5 + 0.1 * image_of(8, 6, 6, 1)
    colors = augment.principal_colors([np.asarray(gray)])
    assert colors.directions.tolist() == [[1]]
    added = augment.pca_jitter(jax.random.key(0), gray, colors, sigma=10) - gray
    np.testing.assert_allclose(added, added[0, 0, 0] + 0 * added, atol=1e-6)
    assert np.abs(added).max() > 1e-4


def test_what_does_not_fit_is_told():
    contrast = inspect.unwrap(augment.adjust_contrast)
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\)"):
        contrast(jnp.zeros((2, 4, 4, 3)), 0.5)
    with pytest.raises(ValueError, match=r"3 channels .*\(4, 4, 2\)"):
        contrast(jnp.zeros((4, 4, 2)), 0.5)
    with pytest.raises(ValueError, match=r"int32 \(4, 4, 3\)"):
        contrast(jnp.zeros((4, 4, 3), jnp.int32), 0.5)
    colors = augment.principal_colors([np.random.default_rng(0).random((4, 4, 3))])
    with pytest.raises(ValueError, match=r"3 channels .*\(4, 4, 1\)"):
        augment.pca_jitter(jax.random.key(0), jnp.zeros((4, 4, 1)), colors)
    with pytest.raises(ValueError, match="two pixels"):
        augment.principal_colors([])
    with pytest.raises(ValueError, match=r"3 channels .*\(4, 4, 1\)"):
        augment.principal_colors([np.zeros((4, 4, 3)), np.zeros((4, 4, 1))])
