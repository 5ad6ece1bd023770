"""The files of `bccd_small`, read without importing TFDS.

How they were made: each photograph (640×480) was reduced by half with Pillow's Lanczos
filter and saved as JPEG of quality 88; the boxes are as in the XML files, in pixels of
the original photographs, but for two of no area.
"""

import functools
import io
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from dl_core.files import read_json

FOLDER = pathlib.Path(__file__).with_name("bccd_small")
LABELS = ("RBC", "WBC", "Platelets")
"""Red blood cells, white blood cells, platelets; a label is a place in this list."""
REDUCED = 2
"""Pixels of an original photograph on a side of one pixel here."""

Split = Literal["train", "validation", "test"]


class Photograph(NamedTuple):
    """A photograph as it is kept, and its cells."""

    name: str
    jpeg: bytes
    boxes: Float[np.ndarray, "cells 4"]
    """xyxy in pixels of the reduced photograph."""
    labels: Int[np.ndarray, " cells"]


def read(split: Split) -> Iterator[Photograph]:
    """Yields the photographs of a split, in the official order."""
    cells = read_json(FOLDER / "boxes.json")[split]
    with zipfile.ZipFile(FOLDER / "images.zip") as archive:
        for name, found in cells.items():
            boxes = np.array([box for _, *box in found], np.float32) / REDUCED
            labels = np.array([LABELS.index(label) for label, *_ in found], np.int64)
            yield Photograph(name, archive.read(f"{name}.jpg"), boxes, labels)


@functools.cache
def photographs(split: Split) -> UInt8[np.ndarray, "photographs 240 320 3"]:
    """Returns the photographs of a split, decoded."""
    decoded = [np.asarray(Image.open(io.BytesIO(each.jpeg))) for each in read(split)]
    return np.stack(decoded)
