"""Which detection is of which object: what the measures of detection share.

All of it is vectorised over images: the pairs of a detection and an object that overlap
are few, and only they are kept. The greedy matching then takes the best detection of
every image and class at once, then every second best, and so on.
"""

import itertools
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int

_PAIRS = 2**20
"""Pairs whose overlap is computed at once, which bounds the memory."""


class Found(NamedTuple):
    """Detections in any number of images."""

    image: Int[np.ndarray, " found"]
    """The number of the image."""
    boxes: Float[np.ndarray, "found 4"]
    """xyxy in pixels."""
    scores: Float[np.ndarray, " found"]
    labels: Int[np.ndarray, " found"]

    def take(self, rows: np.ndarray) -> Self:
        """Returns some of them, by number or by mask."""
        return type(self)(*(array[rows] for array in self))

    def ranked(self, most: int | None = None) -> Self:
        """Returns them by falling score; ties by image, then as they were given.

        Args:
          most: of an image and a class only so many are kept.
        """
        found = self.take(np.lexsort((self.image, -self.scores)))
        if most is None:
            return found
        return found.take(ranks(cells(found.image, found.labels)) < most)


class Truth(NamedTuple):
    """Objects in any number of images."""

    image: Int[np.ndarray, " truth"]
    boxes: Float[np.ndarray, "truth 4"]
    """xyxy in pixels."""
    labels: Int[np.ndarray, " truth"]
    ignored: Bool[np.ndarray, " truth"]
    """VOC's difficult objects, COCO's crowds: found or not, they do not count."""


class Pairs(NamedTuple):
    """Detections and objects of an image that overlap, ordered by detection."""

    found: Int[np.ndarray, " pairs"]
    truth: Int[np.ndarray, " pairs"]
    iou: Float[np.ndarray, " pairs"]

    def take(self, rows: np.ndarray) -> Self:
        """Returns some of them, by number or by mask."""
        return type(self)(*(array[rows] for array in self))


def cells(
    image: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Returns a number of each image and class."""
    return image.astype(np.int64) * 2**20 + labels


def ranks(cell: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns how many of the same cell come before each."""
    order = np.argsort(cell, kind="stable")
    in_order = cell[order]
    ranked = np.empty(len(cell), np.int64)
    ranked[order] = np.arange(len(cell)) - np.searchsorted(in_order, in_order)
    return ranked


def overlaps(
    found: Found,
    truth: Truth,
    least: float,
    *,
    any_class: bool = False,
    inclusive: bool = False,
    crowds: bool = False,
) -> Pairs:
    """Returns the pairs of an image whose IoU is at least `least`, which is above 0.

    Args:
      found: detections.
      truth: objects.
      least: the least IoU.
      any_class: pairs of two classes, too.
      inclusive: the right and lower edges are in the box: from 0 to 9 are 10 pixels, as
        in VOC, not 9.
      crowds: with an ignored object the overlap is the share of the detection that is
        in it, as COCO has it for a crowd.
    """
    keys = [
        each.image if any_class else cells(each.image, each.labels)
        for each in (found, truth)
    ]
    order = np.argsort(keys[1], kind="stable")
    first = np.searchsorted(keys[1][order], keys[0], "left")
    counts = np.searchsorted(keys[1][order], keys[0], "right") - first
    ends = np.cumsum(counts)
    parts, start = [], 0
    while start < len(counts):
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, "right")))
        few = counts[start:stop]
        of_found = np.repeat(np.arange(start, stop), few)
        place = np.arange(len(of_found)) - np.repeat(
            ends[start:stop] - few - before, few
        )
        of_truth = order[first[of_found] + place]
        iou = _iou(
            found.boxes[of_found],
            truth.boxes[of_truth],
            truth.ignored[of_truth] & crowds,
            float(inclusive),
        )
        parts.append(Pairs(of_found, of_truth, iou).take(iou >= least))
        start = stop
    if not parts:
        return Pairs(np.empty(0, int), np.empty(0, int), np.empty(0))
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray, edge: float) -> np.ndarray:
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    sides = np.maximum(high - low + edge, 0)
    inside = sides[:, 0] * sides[:, 1]
    whole, other = (
        (box[:, 2] - box[:, 0] + edge) * (box[:, 3] - box[:, 1] + edge)
        for box in (a, b)
    )
    union = np.where(crowd, whole, whole + other - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def match(
    pairs: Pairs,
    found: Found,
    thresholds: Float[np.ndarray, " thresholds"],
    *,
    ignored: Bool[np.ndarray, " truth"],
    crowd: Bool[np.ndarray, " truth"],
) -> Int[np.ndarray, "thresholds found"]:
    """Gives each detection an object, the best detections first, as COCO does.

    A detection takes the object of its class that it overlaps most (of equals the
    last) and that none has taken; an ignored one only if there is no other.

    Args:
      pairs: of the same class, as of `overlaps`.
      found: the detections, ranked.
      thresholds: the least IoU; each is a matching of its own.
      ignored: the objects that do not count.
      crowd: those that any number of detections may take.

    Returns:
      The object of each detection; -1 where it has none.
    """
    matched = np.full((len(thresholds), len(found.image)), -1, np.int64)
    if not len(pairs.found):
        return matched
    which, number = np.unique(pairs.found, return_inverse=True)
    turn = ranks(cells(found.image, found.labels)[which])[number]
    order = np.argsort(turn, kind="stable")
    pairs = pairs.take(order)
    turns = np.searchsorted(turn[order], np.arange(turn.max() + 2))
    by_worth = np.lexsort((pairs.truth, pairs.iou, ~ignored[pairs.truth]))
    worth = np.empty(len(by_worth), np.int64)
    worth[by_worth] = np.arange(len(by_worth))
    enough = pairs.iou >= thresholds[:, None]
    taken = np.zeros((len(thresholds), len(ignored)), bool)
    for begin, end in itertools.pairwise(turns):
        one, objects = pairs.found[begin:end], pairs.truth[begin:end]
        starts = np.flatnonzero(np.diff(one, prepend=-1))
        free = enough[:, begin:end] & (~taken[:, objects] | crowd[objects])
        best = np.maximum.reduceat(np.where(free, worth[begin:end], -1), starts, axis=1)
        threshold, detection = np.nonzero(best >= 0)
        chosen = pairs.truth[by_worth[best[threshold, detection]]]
        matched[threshold, one[starts][detection]] = chosen
        taken[threshold, chosen] = True
    return matched
