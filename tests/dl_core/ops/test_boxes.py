"""Overlaps of boxes against torch formulas, exact fractions and a count of pixels."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.ops import boxes as ops

few = settings(max_examples=20, deadline=None, derandomize=True)
pairwise_iou = jax.jit(ops.pairwise_iou)
corner = st.integers(0, 12)
whole_boxes = st.lists(
    st.tuples(corner, corner, corner, corner), min_size=3, max_size=3
)
PADDING = [0.0, 0.0, 0.0, 0.0]


def random_boxes(count, seed=0):
    random = np.random.default_rng(seed)
    low = random.uniform(0, 50, (count, 2))
    sides = random.uniform(1, 40, (count, 2))
    return jnp.asarray(np.concatenate([low, low + sides], 1), jnp.float32)


def torch_measure(a, b, name):
    """The published formulas of IoU, GIoU and DIoU, by torch."""
    low, high = torch.max(a[..., :2], b[..., :2]), torch.min(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    union = union - intersection
    around = torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    less = {
        "iou": 0,
        "giou": (around.prod(-1) - union) / around.prod(-1),
        "diou": (apart**2).sum(-1) / (around**2).sum(-1),
    }
    return intersection / union - less[name]


def doubles(boxes):
    return torch.tensor(np.asarray(boxes), dtype=torch.float64)


@pytest.mark.parametrize("name", ["iou", "giou", "diou"])
def test_overlaps_are_the_published_formulas(name):
    a, b = random_boxes(7), random_boxes(9, seed=1)
    expected = torch_measure(doubles(a)[:, None], doubles(b), name).numpy()
    pairs = getattr(ops, f"pairwise_{name}")(a, b)
    np.testing.assert_allclose(pairs, expected, atol=1e-5)
    each = getattr(ops, name)(a, b[:7])
    np.testing.assert_allclose(each, np.diagonal(expected), atol=1e-5)


@few
@given(whole_boxes, whole_boxes)
def test_iou_counts_pixels_whatever_the_corners(a, b):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    found = pairwise_iou(jnp.array(a, jnp.float32), jnp.array(b, jnp.float32))
    for i, j in np.ndindex(3, 3):
        one, other = pixels(a[i]), pixels(b[j])
        expected = len(one & other) / max(len(one | other), 1)
        assert found[i, j] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("measure", [ops.iou, ops.giou, ops.diou])
def test_padding_overlaps_nothing_and_has_finite_gradients(measure):
    box = jnp.array([2.0, 2.0, 6.0, 5.0])
    padding = jnp.array(PADDING)
    assert measure(padding, padding) == 0
    assert measure(box, padding) <= 0
    gradient = jax.jit(jax.grad(measure, (0, 1)))
    for pair in ((box, padding), (padding, box), (padding, padding), (box, box)):
        assert all(jnp.isfinite(part).all() for part in gradient(*pair))


@pytest.mark.parametrize("name", ["giou", "diou"])
def test_gradients_are_torchs(name):
    a, b = random_boxes(5), random_boxes(5, seed=1)
    inputs = doubles(a).requires_grad_()
    torch_measure(inputs, doubles(b), name).sum().backward()
    found = jax.jit(jax.grad(lambda a: getattr(ops, name)(a, b).sum()))(a)
    np.testing.assert_allclose(found, inputs.grad.numpy(), atol=1e-5)


def test_conversions_undo_each_other_and_clipping_keeps_what_is_inside():
    boxes = random_boxes(6)
    back = ops.to_corners(ops.to_centers(boxes))
    np.testing.assert_allclose(back, boxes, atol=1e-5)
    seen = ops.clip(jnp.array([[-3.0, 2.0, 9.0, 30.0], [50.0, 1.0, 60.0, 3.0]]), (8, 6))
    np.testing.assert_array_equal(seen, [[0, 2, 6, 8], [6, 1, 6, 3]])
    np.testing.assert_array_equal(ops.area(seen), [36, 0])


def test_lists_of_boxes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(n, 4\) and \(m, 4\)"):
        inspect.unwrap(ops.pairwise_iou)(jnp.zeros((3, 5)), jnp.zeros((2, 4)))
