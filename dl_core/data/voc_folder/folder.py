"""A folder in the layout of VOC: what it lists, and what of it can be used.

JPEGImages/NAME.jpg              or .png, .bmp, … of any size and mode
Annotations/NAME.xml
ImageSets/Main/train.txt         a NAME in each line; likewise val.txt, test.txt
"""

import collections
import hashlib
import io
import pathlib
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from dl_core.data.boxed_images import decode_picture, read_image
from dl_core.data.voc_xml import Marked, outside, read_annotation
from dl_core.errors import UserError

LISTS = {"train": "train", "validation": "val", "test": "test"}
"""Names of the files that list the images of each split."""
_ORIENTATION = 0x0112
"""The EXIF tag that says which way up a picture is."""


class Entry(NamedTuple):
    """An image that is listed, and its annotation."""

    image: pathlib.Path
    annotation: pathlib.Path


class Example(NamedTuple):
    """An image that can be used, and its objects."""

    name: str
    image: pathlib.Path
    turned: bool
    """Whether its boxes are those of the picture turned as its EXIF data says."""
    size: tuple[int, int]
    """Height and width."""
    objects: tuple[Marked, ...]


class Content(NamedTuple):
    """What of a folder can be used."""

    splits: dict[str, list[Example]]
    classes: tuple[str, ...]
    """Of the training images, in alphabetical order."""
    skipped: tuple[str, ...]
    """A sentence for each image or object that was left out."""
    empty: tuple[str, ...]
    """Names of images without any object."""


def listed(folder: pathlib.Path) -> dict[str, list[Entry]]:
    """Returns the images of each split that a folder has a list of.

    Raises:
      UserError: if the folder has not the layout, or an image is listed twice.
    """
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        if not (folder / part).is_dir():
            raise UserError(
                f"{folder} is not in VOC's layout: there is no folder {folder / part} "
                "(expected JPEGImages, Annotations and ImageSets/Main)"
            )
    images = collections.defaultdict(list)
    for path in sorted((folder / "JPEGImages").iterdir()):
        images[path.stem].append(path)
    seen: dict[str, pathlib.Path] = {}
    splits = {}
    for split, file in LISTS.items():
        path = folder / "ImageSets/Main" / f"{file}.txt"
        if not path.is_file():
            continue
        splits[split] = []
        for name in _names(path):
            if name in seen:
                raise UserError(
                    f"{path} lists {name!r}, which {seen[name]} lists already: an "
                    "image belongs to one split, once"
                )
            seen[name] = path
            found = images.get(name, [])
            if len(found) != 1:
                there = ", ".join(str(each) for each in found) or "none"
                raise UserError(
                    f"{path} lists {name!r}: expected one image of this name in "
                    f"{folder / 'JPEGImages'}, found {there}"
                )
            annotation = folder / "Annotations" / f"{name}.xml"
            splits[split].append(Entry(found[0], annotation))
        if not splits[split]:
            raise UserError(f"{path} lists no image")
    return splits


def digest(splits: dict[str, list[Entry]]) -> str:
    """Returns a name for the content of all files that are listed."""
    total = hashlib.sha256()
    for split, entries in splits.items():
        total.update(f"{split} {len(entries)}\n".encode())
        for path in (path for entry in entries for path in entry):
            data = path.read_bytes() if path.is_file() else b""
            total.update(f"{path.name} {len(data)}\n".encode() + data)
    return total.hexdigest()[:12]


def read(splits: dict[str, list[Entry]], *, skip: bool) -> Content:
    """Returns what can be used of all that is listed.

    Args:
      splits: as `listed` has them.
      skip: leave out what cannot be used, and say what it was.

    Raises:
      UserError: if something cannot be used and is not to be skipped, or nothing is
        left.
    """
    problems: list[str] = []
    examples = {
        split: [
            example
            for entry in entries
            if (example := _example(entry, problems)) is not None
        ]
        for split, entries in splits.items()
    }
    classes = tuple(sorted({o.name for e in examples["train"] for o in e.objects}))
    for split, found in examples.items():
        for i, example in enumerate(found):
            known = tuple(each for each in example.objects if each.name in classes)
            problems += [
                f"{example.name} of {split}: {each.name!r} at {_words(each)} is of a "
                "class that no training image shows"
                for each in example.objects
                if each.name not in classes
            ]
            found[i] = example._replace(objects=known)
    if problems and not skip:
        more = f" (and {len(problems) - 1} more like it)" if problems[1:] else ""
        raise UserError(
            f"{problems[0]}{more}; mend it, or leave out whatever cannot be used with "
            "--config.data.bad_boxes=skip"
        )
    for split, found in examples.items():
        if not found or (split == "train" and not classes):
            why = f", the first as {problems[0]}" if problems else ""
            raise UserError(f"no image of {split} has an object to learn{why}")
    empty = [e.name for found in examples.values() for e in found if not e.objects]
    return Content(examples, classes, tuple(problems), tuple(empty))


def encoded(example: Example) -> io.BytesIO:
    """Returns the image as a file that every decoder reads alike.

    A JPEG or PNG of 8 bits in grey or colours, the right way up, is taken as it is.
    """
    data = example.image.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        plain = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L")
        if plain and image.getexif().get(_ORIENTATION, 1) == 1:
            return io.BytesIO(data)
    buffer = io.BytesIO()
    Image.fromarray(_pixels(example.image, example.turned)).save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())


def _example(entry: Entry, problems: list[str]) -> Example | None:
    """Returns what can be used of an image; tells what cannot."""
    try:
        annotation = read_annotation(entry.annotation)
        height, width = read_image(entry.image).shape[:2]
    except UserError as error:
        problems.append(str(error))
        return None
    size, turned = (height, width), True
    if annotation.size not in (None, size):
        # Some tools show a picture as it is stored, not as it is to be seen.
        turned = False
        size = _pixels(entry.image, turned).shape[:2]
        if annotation.size != size:
            problems.append(
                f"{entry.annotation} is for an image of height {annotation.size[0]} "
                f"and width {annotation.size[1]}, but {entry.image} has height "
                f"{height} and width {width}"
            )
            return None
    problems += annotation.problems
    beyond = tuple(outside(annotation.objects, size))
    problems += [
        f"{entry.annotation}: {o.name!r} at {_words(o)} is not all in the image, of "
        f"height {size[0]} and width {size[1]}"
        for o in beyond
    ]
    kept = tuple(o for o in annotation.objects if o not in beyond)
    return Example(entry.image.stem, entry.image, turned, size, kept)


def _pixels(path: pathlib.Path, turned: bool) -> np.ndarray:
    if turned:
        return read_image(path)
    with Image.open(path) as image:
        image.getexif().pop(_ORIENTATION, None)
        buffer = io.BytesIO()
        stored = image.copy()
        stored.info.pop("exif", None)
        stored.save(buffer, "PNG")
    return decode_picture(buffer.getvalue())


def _names(path: pathlib.Path) -> list[str]:
    """Returns the names in a list; a column of 1, 0 or -1 behind them is left out."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    names = [re.sub(r"\s+[+-]?[01]$", "", line.strip()) for line in lines]
    return [name for name in names if name]


def _words(marked: Marked) -> str:
    return "(" + ", ".join(f"{number:g}" for number in marked.box) + ")"
