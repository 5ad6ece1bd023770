"""Sweeps: sequences of points, a point being {dotted path of a field: value}.

    chain(
        product(seed=range(3), **{"optimizer.learning_rate": (0.1, 1.0)}),
        zipped(seed=(0, 1), **{"model.depth": (2, 3)}),
    )

The notation follows the combinators of google-deepmind/simply.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

Point = dict[str, Any]
Points = tuple[Point, ...]


def product(*parts: Points, **axes: Iterable[Any]) -> Points:
    """Returns every combination of the parts' points and the axes' values.

    Args:
      *parts: sweeps to combine with each other and with the axes.
      **axes: dotted path of a field -> its values. The last axis varies fastest.

    Raises:
      ValueError: if two of them set the same field.
    """
    factors = [*parts, *(tuple({k: v} for v in vs) for k, vs in axes.items())]
    return tuple(_union(points) for points in itertools.product(*factors))


def zipped(**axes: Iterable[Any]) -> Points:
    """Returns points that take the first values of all axes, then the second, …

    Raises:
      ValueError: if the axes differ in length.
    """
    rows = zip(*axes.values(), strict=True)
    return tuple(dict(zip(axes, row, strict=True)) for row in rows)


def chain(*parts: Points) -> Points:
    """Returns the points of one sweep after those of another.

    Raises:
      ValueError: if a point occurs twice.
    """
    points = tuple(itertools.chain.from_iterable(parts))
    for i, point in enumerate(points):
        if point in points[:i]:
            raise ValueError(f"the point {point} occurs twice")
    return points


def _union(points: Iterable[Mapping[str, Any]]) -> Point:
    joined: Point = {}
    for point in points:
        if twice := joined.keys() & point.keys():
            raise ValueError(f"the field {min(twice)} is swept twice")
        joined |= point
    return joined
