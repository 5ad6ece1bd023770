"""Non-maximum suppression against ONNX Runtime, OpenCV and loops in numpy."""

import functools
import inspect

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from dl_core.ops.nms import nms, soft_nms, suppress

run = jax.jit(nms, static_argnames="most")
best = jax.jit(suppress, static_argnames=("candidates", "most"))


def crowd(lists, n, seed=0, *, ties=False):
    """Boxes of which many overlap, in whole numbers, and their scores."""
    random = np.random.default_rng(seed)
    low = random.integers(0, 60, (lists, n, 2))
    boxes = np.concatenate([low, low + random.integers(5, 30, (lists, n, 2))], -1)
    scores = random.uniform(size=(lists, n))
    scores = np.round(scores, 1) if ties else scores
    return jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)


@functools.cache
def onnx_session():
    helper, numbers = onnx.helper, onnx.TensorProto
    inputs = [
        ("boxes", numbers.FLOAT, [None, None, 4]),
        ("scores", numbers.FLOAT, [None, None, None]),
        ("most", numbers.INT64, [1]),
        ("iou", numbers.FLOAT, [1]),
    ]
    node = helper.make_node("NonMaxSuppression", [i[0] for i in inputs], ["kept"])
    graph = helper.make_graph(
        [node],
        "nms",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info("kept", numbers.INT64, [None, 3])],
    )
    opset = [helper.make_opsetid("", 11)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString())


def onnx_nms(boxes, scores, threshold, most):
    """Returns the numbers that ONNX Runtime keeps of each list."""
    inputs = {
        "boxes": np.asarray(boxes),
        "scores": np.asarray(scores)[:, None],
        "most": np.array([most]),
        "iou": np.array([threshold], np.float32),
    }
    (kept,) = onnx_session().run(None, inputs)
    return [kept[kept[:, 0] == i, 2].tolist() for i in range(len(boxes))]


def kept_of(numbers, mask):
    assert not np.asarray(numbers)[~np.asarray(mask)].any()
    return [np.asarray(n)[m].tolist() for n, m in zip(numbers, mask, strict=True)]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
@pytest.mark.parametrize(("n", "most"), [(150, 30), (150, 200)])
def test_nms_keeps_what_onnx_runtime_keeps(n, most, threshold):
    for ties in (False, True):
        boxes, scores = crowd(3, n, ties=ties)
        expected = onnx_nms(boxes, scores, threshold, most)
        assert kept_of(*run(boxes, scores, threshold, most=most)) == expected


def test_nms_keeps_what_opencv_keeps():
    boxes, scores = crowd(3, 150)
    corners = np.asarray(boxes[0]).astype(int)
    low_and_size = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(low_and_size.tolist(), np.asarray(scores[0]), 0.0, 0.45)
    found = kept_of(*run(boxes, scores, 0.45, most=200))[0]
    assert found == np.ravel(kept).tolist()


def test_nms_of_lists_is_that_of_each_and_of_vmap():
    boxes, scores = crowd(3, 150)
    together = run(boxes, scores, 0.5, most=30)
    mapped = jax.jit(jax.vmap(lambda b, s: nms(b, s, 0.5, 30)))(boxes, scores)
    for batch, vmapped in zip(together, mapped, strict=True):
        np.testing.assert_array_equal(batch, vmapped)


def test_nms_leaves_out_padding_and_what_has_no_score():
    boxes = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 0, 0]])
    scores = jnp.array([jnp.nan, 0.2, -jnp.inf, 0.1])
    numbers, mask = run(boxes, scores, 0.5, most=4)
    assert numbers[mask].tolist() == [1, 3]
    assert not run(boxes, jnp.full(4, -jnp.inf), 0.5, most=4)[1].any()


def soft_loop(boxes, scores, factor, least):
    """Soft-NMS as the paper's figure 2 has it, one box at a time."""
    left, taken = dict(enumerate(scores)), []
    while left:
        best = max(left, key=left.get)
        score = left.pop(best)
        if score < least:
            break
        taken.append((best, score))
        for i in left:
            left[i] *= factor(one_iou(boxes[best], boxes[i]))
    return taken


def one_iou(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in range(2)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_soft_nms_is_the_papers_loop(method):
    factors = {
        "gaussian": lambda iou: np.exp(-(iou**2) / 0.3),
        "linear": lambda iou: 1 - iou if iou >= 0.4 else 1,
    }
    boxes, scores = crowd(2, 40)
    settings = {"method": method, "sigma": 0.3, "threshold": 0.4, "least": 0.1}
    soft = jax.jit(soft_nms, static_argnames=("most", "method"))
    numbers, mask, found = soft(boxes, scores, most=40, **settings)
    for i in range(2):
        arrays = np.asarray(boxes[i], float), np.asarray(scores[i], float)
        expected = soft_loop(*arrays, factors[method], 0.1)
        assert numbers[i][mask[i]].tolist() == [number for number, _ in expected]
        np.testing.assert_allclose(found[i][mask[i]], [s for _, s in expected], 1e-4)
    assert not found[~mask].any()


@pytest.mark.parametrize("own_boxes", [False, True])
def test_suppress_is_nms_class_by_class_and_then_the_best(own_boxes):
    boxes, scores = crowd(3, 60)
    each = jnp.broadcast_to(boxes[0][:, None], (60, 3, 4))
    each = each + 4.0 * jnp.arange(3)[:, None] if own_boxes else each
    given = each if own_boxes else boxes[0]
    expected = []
    for label in range(3):
        likely = np.where(scores[label] >= 0.2, scores[label], -1)
        kept = onnx_nms(each[None, :, label], likely[None], 0.4, 60)[0]
        # The box itself is needed below, so are score and class.
        expected += [
            (float(likely[i]), label, each[i, label].tolist())
            for i in kept
            if likely[i] > 0
        ]
    expected = sorted(expected, reverse=True)[:25]
    settings = {"iou": 0.4, "least": 0.2, "candidates": 60, "most": 25}
    found = best(given, scores.T, **settings)
    np.testing.assert_allclose(found.scores, [e[0] for e in expected])
    assert found.labels.tolist() == [e[1] for e in expected]
    np.testing.assert_allclose(found.boxes, [e[2] for e in expected])


def test_suppress_pads_and_takes_a_batch():
    boxes, scores = crowd(2, 5)
    few = best(boxes, jnp.stack([scores, 0 * scores], -1), most=12)
    assert few.boxes.shape == (2, 12, 4)
    empty = np.asarray(few.labels) == -1
    assert empty[:, -7:].all()
    assert not empty[:, 0].any()
    assert not np.asarray(few.scores)[empty].any()
    assert not np.asarray(few.boxes)[empty].any()
    one = best(boxes[1], jnp.stack([scores[1], 0 * scores[1]], -1), most=12)
    np.testing.assert_array_equal(few.boxes[1], one.boxes)


def test_shapes_that_do_not_fit_are_refused():
    boxes, scores = crowd(1, 5)
    with pytest.raises(ValueError, match=r"scores \(…, n\)"):
        inspect.unwrap(nms)(boxes[:, :3], scores, 0.5, 3)
    with pytest.raises(ValueError, match=r"\(n, classes, 4\)"):
        inspect.unwrap(suppress)(boxes[0, :3], jnp.ones((5, 2)))
