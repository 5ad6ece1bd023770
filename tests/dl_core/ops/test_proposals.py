"""Selective search is deterministic, kept on disk, and finds what is there."""

import numpy as np
import pytest

from dl_core.config import replace
from dl_core.ops.proposals import ProposalConfig, cached, recall, selective_search

FEW = ProposalConfig(mode="fast", scales=(50, 150), most=60)


def scene(seed):
    """Returns a noisy image with a bright and a dark rectangle, and their boxes."""
    random = np.random.default_rng(seed)
    image = random.normal(128, 3, (48, 64, 3))
    boxes = np.array([[5, 8, 25, 30], [38, 12, 56, 40]], np.float32)
    for (x, y, right, low), color in zip(boxes.astype(int), (230, 30), strict=True):
        image[y:low, x:right] += color - 128
    return image.clip(0, 255).astype(np.uint8), boxes


@pytest.fixture(scope="module")
def images():
    return np.stack([scene(seed)[0] for seed in range(3)])


def test_the_boxes_are_the_same_each_time_and_inside(images):
    boxes = selective_search(images[0], FEW)
    np.testing.assert_array_equal(boxes, selective_search(images[0], FEW))
    assert 2 <= len(boxes) <= 60
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [64, 48]).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_what_stands_out_is_proposed(images):
    boxes, mask = np.zeros((3, 60, 4), np.float32), np.zeros((3, 60), bool)
    for row, image in enumerate(images):
        found = selective_search(image, FEW)
        boxes[row, : len(found)], mask[row, : len(found)] = found, True
    truth = np.stack([scene(seed)[1] for seed in range(3)])
    valid = np.ones((3, 2), bool)
    assert recall(boxes, mask, truth, valid, (60,)) == [1.0]


def test_near_duplicates_are_left_out(images):
    few = selective_search(images[0], FEW)
    all_ = selective_search(images[0], replace(FEW, {"overlap": 1.0, "most": 1_000}))
    assert len(few) < len(all_)
    assert {tuple(box) for box in few} <= {tuple(box) for box in all_}
    assert len({tuple(box) for box in all_}) == len(all_)


def test_images_are_searched_once(images, tmp_path):
    lines = []
    boxes, mask = cached(images, tmp_path, FEW, lines.append)
    assert any("3 of 3" in line for line in lines)
    for row, image in enumerate(images):
        np.testing.assert_array_equal(
            boxes[row, mask[row]], selective_search(image, FEW)
        )
        assert (boxes[row, ~mask[row]] == 0).all()
    lines.clear()
    again, _ = cached(images[::-1], tmp_path, FEW, lines.append)
    np.testing.assert_array_equal(again, boxes[::-1])
    fewer, _ = cached(images, tmp_path, replace(FEW, {"most": 2}), lines.append)
    np.testing.assert_array_equal(fewer, boxes[:, :2])
    assert not lines
    cached(images, tmp_path, replace(FEW, {"smallest": 40}), lines.append)
    assert lines


def test_a_damaged_file_is_made_anew(images, tmp_path):
    boxes, _ = cached(images, tmp_path, FEW, lambda line: None)
    damaged = sorted(tmp_path.glob("*.npy"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    lines = []
    again, _ = cached(images, tmp_path, FEW, lines.append)
    assert any("1 of 1" in line for line in lines)
    np.testing.assert_array_equal(again, boxes)


def test_recall_counts_objects_that_some_of_the_first_boxes_cover():
    truth = np.array([[[0, 0, 10, 10], [20, 0, 30, 10]]], np.float32)
    boxes = np.array(
        [[[0, 0, 10, 4], [20, 0, 30, 9], [0, 0, 10, 10], [0, 0, 10, 10]]], np.float32
    )
    mask = np.array([[True, True, False, True]])
    valid = np.array([[True, True]])
    found = recall(boxes, mask, truth, valid, (1, 2, 3, 4))
    np.testing.assert_array_equal(found, [0, 0.5, 0.5, 1])
    first = recall(boxes, mask, truth, np.array([[False, True]]), (1, 2))
    np.testing.assert_array_equal(first, [0, 1])
