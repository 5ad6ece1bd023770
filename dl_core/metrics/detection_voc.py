"""Pascal VOC's average precision, of eleven points and of all.

Everingham et al., "The Pascal visual object classes (VOC) challenge", IJCV 2010,
section 4.2. A detection is of the object of its class that it overlaps most; it is
right if their IoU is above the threshold and no better detection had that object.
Detections of difficult objects do not count. Up to 2009 the average precision was the
mean of the greatest precision at a recall of 0, 0.1, …, 1 or above; since 2010 it is
the area under the curve of these. The edges of a box are part of it: a box from 0 to 9
is 10 pixels wide. Equal, class by class, to the package `mean-average-precision`, but
that difficult objects are not among those to be found, as in VOC's own program; the
package counts them, and mistakes which of several objects are difficult.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dl_core.metrics.detection_pairs import Found, Truth, overlaps

_ELEVEN = np.arange(0.0, 1.1, 0.1)


class Voc(NamedTuple):
    """Average precision of each class; NaN for one without objects."""

    eleven_points: Float[np.ndarray, " classes"]
    all_points: Float[np.ndarray, " classes"]


def voc(found: Found, truth: Truth, classes: int, iou: float = 0.5) -> Voc:
    """Measures detections as Pascal VOC does.

    Args:
      found: detections, boxes in pixels of the photographs.
      truth: objects; those that are ignored are the difficult ones.
      classes: how many there are.
      iou: what a detection's must be above.
    """
    found = found.ranked()
    # One ulp above: VOC's threshold is exclusive here, that of the pairs inclusive.
    pairs = overlaps(found, truth, np.nextafter(iou, 1), inclusive=True)
    best = np.full(len(found.image), -1)
    order = np.lexsort((pairs.truth, pairs.iou))
    best[pairs.found[order]] = pairs.truth[order]
    beside = (best >= 0) & np.append(truth.ignored, False)[best]
    true = (best >= 0) & ~beside
    _, first = np.unique(best[true], return_index=True)
    hits = np.flatnonzero(true)
    true[:] = False
    true[hits[first]] = True
    results = np.full((2, classes), np.nan)
    for label in range(classes):
        positives = int(np.sum((truth.labels == label) & ~truth.ignored))
        if positives:
            curve = true[(found.labels == label) & ~beside]
            results[:, label] = _average_precisions(curve, positives)
    return Voc(*results)


def _average_precisions(
    true: Bool[np.ndarray, " found"], positives: int
) -> tuple[float, float]:
    places = np.flatnonzero(true)
    count = np.arange(1, len(places) + 1)
    best = np.maximum.accumulate((count / (places + 1))[::-1])[::-1]
    reached = np.searchsorted(count / positives, _ELEVEN)
    return np.append(best, 0.0)[reached].mean(), best.sum() / positives
