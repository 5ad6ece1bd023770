"""Euclidean distances between sets of features, and how widely a set is spread."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

_ROWS = 1_024
"""Rows of a matrix of distances that are held at a time."""


def squared_distances(
    x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"]
) -> Iterator[Float[np.ndarray, "rows n"]]:
    """Yields the squared distances from the rows of `x` to all of `y`, in blocks.

    Raises:
      ValueError: if the dimensions differ.
    """
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"squared_distances: features {x.shape} and {y.shape} must have the same "
            "dimensions"
        )
    # From a product of matrices, far faster than differences, which loses digits far
    # from 0.
    centre = np.mean(y, axis=0, dtype=np.float64)
    x, y = x - centre, y - centre
    squares = np.einsum("nd,nd->n", y, y)
    for start in range(0, len(x), _ROWS):
        block = x[start : start + _ROWS]
        own = np.einsum("nd,nd->n", block, block)
        yield np.maximum(own[:, None] + squares - 2 * block @ y.T, 0)


def mean_distance(x: Float[np.ndarray, "n d"]) -> float:
    """Returns the mean distance between two different rows of a set.

    Raises:
      ValueError: if there are fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError(f"mean_distance: {len(x)} rows, and two or more are needed")
    total = 0.0
    for number, block in enumerate(squared_distances(x, x)):
        own = np.arange(len(block))
        block[own, own + number * _ROWS] = 0  # Not what rounding makes of it.
        total += np.sqrt(block).sum()
    return float(total / (len(x) * (len(x) - 1)))


def diversity(
    real: Float[np.ndarray, "m d"], generated: Float[np.ndarray, "n d"]
) -> float:
    """Returns the mean distance within the generated features over the real ones'.

    Near 1 where they are as varied as the real ones, 0 where all are the same. NaN if
    the real ones are all the same.
    """
    spread = mean_distance(real)
    return mean_distance(generated) / spread if spread else float("nan")
