"""OverFeat's sliding network against the network on every crop, and against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.models.detection.overfeat import (
    COARSE,
    FINE,
    Places,
    WindowClassifier,
    WindowNetwork,
    decide,
    slide,
    survey,
)

MODEL = WindowNetwork(width=2, hidden=5, places=2)
NETWORK = WindowClassifier(MODEL, 3)
SIDE = MODEL.window
# Every remainder of the last pooling is met.
SIZES = [(57, 61), (65, 48)]


@functools.cache
def variables():
    images = jnp.zeros((1, SIDE, SIDE, 1))
    return jax.jit(NETWORK.init)(jax.random.key(0), images)


def images_of(size):
    random = np.random.default_rng(0)
    return jnp.asarray(random.uniform(size=(2, *size, 1)), jnp.float32)


def dense(images, fine):
    return slid(variables(), images, fine)


@functools.partial(jax.jit, static_argnames="fine")
def slid(variables, images, fine):
    features = NETWORK.apply(variables, images, method="features")

    def classify(pooled):
        return NETWORK.apply(variables, pooled, method="classify")

    return slide(classify, features, fine=fine)


apply = jax.jit(NETWORK.apply)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [FINE, COARSE])
def test_each_place_is_the_network_on_the_crop_there(size, stride):
    images = images_of(size)
    found = dense(images, stride == FINE)
    rows, columns = ((length - SIDE) // stride + 1 for length in size)
    assert found.shape == (2, rows, columns, 3)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    corners = [(stride * i, stride * j) for i, j in places]
    crops = [images[:, y : y + SIDE, x : x + SIDE] for y, x in corners]
    expected = apply(variables(), jnp.concatenate(crops))
    expected = expected.reshape(rows, columns, 2, 3)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1, 3), atol=1e-5)


def test_the_fine_map_is_coarse_maps_of_shifted_images():
    images = images_of(SIZES[0])
    stitched = np.full(dense(images, True).shape, np.nan, np.float32)
    for y in range(3):
        for x in range(3):
            shifted = images[:, FINE * y :, FINE * x :]
            stitched[:, y::3, x::3] = dense(shifted, False)
    np.testing.assert_allclose(dense(images, True), stitched, atol=1e-5)


def test_the_fine_map_is_torchs_with_dilated_layers():
    images, params = images_of(SIZES[1]), variables()["params"]

    def conv(x, layer, **more):
        kernel = torch.tensor(np.asarray(layer["kernel"]).transpose(3, 2, 0, 1))
        bias = torch.tensor(np.asarray(layer["bias"]))
        return functional.conv2d(x, kernel, bias, **more)

    x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    for number in range(3):
        x = conv(x, params[f"layers_{number}"]).relu()
        x = functional.max_pool2d(x, 2) if number < 2 else x
    x = functional.max_pool2d(x, 3, stride=1)
    x = conv(x, params["head"]["Conv_0"], dilation=3).relu()
    expected = conv(x, params["head"]["Conv_1"]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(dense(images, True), expected, atol=1e-5)


def test_a_survey_says_where_its_windows_are():
    # What is said: the mean of a window's four middle pixels, and the window as a box.
    def say(x):
        rows, columns = ((length - SIDE) // FINE + 1 for length in x.shape[1:3])
        half = SIDE // 2
        middle = functional.avg_pool2d(
            torch.tensor(np.asarray(x[:, half - 1 :, half - 1 :, 0])), 2, FINE
        )
        middle = jnp.asarray(middle.numpy())[:, :rows, :columns]
        logits = jnp.stack([middle, jnp.zeros_like(middle)], axis=-1)
        return logits, jnp.broadcast_to(jnp.array([0.0, 0, 1, 1]), (*middle.shape, 4))

    images = jnp.zeros((1, 48, 64, 1)).at[0, 30:40, 20:30].set(9.0)
    places = survey(say, images, SIDE, 1.5)
    np.testing.assert_allclose(places.boxes[0], places.windows, atol=1e-4)
    sizes = places.windows[..., 2:] - places.windows[..., :2]
    np.testing.assert_allclose(sizes, SIDE / 1.5, atol=1e-4)
    middles = np.asarray(places.windows[..., :2] + places.windows[..., 2:]) / 2
    bright = np.asarray(places.probabilities[0, ..., 0]) > 0.9
    low, high = middles[bright].min(0), middles[bright].max(0)
    step = FINE / 1.5
    assert np.all((low >= [20, 30]) & (low < np.array([20, 30]) + step))
    assert np.all((high <= [30, 40]) & (high > np.array([30, 40]) - step))
    thin = places.thinned()
    np.testing.assert_array_equal(thin.windows[1, 1], places.windows[3, 3])


def test_a_class_needs_several_scales_and_boxes_that_agree_are_merged():
    box, near, far = [0.0, 0, 10, 10], [0.0, 0, 10, 12], [40.0, 40, 50, 50]

    def places(probabilities, boxes):
        shape = 1, 1, len(boxes)
        return Places(
            jnp.array(probabilities).reshape(*shape, 2),
            jnp.array(boxes).reshape(*shape, 4),
            jnp.zeros((1, len(boxes), 4)),
        )

    first = places([[0.6, 0.0], [0.3, 0.0]], [box, near])
    second = places([[0.5, 0.0], [0.1, 0.9]], [far, far])
    found, best, merged = jax.jit(decide)([first, second])
    assert found.tolist() == [0]
    np.testing.assert_allclose(best[0], box)
    np.testing.assert_allclose(merged[0], [0, 0, 10, (0.6 * 10 + 0.3 * 12) / 0.9])
    assert jax.jit(decide)([second])[0].tolist() == [1]
