"""Boxes, keypoints and masks go where the image goes."""

import inspect

import jax
import jax.numpy as jnp
import kornia.geometry.linalg
import numpy as np
import pytest
import torch

from dl_core.ops import augment
from dl_core.ops.roi import check_boxes

SIZE = (40, 52)
BOXES = np.array([[10, 8, 30, 20], [0, 0, 52, 40], [3, 25, 9, 38]], np.float32)
BOXES_CORNERS = jnp.asarray(BOXES[:, [[0, 1], [2, 1], [0, 3], [2, 3]]])


def painted(box):
    """Returns the mask of a box with whole coordinates."""
    y, x = np.indices(SIZE) + 0.5
    return (box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])


def extent(mask):
    """Returns the box about what a mask marks."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def turned(degrees=0.0, factor=1.0, shift=(0, 0)):
    return augment.compose(
        augment.rotation(degrees, SIZE),
        augment.scaling(factor, factor, SIZE),
        augment.translation(*shift),
    )


def test_points_move_as_kornias():
    points = np.random.default_rng(0).uniform(0, 50, (5, 3, 2)).astype(np.float32)
    matrix = turned(31, 1.3, (4, -2))
    theirs = kornia.geometry.linalg.transform_points(
        torch.tensor(np.asarray(matrix))[None], torch.tensor(points.reshape(1, -1, 2))
    )
    ours = augment.move_points(jnp.asarray(points), matrix)
    np.testing.assert_allclose(ours, theirs.numpy().reshape(5, 3, 2), atol=1e-4)


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
def test_flipped_boxes_are_exact(horizontal, vertical):
    boxes = BOXES + 0.25 * (BOXES > 0) * (BOXES < 40)
    matrix = augment.flip(horizontal, vertical, SIZE)
    moved, counts = augment.move_boxes(jnp.asarray(boxes), matrix, SIZE)
    expected = boxes.copy()
    if horizontal:
        expected[:, [0, 2]] = SIZE[1] - boxes[:, [2, 0]]
    if vertical:
        expected[:, [1, 3]] = SIZE[0] - boxes[:, [3, 1]]
    np.testing.assert_array_equal(moved, expected)
    assert counts.all()


@pytest.mark.parametrize(
    ("matrix", "tolerance"),
    [
        (augment.flip(True, False, SIZE), 0),
        (augment.dihedral(3, (40, 40)), 0),
        (augment.translation(5, -9), 0),
        (augment.crop(jnp.array([2.0, 4.0, 28.0, 24.0]), SIZE), 0),
        (turned(0, 1.7, (3.3, 2.1)), 1),
        (turned(25), 2),
        (turned(-140, 0.8, (4, 3)), 2),
    ],
)
def test_boxes_masks_and_images_move_together(matrix, tolerance):
    masks = np.stack([painted(box) for box in BOXES], -1)
    moved = augment.warp_example(
        {
            "image": jnp.asarray(masks, jnp.float32),
            "masks": jnp.asarray(masks),
            "boxes": jnp.asarray(BOXES),
        },
        matrix,
        SIZE,
    )
    # Where the interpolated image is more than half there, the mask is.
    differ = (moved["image"] > 0.5) != moved["masks"]
    assert differ.mean() < 0.01
    for i, box in enumerate(np.asarray(moved["boxes"])):
        mask = np.asarray(moved["masks"])[..., i]
        assert mask.any() == moved["boxes_valid"][i]
        if not mask.any():
            continue
        found = extent(mask)
        assert (found[:2] > box[:2] - 1).all()
        assert (found[2:] < box[2:] + 1).all()
        corners = np.asarray(augment.move_points(BOXES_CORNERS[i], matrix))
        if ((corners >= 0) & (corners <= SIZE[::-1])).all():
            np.testing.assert_allclose(found, box, atol=max(tolerance, 1e-4))


def test_boxes_count_by_what_is_seen_of_them():
    boxes = jnp.array([[0, 0, 10, 10], [8, 0, 12, 10], [0, 30, 52, 40], [5, 5, 5, 5.0]])
    matrix = augment.translation(-5, 0)
    moved, counts = augment.move_boxes(boxes, matrix, SIZE)
    np.testing.assert_array_equal(moved[0], [0, 0, 5, 10])
    assert counts.tolist() == [True, True, True, False]
    _, counts = augment.move_boxes(boxes, matrix, SIZE, min_visible=0.6)
    assert counts.tolist() == [False, True, True, False]
    _, counts = augment.move_boxes(boxes, matrix, SIZE, min_visible=0.5, min_size=5)
    assert counts.tolist() == [True, False, True, False]
    _, counts = augment.move_boxes(boxes, augment.translation(52, 0), SIZE, min_size=0)
    assert not counts.any()
    upside_down = jnp.array([[10.0, 10.0, 2.0, 2.0]])
    assert not augment.move_boxes(upside_down, jnp.eye(3), SIZE)[1].any()


def test_left_and_right_change_names_where_the_map_mirrors():
    keypoints = jnp.array([[[20.0, 5.0], [15.0, 10.0], [60.0, 10.0]]])
    flags = jnp.array([[2, 1, 2]])
    swap = (0, 2, 1)
    mirror = augment.flip(True, False, SIZE)
    moved, visible = augment.move_keypoints(keypoints, flags, mirror, SIZE, swap=swap)
    np.testing.assert_array_equal(moved, [[[32, 5], [-8, 10], [37, 10]]])
    assert visible.tolist() == [[2, 0, 1]]  # What was outside is no longer there.
    both = augment.flip(True, True, SIZE)
    moved, _ = augment.move_keypoints(keypoints, flags, both, SIZE, swap=swap)
    np.testing.assert_array_equal(moved, [[[32, 35], [37, 30], [-8, 30]]])
    moved, _ = augment.move_keypoints(keypoints, flags, mirror, SIZE)
    np.testing.assert_array_equal(moved, [[[32, 5], [37, 10], [-8, 10]]])


def test_keypoints_stay_on_what_they_mark():
    points = np.array([[12, 9], [30, 25], [44, 14]])
    image = np.zeros((*SIZE, 3), np.float32)
    image[points[:, 1], points[:, 0], range(3)] = 1
    image = augment.gaussian_blur(jnp.asarray(image), 2.0, 6)
    moved = augment.warp_example(
        {"image": image, "keypoints": jnp.asarray(points + 0.5, jnp.float32)},
        turned(20, 0.9, (1, 2)),
    )
    brightest = np.asarray(moved["image"]).reshape(-1, 3).argmax(0)
    peaks = np.stack([brightest % SIZE[1], brightest // SIZE[1]], -1) + 0.5
    np.testing.assert_allclose(moved["keypoints"], peaks, atol=1)
    assert moved["keypoints_visible"].all()


def test_examples_in_a_batch_are_moved_as_one_by_one():
    random = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(random.random((3, *SIZE, 2), np.float32)),
        "masks": jnp.asarray(random.integers(0, 5, (3, *SIZE))),
        "boxes": jnp.asarray(np.stack([BOXES] * 3)),
        "boxes_valid": jnp.array([[True, True, False]] * 3),
        "keypoints": jnp.asarray(random.uniform(0, 40, (3, 2, 4, 2)), jnp.float32),
        "label": jnp.arange(3),
    }

    def augmented(key, example):
        matrix = augment.random_affine(key, SIZE, degrees=30, scale=(0.5, 1.5))
        return augment.warp_example(example, matrix, (16, 20), swap=(1, 0, 3, 2))

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(augmented))(keys, batch)
    one = jax.jit(augmented)
    for i in range(3):
        alone = one(keys[i], jax.tree.map(lambda x, i=i: x[i], batch))
        for name, values in alone.items():
            np.testing.assert_allclose(together[name][i], values, atol=1e-5)
    assert together["image"].shape == (3, 16, 20, 2)
    assert not together["boxes_valid"][:, 2].any()
    assert together["label"].tolist() == [0, 1, 2]


def test_what_does_not_fit_is_told():
    boxes, points = (
        inspect.unwrap(f) for f in (augment.move_boxes, augment.move_keypoints)
    )
    with pytest.raises(ValueError, match=r"\(4,\)"):
        boxes(jnp.zeros(4), jnp.eye(3), SIZE)
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        boxes(jnp.zeros((2, 5)), jnp.eye(3), SIZE)
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4,\)"):
        points(jnp.zeros((3, 2)), jnp.ones(4), jnp.eye(3), SIZE)
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        inspect.unwrap(augment.move_points)(jnp.zeros((5, 3)), jnp.eye(3))
    for swap in ((1, 2, 0), (0, 1), (0, 0, 2)):
        with pytest.raises(ValueError, match="3 keypoints"):
            points(jnp.zeros((3, 2)), jnp.ones(3), jnp.eye(3), SIZE, swap=swap)
    example = {"image": jnp.zeros((4, 4, 1)), "masks": jnp.zeros((5, 4))}
    with pytest.raises(ValueError, match=r"\(5, 4\) on \(4, 4, 1\)"):
        augment.warp_example(example, jnp.eye(3))


def test_boxes_outside_their_image_are_named_on_the_host():
    check_boxes(BOXES, *SIZE)
    with pytest.raises(ValueError, match=r"Box 1 .*60"):
        check_boxes(np.array([[0, 0, 5, 5], [9, 9, 60, 12]], np.float32), *SIZE)
