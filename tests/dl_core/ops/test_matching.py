"""Matching and sampling against the same rules in plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.ops import matching
from dl_core.ops.boxes import pairwise_iou
from dl_core.ops.matching import BACKGROUND, IGNORED

few = settings(max_examples=30, deadline=None, derandomize=True)
ANCHORS, TRUTHS = 24, 5

match = jax.jit(matching.match, static_argnames="low_quality")
bipartite = jax.jit(matching.bipartite)
balanced = jax.jit(matching.balanced, static_argnums=(2, 3))
hard_negatives = jax.jit(matching.hard_negatives)
ohem = jax.jit(matching.ohem, static_argnums=2)


@st.composite
def overlaps(draw):
    """IoU of anchors and objects, some with ties, and which objects are real."""
    random = np.random.default_rng(draw(st.integers(0, 9_999)))
    coarse = draw(st.sampled_from([5, 1_000]))
    iou = np.maximum(random.integers(-coarse // 2, coarse, (ANCHORS, TRUTHS)), 0)
    valid = np.arange(TRUTHS) < draw(st.integers(0, TRUTHS))
    return (iou / coarse).astype(np.float32), valid


def matched_one_by_one(iou, valid, positive, negative, low_quality):
    """Returns what torchvision's Matcher does, in loops."""
    matched = []
    for row in iou:
        real = [value if ok else -1 for value, ok in zip(row, valid, strict=True)]
        best = int(np.argmax(real))
        if real[best] >= positive:
            matched.append(best)
        elif real[best] < negative:
            matched.append(BACKGROUND)
        else:
            matched.append(IGNORED)
    for truth in np.flatnonzero(valid) if low_quality else ():
        highest = iou[:, truth].max()
        for anchor in np.flatnonzero((iou[:, truth] == highest) & (highest > 0)):
            real = np.where(valid, iou[anchor], -1)
            matched[anchor] = int(np.argmax(real))
    return matched


@few
@given(overlaps(), st.booleans())
def test_match_is_torchvisions_matcher(case, low_quality):
    iou, valid = case
    expected = matched_one_by_one(iou, valid, 0.7, 0.3, low_quality)
    found = match(iou, valid, 0.7, 0.3, low_quality=low_quality)
    np.testing.assert_array_equal(found, expected)


def test_an_object_far_from_all_anchors_is_matched_with_none():
    iou = jnp.zeros((4, 2)).at[1, 0].set(0.1)
    found = match(iou, jnp.array([True, True]), 0.7, 0.3, low_quality=True)
    np.testing.assert_array_equal(found, [BACKGROUND, 0, BACKGROUND, BACKGROUND])


@few
@given(overlaps())
def test_bipartite_is_the_greedy_assignment(case):
    iou, valid = case
    iou = iou + np.random.default_rng(0).random(iou.shape, np.float32) * 1e-4
    iou *= iou > 1e-4
    expected = []
    for row in iou:
        real = np.where(valid, row, -1)
        expected.append(int(np.argmax(real)) if real.max() >= 0.5 else BACKGROUND)
    pairs = sorted(np.ndindex(iou.shape), key=lambda pair: -iou[pair])
    anchors, truths = set(), set()
    for anchor, truth in pairs:
        free = anchor not in anchors and truth not in truths
        if valid[truth] and free and iou[anchor, truth] > 0:
            expected[anchor] = truth
            anchors.add(anchor)
            truths.add(truth)
    np.testing.assert_array_equal(bipartite(iou, valid), expected)


@few
@given(overlaps())
def test_each_object_that_can_has_an_anchor_of_its_own_whatever_the_ties(case):
    iou, valid = case
    iou = np.maximum(iou, 0.1)
    found = set(np.asarray(bipartite(iou, valid)).tolist())
    assert found >= set(np.flatnonzero(valid).tolist())


@pytest.mark.parametrize(
    ("objects", "background", "expected"),
    [(10, 10, (4, 12)), (2, 30, (2, 14)), (3, 5, (3, 5)), (0, 20, (0, 16))],
)
def test_balanced_draws_the_share_and_fills_up_with_background(
    objects, background, expected
):
    matched = np.full(40, IGNORED)
    matched[:objects] = 3
    matched[objects : objects + background] = BACKGROUND
    if objects == background == 10:
        matched[20:] = BACKGROUND
    drawn = np.asarray(balanced(jax.random.key(0), matched, 16, 0.25))
    counted = (matched[drawn] >= 0).sum(), (matched[drawn] == BACKGROUND).sum()
    assert counted == expected
    assert drawn.sum() == sum(expected)


def test_balanced_draws_each_equally_often():
    matched = jnp.where(jnp.arange(12) < 4, 0, BACKGROUND)
    keys = jax.random.split(jax.random.key(0), 2_000)
    drawn = jax.vmap(lambda key: matching.balanced(key, matched, 4, 0.5))(keys)
    np.testing.assert_allclose(drawn[:, :4].mean(0), 2 / 4, atol=0.05)
    np.testing.assert_allclose(drawn[:, 4:].mean(0), 2 / 8, atol=0.05)


@few
@given(st.integers(0, 999), st.integers(0, 8))
def test_hard_negatives_are_the_top_three_for_each_positive(seed, positives):
    random = np.random.default_rng(seed)
    losses = random.random(20, np.float32)
    positive = random.permutation(20) < positives
    found = np.asarray(hard_negatives(losses, positive))
    ranked = [i for i in np.argsort(-losses) if not positive[i]]
    assert set(np.flatnonzero(found)) == set(ranked[: 3 * positives])


def test_hard_negatives_leave_out_what_may_not_be_chosen():
    losses = jnp.array([5.0, 4, 3, 2, 1])
    positive = jnp.array([False, False, False, False, True])
    negative = jnp.array([False, True, True, True, False])
    found = hard_negatives(losses, positive, 2.0, negative)
    np.testing.assert_array_equal(found, [False, True, True, False, False])


@few
@given(st.integers(0, 999))
def test_ohem_is_the_top_losses_after_suppression(seed):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 20, (30, 2))
    sizes = random.uniform(5, 20, (30, 2))
    boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
    losses = random.random(30, np.float32) * (random.random(30) < 0.8)
    iou = np.asarray(pairwise_iou(*[jnp.asarray(boxes)] * 2))
    kept = []
    for i in np.argsort(-losses):
        if losses[i] > 0 and all(iou[i, j] <= 0.4 for j in kept):
            kept.append(i)
    found = ohem(boxes, losses, 12, 0.4)
    assert set(np.flatnonzero(found)) == set(kept[:12])
