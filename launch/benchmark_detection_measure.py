"""The time of COCO's measure of detection, ours against pycocotools.

Both measure the same detections of a made-up test set as large as COCO's validation
set: 5,000 images of 3 classes, with twelve objects and a hundred detections in each.
The time is that from the boxes in memory, in arrays or, for pycocotools, in its indexed
dictionaries, to the twelve numbers. pycocotools comes with the test tools
(`pip install -e .[test]`).
"""

import contextlib
import io
import time

import numpy as np

from dl_core.errors import UserError
from dl_core.metrics.detection_coco import coco
from dl_core.metrics.detection_pairs import Found, Truth

CLASSES, OBJECTS, DETECTIONS = 3, 12, 100
SIZE = (480, 640)


def evaluation(images: int = 5_000, seed: int = 0) -> tuple[float, float]:
    """Returns the seconds that ours takes, and those of pycocotools.

    Raises:
      UserError: if pycocotools is not installed.
      RuntimeError: if the two do not agree to 1e-6.
    """
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise UserError(
            "the measure of detection is compared with pycocotools, which is not "
            "installed: install the test tools (pip install -e .[test])"
        ) from None
    found, truth = scenes(images, seed)
    start = time.perf_counter()
    ours = coco(found, truth, CLASSES).numbers()
    seconds = time.perf_counter() - start
    theirs, their_seconds = _pycocotools(found, truth, images)
    if not np.allclose(list(ours.values()), theirs[theirs > -1], rtol=0, atol=1e-6):
        raise RuntimeError(f"pycocotools measures {theirs}, we {ours}")
    return seconds, their_seconds


def scenes(images: int, seed: int) -> tuple[Found, Truth]:
    """Returns objects of all sizes, and detections: some near them, most anywhere."""
    random = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        sides = np.exp(random.uniform(np.log(10), np.log(200), (count, 2)))
        low = random.uniform(0, 1, (count, 2)) * np.array(SIZE[::-1])
        return np.concatenate([low, low + sides], axis=1)

    near = DETECTIONS // 2
    objects = boxes(images * OBJECTS)
    labels = random.integers(0, CLASSES, len(objects))
    image = np.repeat(np.arange(images), OBJECTS)
    truth = Truth(image, objects, labels, np.zeros(len(objects), bool))
    picked = np.arange(images)[:, None] * OBJECTS
    picked = np.ravel(picked + random.integers(0, OBJECTS, (images, near)))
    sides = np.tile(objects[picked, 2:] - objects[picked, :2], 2)
    moved = objects[picked] + 0.1 * sides * random.normal(size=(len(picked), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    others = boxes(images * (DETECTIONS - near))
    found = Found(
        np.concatenate([image[picked], np.arange(len(others)) % images]),
        np.concatenate([moved, others]),
        np.concatenate([random.beta(3, 2, len(moved)), random.beta(2, 5, len(others))]),
        np.concatenate([labels[picked], random.integers(0, CLASSES, len(others))]),
    )
    order = np.argsort(found.image, kind="stable")
    return found.take(order), truth


def _pycocotools(found: Found, truth: Truth, images: int) -> tuple[np.ndarray, float]:
    """Returns the twelve numbers, -1 where undefined, and the seconds they took."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(each: Found | Truth) -> list[dict]:
        sides = each.boxes[:, 2:] - each.boxes[:, :2]
        corners = np.concatenate([each.boxes[:, :2], sides], axis=1).tolist()
        area = sides.prod(1).tolist()
        fields = zip(each.image.tolist(), each.labels.tolist(), strict=True)
        return [
            {
                "id": number + 1,
                "image_id": image + 1,
                "category_id": label + 1,
                "bbox": corners[number],
                "area": area[number],
                "iscrowd": 0,
            }
            for number, (image, label) in enumerate(fields)
        ]

    objects, detections = rows(truth), rows(found)
    for row, score in zip(detections, found.scores.tolist(), strict=True):
        row["score"] = score
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(images)],
            "categories": [{"id": i + 1} for i in range(CLASSES)],
            "annotations": objects,
        }
        reference.createIndex()
        results = reference.loadRes(detections)
        start = time.perf_counter()
        evaluated = COCOeval(reference, results, "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
        seconds = time.perf_counter() - start
    return evaluated.stats, seconds
