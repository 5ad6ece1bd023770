"""YOLO's grid, against plain loops, brute force and torch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.data.blood_cells import read
from dl_core.models.detection.yolo import PRIORS
from dl_core.ops import yolo

STRIDE = 8


def boxes_in(rng, count):
    low = rng.uniform([0, 0], [20, 12], (count, 2))
    return np.concatenate([low, low + rng.uniform(1, 12, (count, 2))], 1).astype("f4")


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_codes_stand_for_the_box_in_the_cell_of_its_centre(power):
    boxes = boxes_in(np.random.default_rng(0), 200)
    codes = np.asarray(yolo.encode(jnp.asarray(boxes), STRIDE, power))
    assert ((codes[:, :2] >= 0) & (codes[:, :2] < 1)).all()
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 // STRIDE).astype(int).T
    everywhere = jnp.broadcast_to(codes, (3, 4, 200, 4))
    decoded = np.asarray(yolo.decode(everywhere, STRIDE, power))
    found = decoded[row, column, np.arange(200)]
    np.testing.assert_allclose(found, boxes, atol=1e-3)


def test_sizes_are_roots_in_units_of_seven_cells():
    code = yolo.encode(jnp.array([4.0, 6.0, 18.0, 12.0]), STRIDE)
    np.testing.assert_allclose(code, [3 / 8, 1 / 8, 0.5, (6 / 56) ** 0.5], atol=1e-6)


def test_the_predictor_with_the_highest_iou_answers():
    box = jnp.array([[4.0, 4.0, 20.0, 12.0]])  # Its centre, (12, 8), is in row 1.
    right = np.asarray(yolo.encode(box[0], STRIDE))
    codes = np.zeros((3, 4, 2, 4), np.float32)
    codes[1, 1] = right + np.array([[0, 0, 0.3, 0], [0, 0, 0.1, 0]])
    answers = yolo.answers(jnp.asarray(codes), box, jnp.array([True]), STRIDE)
    assert np.argwhere(answers.responsible).tolist() == [[1, 1, 1]]
    np.testing.assert_allclose(answers.codes[1, 1], right, atol=1e-6)
    share = right[2] ** 2 / (right[2] + 0.1) ** 2
    np.testing.assert_allclose(answers.overlaps[1, 1, 1], share, rtol=1e-5)
    assert (np.delete(np.ravel(answers.overlaps), [10, 11]) == 0).all()


def test_where_none_overlaps_the_nearest_code_answers():
    box = jnp.array([[4.0, 4.0, 20.0, 12.0]])
    codes = np.full((3, 4, 3, 4), -1.0, np.float32)
    codes[1, 1, 2] = -0.5
    answers = yolo.answers(jnp.asarray(codes), box, jnp.array([True]), STRIDE)
    assert np.argwhere(answers.responsible).tolist() == [[1, 1, 2]]


def test_a_cell_answers_for_its_first_object_and_never_for_padding():
    boxes = jnp.array(
        [[0, 0, 0, 0], [9, 9, 15, 15], [8, 8, 15, 15], [24, 16, 33, 26.0]]
    )
    valid = jnp.array([False, True, True, True])
    codes = jnp.full((3, 4, 2, 4), 0.5)
    answers = yolo.answers(codes, boxes, valid, STRIDE)
    expected = np.full((3, 4), -1)
    expected[1, 1], expected[2, 3] = 1, 3
    np.testing.assert_array_equal(answers.objects, expected)
    np.testing.assert_array_equal(answers.responsible.sum(-1), expected >= 0)


def test_a_sigmoid_keeps_centres_in_their_cells():
    outputs = 20 * jax.random.normal(jax.random.key(0), (3, 4, 2 * 5 + 3))
    places = yolo.read_out(outputs, 2, 3, direct=True).codes[..., :2]
    assert places.min() >= 0
    assert places.max() <= 1
    loose = yolo.read_out(outputs, 2, 3).codes[..., :2]
    assert loose.max() > 2


def test_outputs_of_0_say_the_priors():
    priors = jnp.array([[0.25, 0.5], [1.0, 0.1]])
    said = yolo.read_out(jnp.zeros((3, 4, 13)), 2, 3, priors=priors)
    boxes = yolo.decode(said.codes, STRIDE)
    sizes = (boxes[..., 2:] - boxes[..., :2]) / 56
    np.testing.assert_allclose(sizes, np.broadcast_to(priors, (3, 4, 2, 2)), rtol=1e-5)


def test_classes_are_those_of_the_cell_or_of_the_box():
    outputs = jnp.arange(16.0)[None, None]
    cell = yolo.read_out(outputs[..., :13], 2, 3)
    np.testing.assert_array_equal(cell.classes[0, 0], [[10, 11, 12]] * 2)
    box = yolo.read_out(outputs, 2, 3, class_per_box=True)
    np.testing.assert_array_equal(box.classes[0, 0], [[10, 11, 12], [13, 14, 15]])
    np.testing.assert_array_equal(box.confidences[0, 0], [4, 9])
    with pytest.raises(ValueError, match="have 16 outputs, not 13"):
        yolo.read_out(outputs[..., :13], 2, 3, class_per_box=True)


def iou_of_sizes(a, b):
    common = min(a[0], b[0]) * min(a[1], b[1])
    return common / (a[0] * a[1] + b[0] * b[1] - common)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_priors_are_the_best_that_k_means_can_end_at(count):
    rng = np.random.default_rng(1)
    centers = np.array([[2.0, 3.0], [8.0, 6.0], [20.0, 30.0]])
    sizes = np.concatenate([c * rng.uniform(0.7, 1.4, (3, 2)) for c in centers])
    ends = []
    for labels in itertools.product(range(count), repeat=len(sizes)):
        if len(set(labels)) == count:
            means = [sizes[np.array(labels) == k].mean(0) for k in range(count)]
            overlaps = np.array([[iou_of_sizes(s, m) for m in means] for s in sizes])
            if (overlaps.argmax(1) == labels).all():
                ends.append((overlaps.max(1).mean(), sorted(means, key=np.prod)))
    best, means = max(ends, key=lambda end: end[0])
    priors, quality = yolo.cluster_sizes(sizes, count, tries=30)
    np.testing.assert_allclose(quality, best)
    np.testing.assert_allclose(priors, means)


def test_priors_of_impossible_numbers():
    with pytest.raises(ValueError, match="3 priors of 2 different sizes"):
        yolo.cluster_sizes(np.array([[1.0, 2], [1, 2], [3, 4]]), 3)
    with pytest.raises(ValueError, match="positive"):
        yolo.cluster_sizes(np.array([[1.0, 0], [1, 2]]), 1)


def test_the_priors_of_the_blood_cells():
    sizes = np.concatenate(
        [(p.boxes[:, 2:] - p.boxes[:, :2]) / [320, 240] for p in read("train")]
    )
    for count, numbers in PRIORS.items():
        priors, quality = yolo.cluster_sizes(sizes, count)
        np.testing.assert_allclose(numbers, priors.ravel(), atol=6e-4)
        written = np.reshape(numbers, (-1, 2))
        overlap = yolo.overlap_of_sizes(sizes, written).max(1).mean()
        np.testing.assert_allclose(overlap, quality, atol=1e-3)


def test_stacked_is_torchs_unshuffle_with_the_channels_last():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    theirs = torch.nn.functional.pixel_unshuffle(torch.tensor(x).permute(0, 3, 1, 2), 2)
    theirs = theirs.reshape(2, 3, 4, 2, 3).permute(0, 3, 4, 2, 1).reshape(2, 2, 3, 12)
    np.testing.assert_array_equal(yolo.stacked(jnp.asarray(x)), theirs)
    assert yolo.stacked(jnp.asarray(x[:, :3, :5])).shape == (2, 2, 3, 12)
