"""Blur against SciPy's, noise by its distribution, cutout by what it cuts."""

import inspect

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from dl_core.ops import augment

blur = jax.jit(augment.gaussian_blur, static_argnames="radius")


def image_of(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(9, 12, 3), (3, 4, 1)])
@pytest.mark.parametrize("sigma", [0.4, 2.5])
def test_blur_is_scipys_also_where_it_is_wider_than_the_image(shape, sigma):
    image = image_of(*shape)
    ours = blur(image, sigma, radius=5)
    theirs = scipy.ndimage.gaussian_filter(
        np.asarray(image, np.float64), sigma, axes=(0, 1), mode="reflect", radius=5
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_blur_of_nothing_changes_nothing():
    image = image_of(5, 6, 2)
    np.testing.assert_array_equal(augment.gaussian_blur(image, 0.0, 3), image)
    np.testing.assert_array_equal(augment.gaussian_blur(image, 2.0, 0), image)


def test_each_image_of_a_batch_has_its_own_blur():
    images, sigmas = image_of(3, 6, 6, 2), jnp.array([0.0, 0.7, 1.9])
    together = jax.jit(jax.vmap(lambda x, s: augment.gaussian_blur(x, s, 4)))
    alone = [
        augment.gaussian_blur(x, s, 4) for x, s in zip(images, sigmas, strict=True)
    ]
    np.testing.assert_allclose(together(images, sigmas), jnp.stack(alone), atol=1e-6)


def test_the_blurs_gradients_are_right():
    jax.test_util.check_grads(
        lambda x, s: blur(jnp.asarray(x), s, radius=2),
        (0.1 + 0.8 * image_of(4, 4, 1), jnp.array(0.8)),
        order=1,
        modes=["rev"],
        eps=1e-2,
        atol=1e-2,
        rtol=1e-2,
    )


def test_random_blurs_lie_in_their_range():
    point = jnp.zeros((25, 25, 1)).at[12, 12].set(1)
    draw = jax.jit(
        jax.vmap(lambda key: augment.random_gaussian_blur(key, point, (0.5, 1.5)))
    )
    blurred = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))[..., 0]
    spread = np.sqrt((blurred.sum(1) * (np.arange(25) - 12) ** 2).sum(-1))
    assert 0.4 < spread.min() < 0.6
    assert 1.4 < spread.max() < 1.6


def test_noise_is_normal_and_a_function_of_the_key():
    image = jnp.full((60, 60, 3), 0.5)
    noisy = augment.gaussian_noise(jax.random.key(0), image, 0.05)
    added = np.asarray(noisy - image).ravel()
    assert scipy.stats.kstest(added / 0.05, "norm").pvalue > 0.01
    again = augment.gaussian_noise(jax.random.key(0), image, 0.05)
    np.testing.assert_array_equal(noisy, again)
    other = augment.gaussian_noise(jax.random.key(1), image, 0.05)
    assert (other != noisy).mean() > 0.99


def test_noise_stays_in_the_range_of_floats_and_bytes():
    white = jnp.full((8, 8, 1), 255, jnp.uint8)
    noisy = augment.gaussian_noise(jax.random.key(0), white, 0.1)
    assert noisy.dtype == jnp.uint8
    assert noisy.max() == 255  # Not wrapped around.
    assert noisy.min() > 100
    black = augment.gaussian_noise(jax.random.key(0), jnp.zeros((8, 8, 1)), 0.1)
    assert black.min() == 0


@pytest.mark.parametrize("length", [0, 1, 4, 5])
def test_cutout_is_one_square_whose_centre_is_any_pixel(length):
    size = (7, 9)
    image = jnp.ones((*size, 2))
    cut = jax.jit(jax.vmap(lambda key: augment.cutout(key, image, length, fill=0.25)))
    cut = np.asarray(cut(jax.random.split(jax.random.key(0), 1_500)))
    found = {values.tobytes() for values in cut}
    expected = set()
    for y in range(size[0]):
        for x in range(size[1]):
            wanted = np.ones((*size, 2), np.float32)
            top, left = y - length // 2, x - length // 2
            wanted[max(top, 0) : top + length, max(left, 0) : left + length] = 0.25
            expected.add(wanted.tobytes())
    assert found == expected


def test_cutout_of_bytes_has_a_fill_a_channel_and_a_traced_length():
    image = jnp.full((4, 4, 3), 200, jnp.uint8)
    fill = jnp.array([1, 2, 3])
    cut = jax.jit(augment.cutout)(jax.random.key(0), image, jnp.array(9), fill)
    np.testing.assert_array_equal(cut, np.broadcast_to([1, 2, 3], (4, 4, 3)))
    assert cut.dtype == jnp.uint8


def test_what_does_not_fit_is_told():
    for function in (augment.gaussian_noise, augment.cutout):
        with pytest.raises(ValueError, match=r"\(2, 4, 4, 1\)"):
            inspect.unwrap(function)(jax.random.key(0), jnp.zeros((2, 4, 4, 1)), 2)
    with pytest.raises(ValueError, match="radius"):
        augment.gaussian_blur(jnp.zeros((4, 4, 1)), 1.0, -1)
