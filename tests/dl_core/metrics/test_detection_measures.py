"""Measures of detection against pycocotools and mean-average-precision."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mean_average_precision import MeanAveragePrecision2d, mean_average_precision_2d
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dl_core.metrics import detection_pairs
from dl_core.metrics.detection_coco import coco
from dl_core.metrics.detection_pairs import Found, Truth
from dl_core.metrics.detection_voc import voc

_ORDER = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def scene(random, images, classes, *, ignored, grid):
    """Objects, and detections that are these moved and relabelled, and others.

    On a grid, of whole pixels and tenths, there are ties of scores and of IoUs.
    """
    side = random.choice([8, 20, 60, 150])
    low = random.uniform(0, 300, (images * 4, 2))
    boxes = np.concatenate([low, low + random.uniform(1, 2 * side, low.shape)], 1)
    image = np.sort(random.integers(0, images, len(boxes)))
    image[image == images // 2] = 0  # One image without objects.
    labels = random.integers(0, classes, len(boxes))
    # The last class has no objects.
    labels[labels == classes - 1] = 0
    image = np.sort(image)
    truth = Truth(image, boxes, labels, random.random(len(boxes)) < ignored)
    copies = np.repeat(np.arange(len(boxes)), random.integers(0, 4, len(boxes)))
    copies = copies[truth.image[copies] != images - 1]  # And one without detections.
    moved = boxes[copies] + random.normal(0, side / 12, (len(copies), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    scores = random.random(len(copies))
    if grid:
        moved, scores = np.round(moved), np.round(scores, 1)
        truth = truth._replace(boxes=np.round(truth.boxes / 4) * 4)
    flipped = random.random(len(copies)) < 0.2
    found_labels = np.where(flipped, random.integers(0, classes, len(copies)), 0)
    found_labels = np.where(flipped, found_labels, labels[copies])
    return Found(truth.image[copies], moved, scores, found_labels), truth


def of_pycocotools(found, truth, images, classes):
    """The twelve numbers; -1 where one is not defined."""

    def rows(each):
        corners = each.boxes.tolist()
        for number, (x, y, right, low) in enumerate(corners):
            yield {
                "id": number + 1,
                "image_id": int(each.image[number]) + 1,
                "category_id": int(each.labels[number]) + 1,
                "bbox": [x, y, right - x, low - y],
                "area": (right - x) * (low - y),
            }

    objects = [
        row | {"iscrowd": int(crowd)}
        for row, crowd in zip(rows(truth), truth.ignored, strict=True)
    ]
    detections = [
        row | {"score": score}
        for row, score in zip(rows(found), found.scores.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(images)],
            "categories": [{"id": i + 1} for i in range(classes)],
            "annotations": objects,
        }
        reference.createIndex()
        results = reference.loadRes(detections) if detections else COCO()
        evaluation = COCOeval(reference, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    images=st.integers(3, 7),
    classes=st.integers(2, 4),
    ignored=st.sampled_from([0.0, 0.3]),
    grid=st.booleans(),
    at_once=st.sampled_from([1, 7, 2**20]),
)
def test_the_twelve_numbers_are_those_of_pycocotools(
    seed, images, classes, ignored, grid, at_once
):
    random = np.random.default_rng(seed)
    found, truth = scene(random, images, classes, ignored=ignored, grid=grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_pairs, "_PAIRS", at_once)
        numbers = coco(found, truth, classes).numbers()
    expected = of_pycocotools(found, truth, images, classes)
    assert set(numbers) == {n for n, x in zip(_ORDER, expected, strict=True) if x > -1}
    for name, value in zip(_ORDER, expected, strict=True):
        assert numbers.get(name, -1) == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("crowded", [False, True])
def test_only_the_hundred_best_of_an_image_count_as_in_pycocotools(crowded):
    random = np.random.default_rng(3)
    truth = Truth(
        np.zeros(2, int),
        np.array([[0.0, 0, 40, 40], [60, 60, 160, 160]]),
        np.array([0, 0]),
        np.array([False, crowded]),
    )
    boxes = np.array([[0.0, 0, 200, 200]] * 104 + [[1, 1, 41, 40]] * 20)
    boxes += np.tile(random.uniform(0, 1, (len(boxes), 1)), 4)
    boxes[100:104] = [[60.0, 60, 150, 160]] * 4
    found = Found(
        np.zeros(len(boxes), int),
        boxes,
        1 - np.arange(len(boxes)) / 200,
        np.zeros(len(boxes), int),
    )
    found = found.take(random.permutation(len(boxes)))
    numbers = coco(found, truth, 1).numbers()
    expected = of_pycocotools(found, truth, 1, 1)
    for name, value in zip(_ORDER, expected, strict=True):
        assert numbers.get(name, -1) == pytest.approx(value, abs=1e-6), name
    assert numbers["ar_100"] < 1


def test_without_detections_all_is_zero_and_without_objects_undefined():
    random = np.random.default_rng(0)
    found, truth = scene(random, 4, 2, ignored=0, grid=False)
    nothing = found.take(np.zeros(0, int))
    assert set(coco(nothing, truth, 2).numbers().values()) == {0.0}
    assert coco(found, Truth(*(x[:0] for x in truth)), 2).numbers() == {}
    by_class = voc(nothing, truth, 2)
    np.testing.assert_array_equal(by_class.all_points, [0, np.nan])


_theirs = mean_average_precision_2d.compute_match_table


def match_table(preds, gt, image):
    """The package's, which mixes up which of the objects are difficult."""
    table = _theirs(preds, gt, image)
    if len(gt):
        table["difficult"] = [gt[:, 5].tolist()] * len(preds)
    return table


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    images=st.integers(3, 6),
    ignored=st.sampled_from([0.0, 0.3]),
    iou=st.sampled_from([0.5, 0.7]),
)
def test_voc_is_that_of_the_package_mean_average_precision(seed, images, ignored, iou):
    random = np.random.default_rng(seed)
    classes = 3
    found, truth = scene(random, images, classes, ignored=ignored, grid=False)
    reference = MeanAveragePrecision2d(classes)
    for image in range(images):
        at, of = found.image == image, truth.image == image
        objects = np.column_stack(
            [truth.boxes, truth.labels, truth.ignored, 0 * truth.labels]
        )
        detections = np.column_stack([found.boxes, found.labels, found.scores])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mean_average_precision_2d, _theirs.__name__, match_table)
            reference.add(detections[at], objects[of])
        # The package counts difficult objects among those to be found; VOC does not.
        counts = np.bincount(truth.labels[of & ~truth.ignored], minlength=classes)
        reference.class_counter[-1] = counts
    by_class = voc(found, truth, classes, iou)
    for points, ours in (
        (None, by_class.all_points),
        (np.arange(0.0, 1.1, 0.1), by_class.eleven_points),
    ):
        theirs = reference.value([iou], points, mpolicy="greedy")[iou]
        for label in range(classes):
            if np.any((truth.labels == label) & ~truth.ignored):
                assert ours[label] == pytest.approx(theirs[label]["ap"], abs=1e-6)
            else:
                assert np.isnan(ours[label])
