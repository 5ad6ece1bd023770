"""All measures of detection as one metric: COCO's, Pascal VOC's, and the errors.

    def eval_step(config, state, batch):
        found = detect(config, state, batch)
        return {"": Detected.of(found, batch, NAMES)}

writes the rows test/ap50, test/voc07, test/error_missed, …. The boxes are measured in
pixels of the original photographs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dl_core.metrics.detection_coco import coco
from dl_core.metrics.detection_errors import errors
from dl_core.metrics.detection_pairs import Found, Truth
from dl_core.metrics.detection_voc import voc
from dl_core.ops.boxes import Detections


class Batch(NamedTuple):
    """Detections in a batch of images, and the objects that are there."""

    found: Detections
    boxes: Float[Array, "batch objects 4"]
    labels: Int[Array, "batch objects"]
    """-1 where there is no object."""
    difficult: Bool[Array, "batch objects"]
    scale: Float[Array, "batch 2"]
    mask: Float[Array, " batch"]


@struct.dataclass
class Detected:
    """Detections against the truth, kept batch by batch until all are there."""

    batches: tuple[Batch, ...]
    names: tuple[str, ...] = struct.field(pytree_node=False)

    @classmethod
    def of(
        cls, detections: Detections, batch: Mapping[str, Any], names: tuple[str, ...]
    ) -> Self:
        """Returns the metric of the images whose mask is 1; traceable.

        Args:
          detections: in each image of the batch, boxes in pixels of the input.
          batch: `boxes` and `labels` (-1 is padding) of its objects, `difficult`, which
            of them are neither to be found nor wrong to be found, `scale`, pixels of
            the original photograph in one of the input along x and y, and `mask`, 0 for
            padded examples.
          names: of the classes.
        """
        fields = [batch[name] for name in Batch._fields[1:]]
        return cls((Batch(detections, *fields),), tuple(names))

    def merge(self, other: Self) -> Self:
        """Returns the metric of both sets of images."""
        return self.replace(batches=self.batches + other.batches)

    def compute(self) -> dict[str, float | np.ndarray]:
        """Returns the measures; those that are not defined are left out.

        So is the average precision in small objects where no object is small. All are
        NaN if a detection is not finite.

        ap, ap50, ap75, ap_small, ap_medium, ap_large, ar_1, ar_10, ar_100, ar_small,
          ar_medium, ar_large: COCO's twelve (`dl_core.metrics.detection_coco`).
        ap50_<name>: average precision of a class at an IoU of 0.5.
        precision: of each class at 101 recalls at an IoU of 0.5; -1 for a class without
          objects.
        voc07, voc: Pascal VOC's mean average precision, of eleven points and of all
          (`dl_core.metrics.detection_voc`).
        error_class, error_localization, error_both, error_duplicate, error_background,
          error_missed: AP50 that each kind costs (`dl_core.metrics.detection_errors`).
        """
        found, truth = flatten(self.batches)
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            return {"ap": float("nan"), "ap50": float("nan")}
        classes = len(self.names)
        measured = coco(found, truth, classes)
        row = measured.numbers()
        if not row:
            return row
        curves = measured.precision[0, :, :, 0].T
        for name, curve in zip(self.names, curves, strict=True):
            if not np.isnan(curve).any():
                row[f"ap50_{name}"] = float(curve.mean())
        row["precision"] = np.nan_to_num(curves, nan=-1)
        by_class = voc(found, truth, classes)
        row["voc07"] = float(np.nanmean(by_class.eleven_points))
        row["voc"] = float(np.nanmean(by_class.all_points))
        cost = errors(found, truth, classes).cost
        return row | {f"error_{kind}": value for kind, value in cost.items()}


def flatten(batches: tuple[Batch, ...]) -> tuple[Found, Truth]:
    """Returns the detections and the objects of all images that are not padded.

    Boxes are in pixels of the original photographs, images numbered in order.
    """
    found, truth, images = [], [], 0
    for batch in batches:
        kept = np.asarray(batch.mask) > 0
        scale = np.tile(np.asarray(batch.scale, np.float64), 2)[:, None]
        labels, difficult = np.asarray(batch.labels), np.asarray(batch.difficult)
        image, row = np.nonzero((labels >= 0) & kept[:, None])
        numbers = images + np.cumsum(kept) - 1
        truth.append(
            Truth(
                numbers[image],
                (np.asarray(batch.boxes) * scale)[image, row],
                labels[image, row],
                difficult[image, row].astype(bool),
            )
        )
        labels = np.asarray(batch.found.labels)
        image, row = np.nonzero((labels >= 0) & kept[:, None])
        found.append(
            Found(
                numbers[image],
                (np.asarray(batch.found.boxes) * scale)[image, row],
                np.asarray(batch.found.scores, np.float64)[image, row],
                labels[image, row],
            )
        )
        images += int(kept.sum())
    return tuple(
        kind(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        for kind, parts in ((Found, found), (Truth, truth))
    )
