"""Boxes that may hold an object, whatever it is: selective search, kept on disk.

Uijlings, van de Sande, Gevers & Smeulders, "Selective search for object recognition",
IJCV 2013: the image is cut into small regions of one colour, neighbours that are most
alike are joined again and again until one region is left, and the box about every
region on the way is a proposal. This is done for several colour spaces, sizes of
regions and measures of likeness. It is OpenCV's (`cv2.ximgproc.segmentation`), put
together from its parts: what it has ready-made knows no regions below 100 pixels, and
so not the small objects of small images.

OpenCV orders the boxes by random numbers that are others in every call. Here they come
in an order drawn from one seed, so that the first of them are a fair sample of all.
"""

import concurrent.futures
import hashlib
import io
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from dl_core.config import config, static, to_dict
from dl_core.files import write_atomically
from dl_core.ops.boxes import pairwise_iou

_VERSION = 1
"""To be raised when the boxes of the same image and settings change."""
_TOLD = 50
"""Images between two lines of progress."""

_SPACES = {
    "fast": (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2Lab),
    "quality": (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2Lab, cv2.COLOR_BGR2GRAY),
}


@config
class ProposalConfig:
    """How an image is searched for boxes that may hold an object."""

    method: Literal["selective_search"] = static(
        "selective_search", "What searches (Uijlings et al., 2013)."
    )
    mode: Literal["fast", "quality"] = static(
        "quality", "Colour spaces: HSV and Lab; grey too."
    )
    scales: tuple[int, ...] = static(
        (50, 150, 250), "How readily the first regions grow: the larger, the larger."
    )
    smallest: int = static(25, "Pixels of the smallest region.", at_least=1)
    overlap: float = static(
        0.7,
        "IoU with an earlier box above which one is left out; 1 keeps all.",
        above=0,
        at_most=1,
    )
    most: int = static(400, "Proposals of an image.", at_least=1)


def selective_search(
    image: UInt8[np.ndarray, "height width 3"],
    config: ProposalConfig = ProposalConfig(),  # noqa: B008 (frozen)
) -> Float[np.ndarray, "n 4"]:
    """Returns the proposals of an image, xyxy in its pixels: `most` or fewer.

    The same image and settings give the same boxes, in the same order.

    Args:
      image: red, green and blue.
      config: the settings.
    """
    return _search(image, config)[: config.most]


def cached(
    images: UInt8[np.ndarray, "n height width 3"],
    folder: str | os.PathLike,
    config: ProposalConfig = ProposalConfig(),  # noqa: B008 (frozen)
    log: Callable[[str], None] | None = None,
) -> tuple[Float[np.ndarray, "n most 4"], Bool[np.ndarray, "n most"]]:
    """Returns the proposals of each image, and which rows are not padding.

    Images that were searched before are not searched again: their boxes are read from
    `folder`. Processes may share it.

    Args:
      images: red, green and blue.
      folder: a file an image is kept here, named by what is in image and settings.
      config: the settings.
      log: is told, in a line each, how the search goes on; by default stderr.
    """
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{_name(image, config)}.npy" for image in images]
    found = {path: boxes for path in paths if (boxes := _load(path)) is not None}
    missing = {
        path: image
        for path, image in zip(paths, images, strict=True)
        if path not in found
    }
    if missing:
        found |= _search_all(missing, config, log or _to_stderr)
    boxes = np.zeros((len(images), config.most, 4), np.float32)
    mask = np.zeros(boxes.shape[:2], bool)
    for row, path in enumerate(paths):
        first = found[path][: config.most]
        boxes[row, : len(first)] = first
        mask[row, : len(first)] = True
    return boxes, mask


