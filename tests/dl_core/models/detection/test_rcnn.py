"""Parts of R-CNN against OpenCV and scikit-learn."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC

from dl_core.models.detection.rcnn import Regression, warp_regions
from dl_core.models.detection.rcnn_svm import SVM, Machines, Memory, fit, refit
from dl_core.ops.box_coders import FasterRCNN


def test_regions_are_warped_as_opencv_does():
    random = np.random.default_rng(0)
    image = random.normal(size=(40, 60, 3)).astype(np.float32)
    boxes = np.array([[10, 5, 40, 30], [20, 12, 28, 36]], np.float32)
    warped = warp_regions(jnp.asarray(image), jnp.asarray(boxes), 16, 2)
    for (left, top, right, low), region in zip(boxes, warped, strict=True):
        x, y = (right - left) / 12, (low - top) / 12
        # OpenCV has whole numbers at the centres of pixels; 2 pixels are around.
        matrix = np.array(
            [
                [x, 0, left - 2 * x + x / 2 - 0.5],
                [0, y, top - 2 * y + y / 2 - 0.5],
            ]
        )
        columns, rows = np.meshgrid(np.arange(16), np.arange(16))
        where = [
            (matrix[i, i] * grid + matrix[i, 2]).astype(np.float32)
            for i, grid in enumerate((columns, rows))
        ]
        wanted = cv2.remap(image, *where, cv2.INTER_LINEAR)
        np.testing.assert_allclose(region, wanted, atol=0.1)


def test_what_is_outside_has_the_mean_colour_and_padding_is_finite():
    image = jnp.asarray(np.random.default_rng(1).normal(size=(20, 20, 3)), jnp.float32)
    boxes = jnp.array([[-40.0, -40, -20, -20], [0, 0, 0, 0]])
    warped = warp_regions(image, boxes, 8, 1)
    mean = np.broadcast_to(image.mean((0, 1)), (8, 8, 3))
    np.testing.assert_allclose(warped[0], mean, rtol=1e-5, atol=1e-6)
    assert jnp.isfinite(warped).all()
    with pytest.raises(ValueError, match="none of 8"):
        warp_regions(image, boxes, 8, 4)


def test_the_regression_is_ridge_regression():
    random = np.random.default_rng(2)
    features = random.normal(size=(90, 6)).astype(np.float32)
    codes = (features[:, :4] * 0.2 + random.normal(size=(90, 4)) * 0.05 + 0.3).astype(
        np.float32
    )
    labels = random.integers(-1, 2, 90).astype(np.int32)
    regression = Regression.zeros(2, 6)
    for rows in np.split(np.arange(90), 3):
        regression = regression.fitted(
            *(jnp.asarray(x[rows]) for x in (features, codes, labels)), 3.0
        )
    boxes = jnp.asarray(random.uniform(0, 20, (1, 5, 2)), jnp.float32)
    boxes = jnp.concatenate([boxes, boxes + 9], -1)
    new = random.normal(size=(1, 5, 6)).astype(np.float32)
    moved = regression.moved(jnp.asarray(new), boxes)
    for label in range(2):
        chosen = labels == label
        mean = codes[chosen].mean(0)
        ones = np.ones((chosen.sum(), 1))
        ridge = Ridge(alpha=3.0, fit_intercept=False).fit(
            np.concatenate([features[chosen], ones], 1), codes[chosen] - mean
        )
        found = ridge.predict(np.concatenate([new[0], np.ones((5, 1))], 1)) + mean
        wanted = FasterRCNN().decode(jnp.asarray(found, jnp.float32), boxes[0])
        np.testing.assert_allclose(moved[0, :, label], wanted, rtol=1e-4, atol=1e-3)


def test_no_examples_leave_boxes_where_they_are():
    boxes = jnp.array([[[3.0, 4, 10, 20]]])
    moved = Regression.zeros(2, 3).moved(jnp.ones((1, 1, 3)), boxes)
    np.testing.assert_allclose(moved[0, 0], np.repeat(boxes[0], 2, 0), rtol=1e-5)


def examples(seed, count, shift):
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, 5)) + shift).astype(np.float32)


def test_a_machine_is_scikit_learns():
    positives, negatives = examples(0, 30, 0.7), examples(1, 60, 0.0)
    weights, bias = fit(positives, negatives, 0.1, 2.0, 10.0)
    machine = LinearSVC(
        loss="hinge",
        C=0.1,
        class_weight={1: 2.0},
        intercept_scaling=10.0,
        random_state=3,
        tol=1e-6,
        max_iter=10**6,
    ).fit(np.concatenate([positives, negatives]), [1] * 30 + [-1] * 60)
    np.testing.assert_allclose(weights, machine.coef_[0], atol=5e-3)
    assert bias == pytest.approx(machine.intercept_[0], abs=2e-2)
    none = np.zeros((0, 5), np.float32)
    weights, bias = fit(none, negatives, 0.1, 2.0, 10.0)
    assert not weights.any()
    assert bias == -1


def test_machines_are_fitted_under_jit_and_vmap_when_it_is_time():
    settings = SVM(cost=0.1)
    machines = Machines(jnp.float32(1), jnp.zeros((1, 5)), jnp.zeros(1))
    positives, negatives = examples(0, 30, 0.7), examples(1, 60, 0.0)

    def memory(rows):
        return Memory(jnp.asarray(rows[None]), jnp.arange(len(rows))[None])

    args = (machines, memory(positives), memory(negatives))
    each = jax.jit(jax.vmap(lambda now: refit(settings, *args, now)))
    found = each(jnp.array([True, False]))
    weights, bias = fit(positives, negatives, 0.1, 2.0, 10.0)
    np.testing.assert_array_equal(found.weights[0, 0], weights)
    assert found.bias[0, 0] == np.float32(bias)
    assert not found.weights[1].any()


def test_the_memory_keeps_the_hardest_and_none_twice():
    machines = Machines(jnp.float32(2), jnp.array([[1.0]]), jnp.array([0.5]))
    values = np.array([-3.0, 0.4, -0.1, 1.0, -2.0], np.float32)
    memory, lost = Memory.empty(1, 3, 1), 0
    for part in ([0, 1, 2], [3, 4], [3, 1]):
        there = jnp.array([[number != 4] for number in part])
        memory, left_out = memory.with_(
            machines,
            jnp.asarray(values[part, None]),
            jnp.array(part, jnp.int32),
            there,
            -1,
        )
        lost += int(left_out[0])
    np.testing.assert_array_equal(np.sort(memory.keys[0]), [1, 2, 3])
    order = np.argsort(memory.keys[0])
    np.testing.assert_allclose(memory.rows[0, order, 0], 2 * values[[1, 2, 3]])
    assert lost == 0
    memory, lost = memory.with_(
        machines, jnp.array([[5.0]]), jnp.array([9], jnp.int32), jnp.array([[True]]), -1
    )
    assert 9 in memory.keys[0]
    assert lost[0] == 1
