"""Which anchor learns which object, and which anchors count: matching and sampling.

All are for one image, with static shapes: objects are padded to a fixed number, with
`valid` false for what is padding, and a choice of anchors is a mask. Of equals the
first is taken. None has a gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from dl_core.ops.nms import nms

BACKGROUND = -1
IGNORED = -2


def match(
    iou: Float[Array, "anchors truths"],
    valid: Bool[Array, " truths"],
    positive: ArrayLike,
    negative: ArrayLike,
    low_quality: bool = False,
) -> Int[Array, " anchors"]:
    """Returns the object that each anchor learns, by two thresholds (Faster R-CNN).

    As torchvision's Matcher does, except that an object that no anchor overlaps is
    matched with none (there, with every anchor that overlaps nothing).

    Args:
      iou: intersection over union of each anchor and object.
      valid: which objects are real.
      positive: an anchor with at least this learns the object it overlaps most.
      negative: one with less than this learns the background.
      low_quality: an anchor that an object overlaps more than any other (or as much)
        learns the object which *it* overlaps most, however little that is.

    Returns:
      the object's index, or BACKGROUND, or IGNORED between the thresholds.
    """
    iou = _of_real(iou, valid)
    best = jnp.max(iou, axis=1, initial=0)
    truth = jnp.argmax(iou, axis=1).astype(jnp.int32)
    matched = jnp.where(best < negative, BACKGROUND, IGNORED)
    chosen = best >= positive
    if low_quality:
        highest = jnp.max(iou, axis=0, keepdims=True)
        chosen |= jnp.any((iou == highest) & (highest > 0), axis=1)
    return jnp.where(chosen, truth, matched)


def bipartite(
    iou: Float[Array, "anchors truths"],
    valid: Bool[Array, " truths"],
    threshold: ArrayLike = 0.5,
) -> Int[Array, " anchors"]:
    """Returns the object that each anchor learns: one each at least (SSD).

    Liu et al., 2016, section 2.2, as the authors compute it: of all pairs the one that
    overlaps most is matched and leaves, then the next, until each object has an anchor
    of its own. Then any other anchor learns the object it overlaps most, if by as much
    as the threshold.

    Args:
      iou: intersection over union of each anchor and object.
      valid: which objects are real.
      threshold: for the anchors that are no object's own.

    Returns:
      the object's index, or BACKGROUND.
    """
    iou = _of_real(iou, valid)
    anchors, truths = iou.shape
    # Not argmax, which XLA's CPU backend computes a number at a time.
    best = jnp.max(iou, axis=1, keepdims=True, initial=0)
    truth = jnp.min(jnp.where(iou == best, jnp.arange(truths), truths), axis=1)
    matched = jnp.where(best[:, 0] >= threshold, truth, BACKGROUND)
    # Others take fewer anchors than there are objects: each object gets one of these.
    left, nearest = jax.lax.top_k(iou.T, min(anchors, truths))

    def take(state):
        own, left = state
        row, place = jnp.divmod(jnp.argmax(left), left.shape[1])
        anchor, mine = nearest[row, place], jnp.arange(truths) == row
        left = jnp.where(mine[:, None] | (nearest == anchor), -1.0, left)
        return jnp.where(mine, anchor, own), left

    own = jnp.full(truths, anchors)
    own, _ = jax.lax.while_loop(lambda s: jnp.any(s[1] > 0), take, (own, left))
    # Objects without an anchor point outside, and are dropped.
    matched = matched.at[own].set(jnp.arange(truths), mode="drop")
    return matched.astype(jnp.int32)


def balanced(
    key: PRNGKeyArray, matched: Int[Array, " anchors"], size: int, share: float
) -> Bool[Array, " anchors"]:
    """Returns anchors drawn for a loss, a share of them with objects (Fast R-CNN).

    Args:
      key: of the draw.
      matched: what `match` returns; ignored anchors are never drawn.
      size: anchors to draw.
      share: of anchors with objects, at most. Where there are fewer, more of the
        background are drawn.
    """
    order = jax.random.uniform(key, matched.shape)
    objects = _largest(order, matched >= 0, int(size * share))
    background = _largest(order, matched == BACKGROUND, size - objects.sum())
    return objects | background


def hard_negatives(
    losses: Float[Array, " anchors"],
    positive: Bool[Array, " anchors"],
    ratio: ArrayLike = 3.0,
    negative: Bool[Array, " anchors"] | None = None,
) -> Bool[Array, " anchors"]:
    """Returns the negatives of highest loss, so many for each positive (SSD).

    Args:
      losses: what each anchor would lose as background.
      positive: anchors with objects. Where there are none, no negative is chosen.
      ratio: negatives for each positive, at most.
      negative: which may be chosen: without it all that are not positive.
    """
    negative = ~positive if negative is None else negative
    count = jnp.floor(ratio * positive.sum()).astype(jnp.int32)
    return _largest(losses, negative, count)


def ohem(
    boxes: Float[Array, "anchors 4"],
    losses: Float[Array, " anchors"],
    count: int,
    iou: ArrayLike = 0.7,
) -> Bool[Array, " anchors"]:
    """Returns the anchors of highest loss, none close to another (OHEM).

    Shrivastava, Gupta & Girshick, "Training region-based object detectors with online
    hard example mining", CVPR 2016: boxes that overlap have losses that are alike, and
    would count one error several times; so they are suppressed by NMS with the loss as
    score, and the top ones of the others learn.

    Args:
      boxes: xyxy.
      losses: of each; what loses nothing (0) is never chosen.
      count: anchors to choose, at most.
      iou: above this, of two boxes the one with the higher loss stays.
    """
    scores = jnp.where(losses > 0, losses, -jnp.inf)
    indices, kept = nms(boxes, scores, iou, count)
    return jnp.zeros(losses.shape, bool).at[indices].max(kept)


def _of_real(iou, valid):
    """Returns the overlaps with real objects; -1 with padding."""
    return jnp.where(valid, jax.lax.stop_gradient(iou), -1.0)


def _largest(scores, eligible, count):
    """Returns the mask of so many of the eligible with the largest scores.

    The least score among them is found bit by bit, as its rank among the float's bits:
    in 32 rounds of counting, many times faster on CPUs than to sort.
    """
    scores = jax.lax.stop_gradient(scores).astype(jnp.float32) + 0.0  # No -0.
    bits, sign = jax.lax.bitcast_convert_type(scores, jnp.uint32), jnp.uint32(1 << 31)
    rank = jnp.where(eligible, jnp.where(bits < sign, bits | sign, ~bits), 0)

    def narrow(place, least):
        larger = least | (sign >> place.astype(jnp.uint32))
        return jnp.where(jnp.sum(rank >= larger) >= count, larger, least)

    least = jax.lax.fori_loop(0, 32, narrow, jnp.uint32(0))
    above, equal = rank > least, (rank == least) & eligible
    # Of equal ones the first.
    return above | (equal & (jnp.cumsum(equal) <= count - above.sum()))
