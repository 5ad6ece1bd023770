"""Patches overlap as asked, boxes follow their images, colours are those of HSV."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.ops.augment import affine, warp
from dl_core.ops.augment.detection import (
    OVERLAPS,
    adjust_hsv,
    distort,
    expose,
    linear_weights,
    move_objects,
    random_patch,
    stretch,
    zoom_out,
)

_SIZE = 60, 80
_KEYS = jax.random.split(jax.random.key(3), 400)
_BOXES = jnp.array(
    [[5, 5, 45, 40], [50, 10, 78, 58], [30, 30, 36, 38], [0, 0, 0, 0]], jnp.float32
)
_VALID = jnp.array([True, True, True, False])


@pytest.fixture(scope="module")
def patches():
    draw = jax.jit(jax.vmap(lambda key: random_patch(key, _BOXES, _VALID, _SIZE)))
    return tuple(np.asarray(x) for x in draw(_KEYS))


def _iou(patch, box):
    width = min(patch[2], box[2]) - max(patch[0], box[0])
    height = min(patch[3], box[3]) - max(patch[1], box[1])
    shared = max(width, 0) * max(height, 0)
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (patch, box))
    return shared / (sum(areas) - shared)


def test_patches_lie_in_the_image_and_have_the_papers_shapes(patches):
    found, _ = patches
    width, height = (found[:, 2:] - found[:, :2]).T
    assert (found >= 0).all()
    assert (found <= np.array([80, 60, 80, 60]) + 1e-4).all()
    share = width * height / 4800
    assert share.min() > 0.0999
    assert share.max() < 1.0001
    ratio = (width / 80) / (height / 60)
    assert ratio.min() > 0.4999
    assert ratio.max() < 2.0001


def test_each_patch_overlaps_an_object_as_asked_and_holds_a_centre(patches):
    objects = np.asarray(_BOXES)[:3]
    whole = np.array([0, 0, 80, 60])
    for patch, asked in zip(*patches, strict=True):
        if (patch == whole).all():
            continue
        assert asked < 1
        assert max(_iou(patch, box) for box in objects) >= asked - 1e-5
        centers = (objects[:, :2] + objects[:, 2:]) / 2
        held = (centers >= patch[:2]) & (centers < patch[2:])
        assert held.all(1).any()


def test_all_choices_are_as_likely_and_all_but_the_highest_are_met(patches):
    found, asked = patches
    whole = (found == np.array([0, 0, 80, 60])).all(1)
    for choice in (0, *OVERLAPS, 1):
        of_it = np.isclose(asked, choice)
        assert 30 < of_it.sum() < 90
        if choice < 0.6:
            assert whole[of_it].mean() < 0.2
    assert whole[asked == 1].all()


def test_without_objects_the_patch_is_the_whole_image():
    patch, _ = jax.jit(random_patch, static_argnums=3)(
        _KEYS[0], _BOXES, jnp.zeros(4, bool), _SIZE
    )
    assert (np.asarray(patch) == [0, 0, 80, 60]).all()


def test_zooming_out_keeps_the_whole_image_in_view():
    matrices = jax.jit(jax.vmap(lambda key: zoom_out(key, _SIZE, largest=3.0)))(_KEYS)
    factor = np.asarray(matrices)[:, 0, 0]
    left, top = np.asarray(matrices)[:, 0, 2], np.asarray(matrices)[:, 1, 2]
    assert 0.35 < (factor == 1).mean() < 0.65
    assert factor.min() < 0.36
    assert factor.min() > 1 / 3.001
    np.testing.assert_array_equal(factor, np.asarray(matrices)[:, 1, 1])
    for corner, side in ((left, 80), (top, 60)):
        assert corner.min() > -1e-3
        assert (corner + factor * side).max() < side + 1e-3
    assert np.corrcoef(left, top)[0, 1] < 0.9


def test_an_object_counts_while_its_centre_shows_and_padding_is_last():
    example = {
        "boxes": _BOXES,
        "labels": jnp.array([4, 5, 6, -1]),
        "difficult": jnp.array([False, False, True, False]),
        "proposals": jnp.array([[0, 0, 10, 10], [70, 50, 80, 60], [0, 0, 5, 5]], float),
        "proposal_mask": jnp.array([True, True, False]),
        "image": jnp.zeros((60, 80, 3)),
    }
    # The first centre leaves by half a pixel, though most of the box stays.
    moved = move_objects(example, affine.translation(-25.5, 0), _SIZE)
    np.testing.assert_array_equal(moved["labels"], [5, 6, -1, -1])
    np.testing.assert_array_equal(moved["difficult"], [False, True, False, False])
    np.testing.assert_allclose(moved["boxes"][0], [24.5, 10, 52.5, 58])
    np.testing.assert_allclose(moved["boxes"][1], [4.5, 30, 10.5, 38])
    assert (np.asarray(moved["boxes"][2:]) == 0).all()
    np.testing.assert_array_equal(moved["proposal_mask"], [False, True, False])
    np.testing.assert_allclose(moved["proposals"][1], [44.5, 50, 54.5, 60])
    assert moved["image"] is example["image"]


def test_two_mirror_images_are_none():
    boxes = {
        "boxes": _BOXES,
        "labels": jnp.array([4, 5, 6, -1]),
        "difficult": jnp.array([False, False, True, False]),
    }
    mirror = affine.flip(True, False, _SIZE)
    twice = move_objects(move_objects(boxes, mirror, _SIZE), mirror, _SIZE)
    for field, expected in boxes.items():
        np.testing.assert_array_equal(twice[field], expected)
    image = jax.random.uniform(jax.random.key(0), (*_SIZE, 3))
    once = stretch(image, mirror)
    np.testing.assert_allclose(once, image[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(stretch(once, mirror), image, atol=1e-6)


@pytest.mark.parametrize("key", range(3))
def test_a_stretched_image_is_the_warped_one(key):
    image, fill = jax.random.uniform(jax.random.key(key), (2, *_SIZE, 3))
    fill = fill[0, 0]
    sides = jax.random.uniform(jax.random.key(key + 9), (4,), minval=0.4, maxval=1.6)
    matrix = affine.compose(
        affine.flip(key == 1, False, _SIZE),
        affine.scaling(sides[0], sides[1], _SIZE),
        affine.translation(*(10 * (sides[2:] - 1))),
    )
    np.testing.assert_allclose(
        stretch(image, matrix, fill=fill), warp(image, matrix, fill=fill), atol=2e-5
    )


def test_rows_are_interpolated_as_numpy_does():
    row = np.random.default_rng(0).uniform(size=9)
    weights = linear_weights(1.7, 0.0, 9, 15)
    places = (np.arange(15) + 0.5) / 1.7 - 0.5
    inside = (places >= 0) & (places <= 8)
    expected = np.interp(places, np.arange(9), row)
    np.testing.assert_allclose((weights @ row)[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize(
    ("hue", "saturation", "value"), [(0.2, 1.4, 0.8), (-0.4, 0.3, 1.5), (0, 1, 1)]
)
def test_colours_are_those_of_hsv(hue, saturation, value):
    image = np.random.default_rng(1).uniform(size=(6, 5, 3)).astype(np.float32)
    image[0, :, :] = image[0, :, :1]  # Grey.
    ours = adjust_hsv(jnp.asarray(image), hue=hue, saturation=saturation, value=value)
    expected = np.empty_like(image)
    for place in np.ndindex(6, 5):
        h, s, v = colorsys.rgb_to_hsv(*image[place])
        changed = colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), v)
        expected[place] = np.clip(np.multiply(changed, value), 0, 1)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_strengths_of_colours_may_be_none():
    image = jax.random.uniform(jax.random.key(0), (6, 5, 3))
    key = jax.random.key(1)
    unchanged = distort(key, image, strength=0.0)
    np.testing.assert_allclose(unchanged, image, atol=1e-6)
    unchanged = expose(key, image, saturation=1.0, exposure=1.0)
    np.testing.assert_allclose(unchanged, image, atol=1e-6)
    changed = expose(key, image)
    assert np.abs(changed - image).max() > 0.02
    assert changed.max() <= 1
    assert changed.min() >= 0
