"""Random maps: in their ranges, functions of the key, the same compiled or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.ops import augment

SIZE = (30, 44)
SAMPLERS = {
    "affine": functools.partial(
        augment.random_affine, size=SIZE, degrees=20, scale=(0.5, 2), shear=9,
        translate=0.1,
    ),
    "flip": functools.partial(augment.random_flip, size=SIZE, vertical=0.5),
    "crop": functools.partial(
        augment.random_crop, size=SIZE, new_size=(24, 24), padding=4
    ),
    "resized_crop": functools.partial(
        augment.random_resized_crop, size=SIZE, new_size=(24, 20)
    ),
    "dihedral": functools.partial(augment.random_dihedral, size=(8, 8)),
}  # fmt: skip


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def drawn(sampler, count=500, **options):
    """Returns matrices of many keys."""
    draw = jax.jit(jax.vmap(functools.partial(sampler, **options)))
    return np.asarray(draw(keys_of(count)))


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_maps_are_functions_of_the_key_eager_compiled_or_in_a_batch(sampler):
    keys = keys_of(4)
    batch = jax.jit(jax.vmap(sampler))(keys)
    for key, matrix in zip(keys, batch, strict=True):
        np.testing.assert_allclose(sampler(key), matrix, atol=1e-5)
    assert (batch != batch[0]).any()


def test_affine_maps_lie_in_their_ranges():
    matrices = drawn(
        augment.random_affine, size=SIZE, degrees=20, scale=(0.5, 2), translate=0.1
    )
    determinant = np.linalg.det(matrices)
    factors = np.sqrt(determinant)
    assert 0.5 <= factors.min() < 0.55
    assert 1.9 < factors.max() <= 2 + 1e-5
    assert abs(np.log(factors).mean()) < 0.1  # As often halved as doubled.
    angles = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    assert -20.01 <= angles.min() < -19
    assert 19 < angles.max() <= 20.01
    center = np.array([SIZE[1] / 2, SIZE[0] / 2, 1])
    shift = (matrices @ center - center)[:, :2] / [SIZE[1], SIZE[0]]
    assert 0.095 < np.abs(shift).max() <= 0.1 + 1e-5


def test_nothing_asked_for_is_exactly_the_identity():
    for matrix in (
        augment.random_affine(jax.random.key(0), SIZE),
        augment.random_flip(jax.random.key(0), SIZE, horizontal=0),
        augment.random_crop(jax.random.key(0), SIZE, SIZE),
    ):
        np.testing.assert_array_equal(matrix, np.eye(3))


def test_flips_come_with_their_probabilities():
    matrices = drawn(augment.random_flip, 4_000, size=SIZE, horizontal=0.3, vertical=1)
    np.testing.assert_allclose((matrices[:, 0, 0] == -1).mean(), 0.3, atol=0.03)
    assert (matrices[:, 1, 1] == -1).all()


def test_dihedral_maps_are_all_drawn_and_without_reflections_rotations():
    assert len(np.unique(drawn(augment.random_dihedral, size=(8, 8)), axis=0)) == 8
    turns = drawn(augment.random_dihedral, size=(8, 8), reflections=False)
    assert len(np.unique(turns, axis=0)) == 4
    assert (np.linalg.det(turns) > 0).all()


def test_crops_are_whole_pixels_anywhere_in_the_padded_image():
    matrices = drawn(
        augment.random_crop, 2_000, size=(8, 9), new_size=(6, 6), padding=2
    )
    np.testing.assert_array_equal(
        matrices[:, :2, :2], np.eye(2) + 0 * matrices[:, :2, :2]
    )
    assert set(matrices[:, 0, 2]) == set(range(-5, 3))
    assert set(matrices[:, 1, 2]) == set(range(-4, 3))


def test_a_crop_with_padding_is_that_part_of_the_padded_image():
    image = np.random.default_rng(0).random((8, 8, 3), np.float32)
    matrix = augment.random_crop(jax.random.key(5), (8, 8), (8, 8), padding=4)
    x, y = (4 - matrix[:2, 2]).astype(int)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    cropped = augment.warp(jnp.asarray(image), matrix)
    np.testing.assert_array_equal(cropped, padded[y : y + 8, x : x + 8])


def boxes_of(matrices, new_size):
    """Returns the boxes that crops take from their images."""
    back = np.linalg.inv(np.asarray(matrices, np.float64))
    corners = np.array([[0, 0, 1], [new_size[1], new_size[0], 1]]).T
    return np.swapaxes((back @ corners)[:, :2], 1, 2).reshape(-1, 4)


def test_resized_crops_have_areas_and_shapes_in_range_inside_the_image():
    matrices = drawn(
        augment.random_resized_crop, 2_000, size=(300, 400), new_size=(7, 7)
    )
    boxes = boxes_of(matrices, (7, 7))
    np.testing.assert_allclose(boxes, boxes.round(), atol=1e-2)
    boxes = boxes.round()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [400, 300]).all()
    area, ratio = width * height / (300 * 400), width / height
    assert 0.075 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    # Nearly all areas up to a half fit, and so are uniform.
    small = area[area < 0.5]
    np.testing.assert_allclose(small.mean(), (0.08 + 0.5) / 2, atol=0.02)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((10, 400), (1.0, 1.0), [193, 0, 206, 10]),
        ((400, 10), (1.0, 1.0), [0, 193, 10, 206]),
        ((30, 30), (1.5, 2.0), [0, 0, 30, 30]),
    ],
)
def test_where_no_crop_fits_the_middle_is_taken(size, scale, expected):
    matrix = augment.random_resized_crop(jax.random.key(0), size, (5, 5), scale=scale)
    boxes = boxes_of(matrix[None], (5, 5))
    np.testing.assert_allclose(boxes, [expected], atol=1e-3)


def test_strengths_may_be_traced():
    draw = jax.jit(lambda key, s: augment.random_affine(key, SIZE, degrees=s, shear=s))
    key = jax.random.key(0)
    np.testing.assert_array_equal(draw(key, 0.0), np.eye(3))
    assert np.abs(draw(key, 30.0) - draw(key, 10.0)).max() > 0.01


def test_a_crop_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"\(24, 24\).*\(20, 30\).*1"):
        augment.random_crop(jax.random.key(0), (20, 30), (24, 24), padding=1)
