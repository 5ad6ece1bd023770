"""Errors of detections in constructed cases, and the metric over batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.metrics.detection import Detected
from dl_core.metrics.detection_coco import coco
from dl_core.metrics.detection_errors import IGNORED, KINDS, RIGHT, errors
from dl_core.metrics.detection_pairs import Found, Truth
from dl_core.ops.boxes import Detections

A = [0.0, 0.0, 10.0, 10.0]
HALF_OF_A = [0.0, 0.0, 10.0, 4.0]  # IoU 0.4.
B = [50.0, 50.0, 60.0, 60.0]
FAR = [80.0, 80.0, 90.0, 90.0]


def objects(*rows):
    """Each row: box, label, and whether it does not count."""
    boxes, labels, ignored = zip(*rows, strict=True)
    image = np.zeros(len(rows), int)
    return Truth(image, np.array(boxes), np.array(labels), np.array(ignored))


def found(*rows):
    """Each row: box, label; by falling score."""
    boxes, labels = zip(*rows, strict=True)
    image, scores = np.zeros(len(rows), int), np.linspace(0.9, 0.1, len(rows))
    return Found(image, np.array(boxes), scores, np.array(labels))


TWO = objects((A, 0, False), (B, 1, False))


def kinds(result):
    names = {RIGHT: "right", IGNORED: "ignored"}
    return [names.get(kind) or KINDS[kind] for kind in result.kind]


@pytest.mark.parametrize(
    ("rows", "expected", "missed"),
    [
        ([(A, 0), (B, 1)], ["right", "right"], 0),
        ([(A, 1), (B, 1)], ["class", "right"], 0),
        ([(HALF_OF_A, 0), (B, 1)], ["localization", "right"], 0),
        ([(HALF_OF_A, 1), (B, 1)], ["both", "right"], 1),
        ([(A, 0), (A, 0), (B, 1)], ["right", "duplicate", "right"], 0),
        ([(FAR, 0), (A, 0), (B, 1)], ["background", "right", "right"], 0),
        ([(A, 0)], ["right"], 1),
    ],
)
def test_each_error_is_told_apart_and_costs_what_mending_it_gains(
    rows, expected, missed
):
    detections = found(*rows)
    result = errors(detections, TWO, 2)
    assert kinds(result) == expected
    assert result.missed.sum() == missed
    before = coco(detections, TWO, 2).numbers()["ap50"]
    present = set(expected) - {"right"} | ({"missed"} if missed else set())
    for kind in KINDS:
        assert (result.cost[kind] > 0) == (kind in present and before < 1), kind
    if present == {"class"} or present == {"localization"} or present == {"missed"}:
        assert before + sum(result.cost.values()) == pytest.approx(1)


def test_the_best_of_two_errors_that_claim_an_object_is_set_right():
    # The second claims what the first has claimed: mended, it is removed.
    detections = found((HALF_OF_A, 0), (A, 1), (B, 1))
    result = errors(detections, TWO, 2)
    assert kinds(result) == ["localization", "class", "right"]
    assert not result.missed.any()
    assert result.cost["localization"] == pytest.approx(0.5)
    # Without it, class 1 has nothing before its one object.
    assert result.cost["class"] == pytest.approx(0.25)


def test_what_is_not_to_count_is_no_error():
    truth = objects((A, 0, True), (B, 1, False))
    result = errors(found((A, 0), (A, 0), (B, 1)), truth, 2)
    assert kinds(result) == ["ignored", "ignored", "right"]
    assert set(result.cost.values()) == {0.0}
    nothing = Truth(*(array[:0] for array in truth))
    result = errors(found((A, 0)), nothing, 2)
    assert kinds(result) == ["background"]
    assert result.cost == {}


def batch_of(random, images, objects_most, found_most):
    """Detections, and a batch of objects, some of which these are."""
    low = random.uniform(0, 40, (images, objects_most, 2))
    boxes = np.concatenate([low, low + random.uniform(4, 30, low.shape)], -1)
    labels = random.integers(-1, 2, (images, objects_most))
    boxes = np.where(labels[..., None] >= 0, boxes, 0).astype(np.float32)
    near = boxes[:, random.integers(0, objects_most, found_most)]
    near += random.normal(0, 2, near.shape).astype(np.float32)
    batch = {
        "boxes": boxes,
        "labels": labels,
        "difficult": random.random(labels.shape) < 0.1,
        "scale": random.uniform(1, 5, (images, 2)).astype(np.float32),
        "mask": np.ones(images, np.float32),
    }
    scores = -np.sort(-random.random((images, found_most)).astype(np.float32))
    labels = random.integers(-1, 2, scores.shape)
    return Detections(*map(jnp.asarray, (near, scores, labels))), batch


def padded(detections, batch, rows):
    """The same with copies of the last image that do not count."""

    def more(array):
        return np.concatenate([array, np.repeat(array[-1:], rows, 0)])

    batch = {name: more(array) for name, array in batch.items()}
    batch["mask"][-rows:] = 0
    return Detections(*(jnp.asarray(more(x)) for x in detections)), batch


def test_the_metric_is_the_same_in_batches_of_any_size_and_padding():
    names = ("cell", "plate", "never")
    detections, batch = batch_of(np.random.default_rng(0), 6, 5, 8)
    of = jax.jit(lambda found, batch: Detected.of(found, batch, names))
    whole = of(detections, batch).compute()
    assert all(np.isfinite(value).all() for value in whole.values())
    assert {"ap50", "ap50_cell", "voc07", "voc", "error_missed"} < whole.keys()
    assert "ap50_never" not in whole
    assert whole["precision"].shape == (3, 101)
    assert (whole["precision"][2] == -1).all()

    total = None
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        part = {name: array[start:stop] for name, array in batch.items()}
        some = Detections(*(array[start:stop] for array in detections))
        metric = jax.device_get(of(*padded(some, part, 2)))
        total = metric if total is None else total.merge(metric)
    for name, value in total.compute().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_areas_are_those_of_the_original_photograph():
    random = np.random.default_rng(0)
    detections, batch = batch_of(random, 4, 3, 4)
    rows = {}
    for name, scale in (("small", 0.5), ("large", 100)):
        batch["scale"] = np.full((4, 2), scale, np.float32)
        rows[name] = Detected.of(detections, batch, ("a", "b")).compute()
    assert "ap_small" not in rows["large"]
    assert "ap_large" not in rows["small"]
    assert rows["small"]["ap_small"] == rows["small"]["ap"] > 0
    assert rows["large"]["ap_large"] == rows["large"]["ap"] == rows["small"]["ap"]


def test_detections_that_are_not_finite_are_told_and_no_objects_say_nothing():
    detections, batch = batch_of(np.random.default_rng(0), 2, 3, 4)
    broken = detections._replace(boxes=detections.boxes * np.nan)
    assert np.isnan(Detected.of(broken, batch, ("a", "b")).compute()["ap50"])
    batch["labels"] = np.full_like(batch["labels"], -1)
    assert Detected.of(detections, batch, ("a", "b")).compute() == {}
