"""The region proposal network against torch's layers and losses, and brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.models.detection import rpn
from dl_core.models.detection.rpn import RPN, RPNHead

SIZE = 48, 64
STRIDE = 8
SETTINGS = RPN(width=6, sizes=(8.0, 20.0), ratios=(0.5, 1.0, 2.0), after=7, before=40)


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(0), (2, 6, 8, 5))


@pytest.fixture(scope="module")
def anchors(features):
    return rpn.anchors_of(SETTINGS, features, STRIDE)


@pytest.fixture(scope="module")
def said(anchors):
    """Logits and codes of two images."""
    keys = jax.random.split(jax.random.key(1))
    logits = jax.random.normal(keys[0], (2, len(anchors)))
    return logits, jax.random.normal(keys[1], (2, len(anchors), 4)) / 4


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def decoded(code, anchor):
    """As the paper's equation 2 has it, with the inverse of the logarithm."""
    side, middle = anchor[2:] - anchor[:2], (anchor[2:] + anchor[:2]) / 2
    center, half = middle + code[:2] * side, side * np.exp(code[2:]) / 2
    return np.concatenate([center - half, center + half])


def encoded(box, anchor):
    side, middle = anchor[2:] - anchor[:2], (anchor[2:] + anchor[:2]) / 2
    apart = (box[2:] + box[:2]) / 2 - middle
    return np.concatenate([apart / side, np.log((box[2:] - box[:2]) / side)])


def test_the_head_is_torchs_convolutions_in_the_order_of_the_anchors(features):
    head = RPNHead(SETTINGS)
    variables = head.init(jax.random.key(2), features)
    logits, codes = head.apply(variables, features)

    def conv(name, x):
        layer = jax.tree.map(np.asarray, variables["params"][name])
        kernel = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1))
        return torch.nn.functional.conv2d(
            x, kernel, torch.tensor(layer["bias"]), padding=kernel.shape[-1] // 2
        )

    x = torch.tensor(np.array(features).transpose(0, 3, 1, 2))
    x = conv("shared", x).relu()
    expected = conv("objectness", x).permute(0, 2, 3, 1).reshape(2, -1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    # (anchor, coordinate) of each place, as the published implementations lay them out.
    expected = conv("boxes", x).view(2, 6, 4, *features.shape[1:3])
    expected = expected.permute(0, 3, 4, 1, 2).reshape(2, -1, 4)
    np.testing.assert_allclose(codes, expected, atol=1e-5)


def test_each_place_of_the_features_has_its_anchors_together(anchors):
    assert anchors.shape == (6 * 8 * 6, 4)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    x, y = np.meshgrid(np.arange(8) * 8 + 4, np.arange(6) * 8 + 4)
    expected = np.stack([x, y], -1).reshape(-1, 2).repeat(6, axis=0)
    np.testing.assert_allclose(centers, expected, atol=1e-5)


def test_proposals_are_those_of_greedy_suppression(anchors, said):
    propose = jax.jit(rpn.propose, static_argnums=4)
    proposals = jax.tree.map(np.asarray, propose(SETTINGS, *said, anchors, SIZE))
    host = np.asarray(anchors, np.float64)
    for image in range(2):
        logits, codes = (np.asarray(x[image], np.float64) for x in said)
        kept = []
        for i in np.argsort(-logits)[: SETTINGS.before]:
            box = decoded(codes[i], host[i])
            box = np.clip(box, 0, [SIZE[1], SIZE[0]] * 2)
            empty = np.any(box[2:] <= box[:2])
            if not empty and all(iou(box, other) <= SETTINGS.iou for other in kept):
                kept.append(box)
        kept = np.array(kept[: SETTINGS.after])
        assert proposals.mask[image].sum() == len(kept)
        np.testing.assert_allclose(proposals.boxes[image, : len(kept)], kept, atol=1e-3)


def test_what_is_not_proposed_is_padding(anchors, said):
    few = dataclasses.replace(SETTINGS, before=5, after=30)
    boxes, mask = jax.jit(rpn.propose, static_argnums=4)(few, *said, anchors, SIZE)
    assert boxes.shape == (2, 30, 4)
    assert mask.sum(1).min() >= 1
    assert mask.sum(1).max() <= 5
    assert not boxes[~mask].any()


def test_no_gradient_goes_through_the_proposals(anchors, said):
    def total(said):
        return rpn.propose(SETTINGS, *said, anchors, SIZE).boxes.sum()

    assert not any(x.any() for x in jax.jit(jax.grad(total))(said))


@pytest.mark.parametrize("inside", [False, True])
def test_losses_are_torchs_over_all_anchors_that_count(anchors, said, inside):
    settings = dataclasses.replace(
        SETTINGS, inside=inside, samples=2 * len(anchors), share=0.5
    )
    boxes = jnp.array([[5, 6, 14, 13], [30, 20, 50, 41], [0, 0, 0, 0]], jnp.float32)
    labels = jnp.array([2, 0, -1])
    logits, codes = said[0][0], said[1][0]
    found = jax.jit(rpn.losses, static_argnums=6)(
        settings, logits, codes, anchors, boxes, labels, SIZE, jax.random.key(3)
    )

    real = np.asarray(boxes[:2])
    anchors = np.asarray(anchors)
    overlaps = np.array([[iou(a, b) for b in real] for a in anchors])
    best, whose = overlaps.max(1), overlaps.argmax(1)
    positive = (best >= 0.7) | np.isclose(overlaps, overlaps.max(0), atol=1e-6).any(1)
    counted = positive | (best < 0.3)
    if inside:
        low, high = anchors[:, :2], anchors[:, 2:]
        counted &= (low >= 0).all(1) & (high <= [SIZE[1], SIZE[0]]).all(1)
    assert 2 <= (positive & counted).sum() < counted.sum() < len(anchors)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(np.asarray(logits)[counted]),
        torch.tensor(positive[counted], dtype=torch.float32),
    )
    np.testing.assert_allclose(found["objectness"], expected, rtol=1e-5)
    own = np.flatnonzero(positive & counted)
    targets = [encoded(real[whose[i]], anchors[i]) for i in own]
    expected = torch.nn.functional.smooth_l1_loss(
        torch.tensor(np.asarray(codes)[own]),
        torch.tensor(np.array(targets), dtype=torch.float32),
        beta=1 / 9,
        reduction="sum",
    )
    np.testing.assert_allclose(
        found["proposal_boxes"], expected / counted.sum(), rtol=1e-4
    )


def test_losses_of_an_image_without_objects_are_finite_with_their_gradients(
    anchors, said
):
    def loss(said):
        boxes, labels = jnp.zeros((3, 4)), jnp.full(3, -1)
        key = jax.random.key(3)
        found = rpn.losses(SETTINGS, *said, anchors, boxes, labels, SIZE, key)
        assert set(found) == {"objectness", "proposal_boxes"}
        return sum(found.values())

    first = jax.tree.map(lambda x: x[0], said)
    value, gradient = jax.jit(jax.value_and_grad(loss))(first)
    assert value > 0
    assert all(np.isfinite(x).all() for x in gradient)
    assert not gradient[1].any()
