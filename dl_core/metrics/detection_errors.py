"""What is wrong with detections, and how much average precision each kind costs.

Bolya et al., "TIDE: a general toolbox for identifying object detection errors", ECCV
2020 (arXiv:2008.08115). A detection that is not right at an IoU of 0.5 has the first of
these errors that applies; "overlaps" means an IoU from 0.1 to 0.5, "covers" one of 0.5
or more:

localization  it overlaps an object of its class
class         it covers an object of another class
duplicate     it covers an object of its class, which a better detection has
both          it overlaps an object of another class
background    it does none of these
missed        an object that no detection has, nor would have but for one of the first
              two errors

An error costs the AP at 0.5 that would be gained if all of its kind were mended and the
rest left as it is: a duplicate, a background or one of both kinds is removed; one of
class or place is set right, if its object is still free and no better one of these two
kinds claims it, and removed else; a missed object need not be found. Mending two kinds
can gain more or less than the sum. As the published program does, a loss is counted
as 0: it comes of the steps of the recall.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from dl_core.metrics.detection_coco import MOST, precision_at
from dl_core.metrics.detection_pairs import Found, Pairs, Truth, match, overlaps

KINDS = ("class", "localization", "both", "duplicate", "background", "missed")
COVERS, OVERLAPS = 0.5, 0.1
RIGHT, IGNORED = -1, -2


class Errors(NamedTuple):
    """The errors of detections."""

    found: Found
    """The detections as they were judged: ranked, the 100 best of image and class."""
    kind: Int[np.ndarray, " found"]
    """Of each detection its place in `KINDS`; -1 if right, -2 if it does not count."""
    missed: Bool[np.ndarray, " truth"]
    cost: dict[str, float]
    """Average precision that each of `KINDS` costs; none where there are no objects."""


def errors(found: Found, truth: Truth, classes: int) -> Errors:
    """Says what is wrong with each detection, and what each kind of error costs.

    Args:
      found: detections.
      truth: objects; detections of ignored ones do not count.
      classes: how many there are.
    """
    found = found.ranked(MOST[-1])
    pairs = overlaps(found, truth, COVERS, crowds=True)
    (matched,) = match(
        pairs,
        found,
        np.array([COVERS]),
        ignored=truth.ignored,
        crowd=truth.ignored,
    )
    has = matched >= 0
    beside = has & np.append(truth.ignored, False)[matched]
    right = has & ~beside

    pairs = overlaps(found, truth, OVERLAPS, any_class=True)
    pairs = pairs.take(~truth.ignored[pairs.truth] & ~has[pairs.found])
    same = found.labels[pairs.found] == truth.labels[pairs.truth]
    own, own_iou = _most(pairs.take(same), len(has))
    other, other_iou = _most(pairs.take(~same), len(has))
    tests = {
        "localization": (own_iou >= OVERLAPS) & (own_iou < COVERS),
        "class": other_iou >= COVERS,
        "duplicate": own_iou >= COVERS,
        "both": other_iou >= OVERLAPS,
    }
    kind = np.select(
        [right, beside, *tests.values()],
        [RIGHT, IGNORED, *map(KINDS.index, tests)],
        KINDS.index("background"),
    )

    taken = np.zeros(len(truth.image), bool)
    taken[matched[right]] = True
    claims = np.where(kind == KINDS.index("localization"), own, -1)
    claims = np.where(kind == KINDS.index("class"), other, claims)
    claims[(claims >= 0) & np.append(taken, False)[claims]] = -1
    claimed, mended = np.unique(claims, return_index=True)
    mended = mended[claimed >= 0]
    missed = ~taken & ~truth.ignored
    missed[claims[mended]] = False

    positives = np.bincount(truth.labels[~truth.ignored], minlength=classes)
    if not positives.any():
        return Errors(found, kind, missed, {})
    before = _ap50(found.labels, right, ~beside, positives)
    cost = {}
    for number, name in enumerate(KINDS):
        labels, true = found.labels.copy(), right.copy()
        of_kind = mended[kind[mended] == number]
        true[of_kind] = True
        labels[of_kind] = truth.labels[claims[of_kind]]
        counted = ~beside & (true | (kind != number))
        left = positives
        if name == "missed":
            left = left - np.bincount(truth.labels[missed], minlength=classes)
        after = _ap50(labels, true, counted, left)
        cost[name] = max(after - before, 0.0)
    return Errors(found, kind, missed, cost)


def _most(pairs: Pairs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the object that each detection overlaps most, -1 if none, and the IoU."""
    truth, iou = np.full(count, -1), np.zeros(count)
    order = np.argsort(pairs.iou, kind="stable")
    truth[pairs.found[order]] = pairs.truth[order]
    iou[pairs.found[order]] = pairs.iou[order]
    return truth, iou


def _ap50(
    labels: Int[np.ndarray, " found"],
    true: Bool[np.ndarray, " found"],
    counted: Bool[np.ndarray, " found"],
    positives: Int[np.ndarray, " classes"],
) -> float:
    """Returns the mean over the classes; one with nothing to find is left out.

    A class that has detections, but no objects that are left to find, has an AP of 0.
    """
    values = []
    for label, objects in enumerate(positives.tolist()):
        own = true[counted & (labels == label)]
        if objects:
            values.append(float(precision_at(own, objects).mean()))
        elif len(own):
            values.append(0.0)
    return float(np.mean(values)) if values else 1.0
