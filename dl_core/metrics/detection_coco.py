"""COCO's measure of detection: average precision and recall over ten IoUs.

Lin et al., "Microsoft COCO: common objects in context", ECCV 2014, as their program
(`pycocotools`) computes it, to 1e-6. In short: of an image and a class the 100 best
detections are matched to the objects at each IoU from 0.5 to 0.95; the average
precision is the mean over 101 recalls of the greatest precision at that recall or
above; the numbers are means over the classes that have objects.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dl_core.metrics.detection_pairs import (
    Found,
    Truth,
    cells,
    match,
    overlaps,
    ranks,
)

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}
"""Areas of an object, in square pixels, both ends included."""
MOST = (1, 10, 100)
"""Detections of an image and a class that count."""


class Coco(NamedTuple):
    """Precision and recall; NaN for a class without objects of that area."""

    precision: Float[np.ndarray, "ious recalls classes areas"]
    """The greatest at a recall or above, of the 100 best detections."""
    recall: Float[np.ndarray, "ious classes areas most"]

    def numbers(self) -> dict[str, float]:
        """Returns the twelve numbers; those that are not defined are left out."""
        every, small, medium, large = range(4)
        at_50, at_75 = 0, 5
        values = {
            "ap": self.precision[..., every],
            "ap50": self.precision[at_50, ..., every],
            "ap75": self.precision[at_75, ..., every],
            "ap_small": self.precision[..., small],
            "ap_medium": self.precision[..., medium],
            "ap_large": self.precision[..., large],
            "ar_1": self.recall[..., every, 0],
            "ar_10": self.recall[..., every, 1],
            "ar_100": self.recall[..., every, 2],
            "ar_small": self.recall[..., small, 2],
            "ar_medium": self.recall[..., medium, 2],
            "ar_large": self.recall[..., large, 2],
        }
        return {
            name: float(np.nanmean(each))
            for name, each in values.items()
            if not np.isnan(each).all()
        }


def coco(found: Found, truth: Truth, classes: int) -> Coco:
    """Measures detections as COCO does.

    Args:
      found: detections, boxes in pixels of the photographs.
      truth: objects. Ignored ones are COCO's crowds (`iscrowd`): any number of
        detections may lie in one, and count neither for nor against.
      classes: how many there are.
    """
    found = found.ranked(MOST[-1])
    rank = ranks(cells(found.image, found.labels))
    pairs = overlaps(found, truth, IOUS[0], crowds=True)
    precision = np.full((len(IOUS), len(RECALLS), classes, len(AREAS)), np.nan)
    recall = np.full((len(IOUS), classes, len(AREAS), len(MOST)), np.nan)
    for number, (least, most) in enumerate(AREAS.values()):
        ignored = truth.ignored | _outside(truth.boxes, least, most)
        outside = _outside(found.boxes, least, most)
        matched = match(pairs, found, IOUS, ignored=ignored, crowd=truth.ignored)
        hit = matched >= 0
        # Of no truths at all there is nothing to look up.
        beside = hit & np.append(ignored, False)[matched]
        beside |= ~hit & outside
        hit &= ~beside
        for label in range(classes):
            positives = int(np.sum((truth.labels == label) & ~ignored))
            if not positives:
                continue
            own = found.labels == label
            for at, (true, out) in enumerate(
                zip(hit[:, own], beside[:, own], strict=True)
            ):
                precision[at, :, label, number] = precision_at(true[~out], positives)
            for at, few in enumerate(MOST):
                true = hit[:, own & (rank < few)]
                recall[:, label, number, at] = true.sum(1) / positives
    return Coco(precision, recall)


def precision_at(
    true: Bool[np.ndarray, " found"], positives: int
) -> Float[np.ndarray, " recalls"]:
    """Returns the greatest precision at each of `RECALLS` or above, 0 where none is.

    Args:
      true: whether a detection is right, by falling score.
      positives: how many objects there are.
    """
    places = np.flatnonzero(true)
    count = np.arange(1, len(places) + 1)
    best = np.maximum.accumulate((count / (places + 1))[::-1])[::-1]
    reached = np.searchsorted(count / positives, RECALLS)
    return np.append(best, 0.0)[reached]


def _outside(
    boxes: Float[np.ndarray, "n 4"], least: float, most: float
) -> Bool[np.ndarray, " n"]:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return (area < least) | (area > most)
