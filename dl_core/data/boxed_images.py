"""Images with boxes from any source, at the size of a network's input.

An image is resized to that size whatever its own shape is, as SSD and YOLO do; `scale`
says how many of its pixels one of the network's is, along x and y, and takes boxes
back. It is kept as bytes and turned into numbers on the device.
"""

import functools
import io
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from dl_core.data import blood_cells
from dl_core.data.images import decode_image
from dl_core.data.memory import load
from dl_core.data.source import Source, open_source
from dl_core.errors import UserError

Size = tuple[int, int]
"""Height and width, in pixels."""

_CHUNK = 64
_NEEDED = "objects/bbox", "objects/label"


class BoxedImage(NamedTuple):
    """An image of any size, and what is in it."""

    image: UInt8[np.ndarray, "height width 3"]
    boxes: Float[np.ndarray, "objects 4"]
    """xyxy in pixels of the image."""
    labels: Int[np.ndarray, " objects"]
    difficult: Bool[np.ndarray, " objects"]


class BoxedImages(NamedTuple):
    """Images of one size; rows of boxes are padded with 0, those of labels with -1."""

    image: UInt8[np.ndarray, "images height width 3"]
    boxes: Float[np.ndarray, "images most 4"]
    """xyxy in pixels of these images."""
    labels: Int[np.ndarray, "images most"]
    difficult: Bool[np.ndarray, "images most"]
    scale: Float[np.ndarray, "images 2"]
    """Pixels of the original image on a side of one pixel here, along x and y."""
    example: Int[np.ndarray, " images"]
    """Numbers in the split."""


def read_image(path: str | pathlib.Path) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a picture in red, green and blue, the right way up.

    Args:
      path: a file of whatever format and mode Pillow reads: grey, with a palette or an
        alpha channel (which is dropped), of 16 bits.

    Raises:
      UserError: if there is no such file or it is not a whole image.
    """
    path = pathlib.Path(path).expanduser()
    try:
        return decode_picture(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no image {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        why = "it is none that Pillow knows" if unknown else error
        raise UserError(
            f"{path} cannot be read as an image ({why}): expected a whole JPEG, PNG or "
            "other picture"
        ) from None


def decode_picture(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the red, green and blue of an image file of any mode.

    Raises:
      OSError, ValueError, SyntaxError or DecompressionBombError, as Pillow has it: if
        the bytes are not a whole image.
    """
    pixels = decode_image(data, None, np.int64) if _is_deep(data) else None
    if pixels is None:
        return decode_image(data, 3)
    # Pillow would cut 16 bits off at 255 where it converts them to 8.
    return np.repeat((pixels >> 8).clip(0, 255).astype(np.uint8), 3, axis=-1)


def resize(
    image: UInt8[np.ndarray, "height width 3"], size: Size
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Returns the image at another size, smoothed where it shrinks."""
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized)


def scale_of(image: UInt8[np.ndarray, "height width 3"], size: Size) -> np.ndarray:
    """Returns how many pixels of the image are one at the size, along x and y."""
    return np.array([image.shape[1] / size[1], image.shape[0] / size[0]], np.float32)


@functools.lru_cache(maxsize=12)
def read(
    name: str, split: str, data_dir: str | None, size: Size, first: int = 0
) -> BoxedImages:
    """Returns the images of a split at one size.

    Args:
      name: a TFDS name: `bccd_small`, or a set with the features of TFDS's `voc`.
      split: one of its splits, or a slice of one.
      data_dir: the root of the prepared data sets.
      size: the images' height and width.
      first: read so many; all if 0.

    Raises:
      UserError: if there is no such data set or split, it cannot be prepared, its
        examples have no boxes, or there are fewer than `first`.
    """
    if name.partition(":")[0] == "bccd_small":
        arrays = load(name, split, data_dir)
        count, reduced = len(arrays["image"]), blood_cells.REDUCED
        found = (
            _padded(*(arrays[field][i] for field in ("image", "boxes", "labels")))
            for i in range(first or count)
        )
    else:
        source = open_source(name, split, data_dir)
        count, reduced = len(source), 1
        found = _examples(source, first or count)
    if first > count:
        raise UserError(f"{first} images of {name} {split} are asked for, of {count}")
    return _stack(found, size, reduced)


def pad(images: BoxedImages, most: int) -> BoxedImages:
    """Returns the images with rows for so many boxes each."""
    more = most - images.labels.shape[1]
    rows = ((0, 0), (0, more))
    return images._replace(
        boxes=np.pad(images.boxes, (*rows, (0, 0))),
        labels=np.pad(images.labels, rows, constant_values=-1),
        difficult=np.pad(images.difficult, rows),
    )


@functools.cache
def names(name: str, data_dir: str | None) -> tuple[str, ...]:
    """Returns the names of a data set's classes; a label is a place among them.

    Raises:
      UserError: if there is no such data set, or it has no boxes.
    """
    if name.partition(":")[0] == "bccd_small":
        return blood_cells.LABELS
    source = open_source(name, "train", data_dir)
    try:
        return tuple(source.features["objects"]["label"].names)
    except KeyError:
        raise UserError(_no_boxes(name, list(source.features))) from None


def _is_deep(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode.startswith("I")


def _padded(image, boxes, labels) -> BoxedImage:
    real = labels >= 0
    return BoxedImage(image, boxes[real], labels[real], np.zeros(real.sum(), bool))


def _examples(source: Source, count: int) -> Iterator[BoxedImage]:
    """Yields the examples of a source with the features of TFDS's `voc`."""
    for start in range(0, count, _CHUNK):
        for example in source.examples(np.arange(start, min(start + _CHUNK, count))):
            if not {"image", *_NEEDED} <= example.keys():
                raise UserError(_no_boxes(source.name, list(example)))
            image = example["image"]
            height, width = image.shape[:2]
            corners = np.reshape(example["objects/bbox"], (-1, 4))[:, [1, 0, 3, 2]]
            labels = np.asarray(example["objects/label"])
            difficult = example.get("objects/is_difficult", np.zeros(labels.shape))
            yield BoxedImage(
                image,
                corners * np.array([width, height] * 2, np.float32),
                labels,
                np.asarray(difficult, bool),
            )


def _no_boxes(name: str, fields: list[str]) -> str:
    return (
        f"the data set {name!r} has no boxes to learn: expected examples with image, "
        f"{' and '.join(_NEEDED)}, found {', '.join(sorted(fields))}"
    )


def _stack(found: Iterator[BoxedImage], size: Size, reduced: int) -> BoxedImages:
    """Returns images of one size; they may be reduced already by some factor."""
    rows = []
    for each in found:
        scale = scale_of(each.image, size)
        rows.append(
            (
                resize(each.image, size),
                each.boxes / np.tile(scale, 2),
                each.labels,
                each.difficult,
                scale * reduced,
            )
        )
    if not rows:
        raise UserError("the data set holds no images")
    most = max(1, *(len(labels) for _, _, labels, _, _ in rows))
    count = len(rows)
    stacked = BoxedImages(
        image=np.stack([image for image, *_ in rows]),
        boxes=np.zeros((count, most, 4), np.float32),
        labels=np.full((count, most), -1, np.int32),
        difficult=np.zeros((count, most), bool),
        scale=np.stack([scale for *_, scale in rows]),
        example=np.arange(count, dtype=np.int32),
    )
    for i, (_, boxes, labels, difficult, _) in enumerate(rows):
        stacked.boxes[i, : len(labels)] = boxes
        stacked.labels[i, : len(labels)] = labels
        stacked.difficult[i, : len(labels)] = difficult
    return stacked
