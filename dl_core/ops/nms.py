"""Non-maximum suppression: of boxes that overlap, the one with the best score stays.

nms        greedy: a box goes where its IoU with a better one that stays is above a
           threshold; as `NonMaxSuppression` of ONNX and torchvision's `nms`
soft_nms   a box's score falls with its overlap instead (Bodla et al., "Soft-NMS:
           improving object detection with one line of code", ICCV 2017)
suppress   class by class, then the best of all classes: the last step of a detector

All have static shapes. They take any leading dimensions, all of whose lists of boxes
are treated at once: that is faster than `jax.vmap` over them, which does as well.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dl_core.ops import boxes as ops
from dl_core.ops.boxes import Detections

_TILE = 32
"""Boxes that are decided together: as many as a word has bits."""
_SORTED = 128
"""Boxes that are sorted at once of a long list; mostly no more are needed."""


def nms(
    boxes: Float[Array, "*batch n 4"],
    scores: Float[Array, "*batch n"],
    threshold: ArrayLike,
    most: int,
) -> tuple[Int[Array, "*batch {most}"], Bool[Array, "*batch {most}"]]:
    """Returns the boxes that stay, by falling score; of equal scores the first.

    Boxes are decided 32 at a time, the best first. They are compared with those that
    stay so far and among themselves, so no n × n matrix is made. It ends when `most`
    stay, and the rest is not even sorted.

    Args:
      boxes: xyxy. Those without an area overlap nothing, and so stay.
      scores: -inf or NaN for a box that never stays, as for padding.
      threshold: the largest IoU, from 0 on, with a better box that stays.
      most: boxes that may stay.

    Returns:
      Their numbers, and a mask; the number is 0 where the mask is False.

    Raises:
      ValueError: where shapes do not fit each other.
    """
    _check(boxes, scores)
    *batch, n = scores.shape
    boxes, left = jax.lax.stop_gradient((boxes, scores))
    more = -n % _TILE
    boxes = jnp.pad(boxes.reshape(-1, n, 4), ((0, 0), (0, more), (0, 0)))
    left = jnp.where(left > -jnp.inf, left, -jnp.inf).reshape(-1, n)
    left = jnp.pad(left, ((0, 0), (0, more)), constant_values=-jnp.inf)
    size = n + more if n <= 2 * _SORTED else _SORTED
    row = jnp.arange(len(left))[:, None]

    def unfinished(carry):
        left, (_, _, count) = carry
        return jnp.any((left > -jnp.inf).any(1) & (count < most))

    def decide_best(carry):
        left, stayed = carry
        best, order = jax.lax.top_k(left, size)
        chosen = boxes[row, order]
        sides = jnp.concatenate([chosen, ops.area(chosen)[..., None]], axis=-1)
        sorted_ = sides.swapaxes(1, 2), order, best > -jnp.inf

        def decide_tile(number, stayed):
            kept, numbers, count = stayed
            new, order, alive = (
                jax.lax.dynamic_slice_in_dim(x, number * _TILE, _TILE, axis=-1)
                for x in sorted_
            )
            alive &= ~(_overlaps(new, kept) > threshold).any(-1)
            stays = _greedy(alive, _overlaps(new, new) > threshold)
            place = count[:, None] + jnp.cumsum(stays, axis=1) - 1
            place = jnp.where(stays, place, most)
            kept = kept.at[row, :, place].set(new.swapaxes(1, 2), mode="drop")
            numbers = numbers.at[row, place].set(order, mode="drop")
            return kept, numbers, jnp.minimum(count + stays.sum(1), most)

        left = left.at[row, order].set(-jnp.inf)
        return left, jax.lax.fori_loop(0, size // _TILE, decide_tile, stayed)

    kept = jnp.zeros((len(left), 5, most), boxes.dtype)
    numbers = jnp.zeros((len(left), most), jnp.int32)
    stayed = kept, numbers, jnp.zeros(len(left), jnp.int32)
    _, (_, numbers, count) = jax.lax.while_loop(unfinished, decide_best, (left, stayed))
    mask = jnp.arange(most) < count[:, None]
    return numbers.reshape(*batch, most), mask.reshape(*batch, most)


def soft_nms(
    boxes: Float[Array, "*batch n 4"],
    scores: Float[Array, "*batch n"],
    most: int,
    *,
    method: Literal["gaussian", "linear"] = "gaussian",
    sigma: ArrayLike = 0.5,
    threshold: ArrayLike = 0.3,
    least: ArrayLike = 0.001,
) -> tuple[
    Int[Array, "*batch {most}"],
    Bool[Array, "*batch {most}"],
    Float[Array, "*batch {most}"],
]:
    """Returns boxes by falling score, each of which lowers its neighbours' scores.

    Again and again the box with the best score is taken, and the scores of the others
    are multiplied by a factor of their IoU with it (Bodla et al., figure 2).

    Args:
      boxes: xyxy.
      scores: not negative; -inf or NaN for a box that never stays.
      most: boxes that may stay.
      method: "gaussian", exp(-IoU² / sigma); or "linear", 1 - IoU where that is at
        least the threshold.
      sigma: of "gaussian".
      threshold: of "linear".
      least: a box whose score has fallen below it is gone.

    Returns:
      Their numbers, a mask, and their scores when they were taken; number and score are
      0 where the mask is False.

    Raises:
      ValueError: where shapes do not fit each other.
    """
    _check(boxes, scores)
    *batch, n = scores.shape
    boxes, left = boxes.reshape(-1, n, 4), scores.reshape(-1, n)
    left = jnp.where(left > -jnp.inf, left, -jnp.inf)

    def take(left, _):
        number = left.argmax(1)[:, None]
        score = jnp.take_along_axis(left, number, axis=1)
        best = jnp.take_along_axis(boxes, number[..., None], axis=1)
        overlap = ops.iou(best, boxes)
        if method == "gaussian":
            factor = jnp.exp(-(overlap**2) / sigma)
        else:
            factor = jnp.where(overlap >= threshold, 1 - overlap, 1)
        taken = jnp.arange(n) == number
        left = jnp.where(taken, -jnp.inf, left * factor)
        return left, (number[:, 0], score[:, 0])

    _, (numbers, found) = jax.lax.scan(take, left, length=most)
    numbers, found = numbers.T, found.T
    mask = found >= least
    numbers, found = jnp.where(mask, numbers, 0), jnp.where(mask, found, 0)
    return tuple(x.reshape(*batch, most) for x in (numbers, mask, found))


def suppress(
    boxes: Float[Array, "*boxes 4"],
    scores: Float[Array, "*batch n classes"],
    *,
    iou: ArrayLike = 0.5,
    least: ArrayLike = 0.05,
    candidates: int = 300,
    most: int = 100,
) -> Detections:
    """Returns the detections of an image: NMS within each class, then the best of all.

    Args:
      boxes: xyxy; one for all classes, "*batch n 4", or one for each, "*batch n
        classes 4".
      scores: of each class, that of the background left out.
      iou: the threshold of `nms`.
      least: boxes with a lower score are left out.
      candidates: boxes of a class that `nms` sees, those with the best scores.
      most: detections of an image.

    Raises:
      ValueError: where shapes do not fit each other.
    """
    *batch, n, classes = scores.shape
    if boxes.shape == (*batch, n, 4):
        boxes = jnp.broadcast_to(boxes[..., None, :], (*scores.shape, 4))
    if boxes.shape != (*scores.shape, 4):
        raise ValueError(
            f"Boxes (n, 4) or (n, classes, 4) and scores (n, classes) are asked for, "
            f"not {boxes.shape} and {scores.shape}."
        )
    boxes, scores = jnp.moveaxis(boxes, -3, -2), scores.swapaxes(-1, -2)
    scores = jnp.where(scores >= least, scores, -jnp.inf)
    scores, order = jax.lax.top_k(scores, min(candidates, n))
    boxes = jnp.take_along_axis(boxes, order[..., None], axis=-2)
    numbers, kept = nms(boxes, scores, iou, most)
    boxes = jnp.take_along_axis(boxes, numbers[..., None], axis=-2)
    scores = jnp.where(kept, jnp.take_along_axis(scores, numbers, axis=-1), -jnp.inf)
    scores, order = jax.lax.top_k(scores.reshape(*batch, classes * most), most)
    boxes = boxes.reshape(*batch, classes * most, 4)
    boxes = jnp.take_along_axis(boxes, order[..., None], axis=-2)
    found = scores > -jnp.inf
    return Detections(
        jnp.where(found[..., None], boxes, 0),
        jnp.where(found, scores, 0),
        jnp.where(found, order // most, -1),
    )


def _overlaps(
    a: Float[Array, "lists 5 n"], b: Float[Array, "lists 5 m"]
) -> Float[Array, "lists n m"]:
    """Returns the IoU of boxes, given as four sides and the area; NaN without any.

    Written plane by plane, since the compiler then takes several of `b` at once.
    """
    a, b = a[..., None], b[:, :, None]
    left, right = jnp.maximum(a[:, 0], b[:, 0]), jnp.minimum(a[:, 2], b[:, 2])
    top, bottom = jnp.maximum(a[:, 1], b[:, 1]), jnp.minimum(a[:, 3], b[:, 3])
    intersection = jnp.maximum(right - left, 0) * jnp.maximum(bottom - top, 0)
    return intersection / (a[:, 4] + b[:, 4] - intersection)


def _greedy(
    alive: Bool[Array, "lists 32"], overlaps: Bool[Array, "lists 32 32"]
) -> Bool[Array, "lists 32"]:
    """Returns which boxes of a tile, the best first, stay by greedy suppression."""
    bits = jnp.uint32(1) << jnp.arange(_TILE, dtype=jnp.uint32)
    rivals = jnp.sum(jnp.where(overlaps, bits, 0), axis=-1, dtype=jnp.uint32)
    stay = jnp.zeros(len(alive), jnp.uint32)  # The boxes that do, a bit each.
    for i in range(_TILE):
        stays = alive[:, i] & (rivals[:, i] & stay == 0)
        stay |= jnp.where(stays, bits[i], 0)
    return stay[:, None] & bits != 0


def _check(boxes: Array, scores: Array) -> None:
    if boxes.shape != (*scores.shape, 4) or not scores.shape or not scores.shape[-1]:
        raise ValueError(
            f"Boxes (…, n, 4) and scores (…, n) with n > 0 are asked for, not "
            f"{boxes.shape} and {scores.shape}."
        )
