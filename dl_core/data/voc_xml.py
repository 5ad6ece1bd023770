"""Annotations of images as PASCAL VOC has them: an XML file for each image.

    <annotation>
      <size> <width>640</width> <height>480</height> </size>
      <object>
        <name>dog</name> <difficult>0</difficult>
        <bndbox> <xmin>1</xmin> <ymin>1</ymin> <xmax>9</xmax> <ymax>9</ymax> </bndbox>
      </object>
      …

`size` and `difficult` may be missing; other fields are not looked at. Coordinates are
taken as they are written, as TFDS does: VOC itself counts pixels from 1 and means the
last one to be in the box; other tools do neither.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple
from xml.etree import ElementTree

from dl_core.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no", "unspecified")


class Marked(NamedTuple):
    """An object of an image."""

    name: str
    box: tuple[float, float, float, float]
    """xyxy in pixels of the image."""
    difficult: bool


class Annotation(NamedTuple):
    """What a file says: the image's size if it does, its objects, and what is wrong."""

    size: tuple[int, int] | None
    """Height and width."""
    objects: tuple[Marked, ...]
    problems: tuple[str, ...]
    """A sentence for each object that is not among them."""


def read_annotation(path: pathlib.Path) -> Annotation:
    """Returns what a file says, with objects that cannot be told set apart.

    Raises:
      UserError: if there is no such file, or it is no XML.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"the annotation {path} is missing") from None
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read as XML: {error}") from None
    objects, problems = [], []
    for number, element in enumerate(root.iter("object"), 1):
        name = _text(element, "name")
        what = f"{path}: object {number}" + (f" ({name!r})" if name else "")
        try:
            objects.append(_marked(element, name))
        except ValueError as error:
            problems.append(f"{what} {error}")
    return Annotation(_size(root), tuple(objects), tuple(problems))


def outside(objects: tuple[Marked, ...], size: tuple[int, int]) -> Iterator[Marked]:
    """Yields the objects whose boxes are not all in an image.

    Args:
      objects: of the image.
      size: its height and width.
    """
    height, width = size
    for each in objects:
        x_min, y_min, x_max, y_max = each.box
        if min(x_min, y_min) < 0 or x_max > width or y_max > height:
            yield each


def _marked(element: ElementTree.Element, name: str) -> Marked:
    if not name:
        raise ValueError("has no name")
    box = element.find("bndbox")
    if box is None:
        raise ValueError("has no bndbox")
    corners = tuple(_number(box, corner) for corner in _CORNERS)
    for axis, low, high in ("x", *corners[::2]), ("y", *corners[1::2]):
        if low >= high:
            raise ValueError(
                f"has {axis}min {low:g} and {axis}max {high:g}: expected "
                f"{axis}min < {axis}max"
            )
    difficult = _text(element, "difficult").lower()
    if difficult not in _YES + _NO:
        raise ValueError(f"has difficult {difficult!r}: expected 0 or 1")
    return Marked(name, corners, difficult in _YES)


def _number(box: ElementTree.Element, field: str) -> float:
    text = _text(box, field)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        found = repr(text) if text else "nothing"
        raise ValueError(f"has {found} as {field}: expected a number of pixels")
    return number


def _text(element: ElementTree.Element, field: str) -> str:
    return (element.findtext(field) or "").strip()


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Returns the height and width; None where a tool wrote none, or 0."""
    sides = [_text(root, f"size/{side}") for side in ("height", "width")]
    if not all(side.isdecimal() and int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])