def recall(
    proposals: Float[np.ndarray, "n p 4"],
    mask: Bool[np.ndarray, "n p"],
    boxes: Float[np.ndarray, "n objects 4"],
    valid: Bool[np.ndarray, "n objects"],
    counts: Sequence[int],
    iou: float = 0.5,
) -> Float[np.ndarray, " counts"]:
    """Returns the share of objects covered by one of the first k proposals, for each k.

    No detector that classifies and does not move the proposals can find more.

    Args:
      proposals: of each image, xyxy.
      mask: False for padding.
      boxes: of the objects, xyxy.
      valid: which of them to count: those that are no padding, of one class, ….
      counts: the numbers of proposals.
      iou: from which on an object counts as covered.
    """
    overlaps = jax.vmap(pairwise_iou)(jnp.asarray(boxes), jnp.asarray(proposals))
    overlaps = np.where(mask[:, None], np.asarray(overlaps), 0)[valid]
    covered = [(overlaps[:, :count] >= iou).any(1).mean() for count in counts]
    return np.array(covered, float)


def _search(image: np.ndarray, config: ProposalConfig) -> np.ndarray:
    """Returns all proposals of an image, near-duplicates left out."""
    segmentation = cv2.ximgproc.segmentation
    search = segmentation.createSelectiveSearchSegmentation()
    bgr = np.ascontiguousarray(image[..., ::-1])
    search.setBaseImage(bgr)
    for space in _SPACES[config.mode]:
        search.addImage(cv2.cvtColor(bgr, space))
    for scale in config.scales:
        search.addGraphSegmentation(
            segmentation.createGraphSegmentation(0.8, float(scale), config.smallest)
        )
    fill_texture_size = (
        segmentation.createSelectiveSearchSegmentationStrategyFill,
        segmentation.createSelectiveSearchSegmentationStrategyTexture,
        segmentation.createSelectiveSearchSegmentationStrategySize,
    )
    color = segmentation.createSelectiveSearchSegmentationStrategyColor
    for parts in ((color, *fill_texture_size), fill_texture_size):
        search.addStrategy(
            segmentation.createSelectiveSearchSegmentationStrategyMultiple(
                *(make() for make in parts)
            )
        )
    # `unique` sorts: the order that the boxes came in leaves no trace.
    boxes = np.unique(search.process().reshape(-1, 4), axis=0)
    boxes = np.random.default_rng(0).permutation(boxes)
    if config.overlap < 1 and len(boxes):
        falling = np.linspace(1, 0.5, len(boxes))
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), falling.tolist(), 0, config.overlap)
        boxes = boxes[np.asarray(kept, int)]
    corner, size = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def _search_all(
    images: dict[pathlib.Path, np.ndarray],
    config: ProposalConfig,
    log: Callable[[str], None],
) -> dict[pathlib.Path, np.ndarray]:
    """Searches images and writes the boxes of each to its path."""

    def search(item):
        path, image = item
        boxes = _search(image, config)
        buffer = io.BytesIO()
        np.save(buffer, boxes, allow_pickle=False)
        write_atomically(path, buffer.getvalue())
        return path, boxes

    log(f"selective search in {len(images)} images, kept for later runs")
    found = {}
    with concurrent.futures.ThreadPoolExecutor(_processors()) as pool:
        for path, boxes in pool.map(search, images.items()):
            found[path] = boxes
            if len(found) % _TOLD == 0 or len(found) == len(images):
                log(f"searched {len(found)} of {len(images)} images")
    return found


def _load(path: pathlib.Path) -> np.ndarray | None:
    """Returns the boxes kept in a file; None where there is none, or no whole one."""
    try:
        boxes = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return boxes if boxes.ndim == 2 and boxes.shape[1] == 4 else None


def _name(image: np.ndarray, config: ProposalConfig) -> str:
    """Returns a name for what decides the boxes; `most` only cuts them off."""
    settings = {**to_dict(config), "most": None, "version": _VERSION}
    about = json.dumps([settings, image.shape], sort_keys=True)
    return hashlib.sha256(about.encode() + image.tobytes()).hexdigest()


def _processors() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
