"""Mean and covariance over batches, without keeping the rows and without cancellation.

Each batch's part is computed on the device around the batch's own mean; the parts are
merged on the host in float64: Chan, Golub & LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", 1979. Sums of squares, less the square of the
mean, would lose in float32 all digits of data that lie thousands of deviations from 0.
"""

from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float


class Gaussian(NamedTuple):
    """A mean and a covariance, in float64."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def gaussian(rows: Float[np.ndarray, "n d"]) -> Gaussian:
    """Returns the mean and the covariance (over n − 1) of rows that are all at hand.

    Raises:
      ValueError: if there are fewer than two rows.
    """
    _enough(len(rows))
    rows = np.asarray(rows, np.float64)
    return Gaussian(rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False)))


@struct.dataclass
class Moments:
    """Mean and covariance of rows, as a metric: `merge` and `compute` on the host."""

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    rest: Float[Array, " d"]
    """What rounding took from the mean."""
    scatter: Float[Array, "d d"]
    """The sum of the outer products of the rows' deviations from their mean."""

    @classmethod
    def of(cls, rows: Float[Array, "batch d"], mask: Float[Array, " batch"]) -> Self:
        """Returns the moments of the rows whose mask is 1; traceable."""
        counts = mask[:, None] > 0
        count = jnp.sum(counts, dtype=rows.dtype)
        divisor = jnp.maximum(count, 1)
        mean = jnp.sum(jnp.where(counts, rows, 0), axis=0) / divisor
        deviations = jnp.where(counts, rows - mean, 0)
        rest = jnp.sum(deviations, axis=0) / divisor
        deviations = jnp.where(counts, deviations - rest, 0)
        # Accelerators would otherwise multiply with 8 to 11 bits.
        scatter = jnp.matmul(deviations.T, deviations, precision="highest")
        return cls(count, mean, rest, scatter)

    def merge(self, other: Self) -> Self:
        """Returns the moments of both sets of rows."""
        (count1, mean1, scatter1), (count2, mean2, scatter2) = map(_wide, (self, other))
        count = count1 + count2
        share = count2 / max(count, 1)
        apart = mean2 - mean1
        scatter = scatter1 + scatter2 + count1 * share * np.outer(apart, apart)
        mean = mean1 + share * apart
        return type(self)(np.float64(count), mean, np.zeros_like(mean), scatter)

    def compute(self) -> Gaussian:
        """Returns the mean and the covariance (over n − 1).

        Raises:
          ValueError: if there are fewer than two rows.
        """
        count, mean, scatter = _wide(self)
        _enough(int(count))
        return Gaussian(mean, scatter / (count - 1))


def _wide(moments: Moments) -> tuple[float, np.ndarray, np.ndarray]:
    """Returns count, mean and scatter in float64."""
    mean, rest, scatter = (
        np.asarray(x, np.float64) for x in (moments.mean, moments.rest, moments.scatter)
    )
    return float(moments.count), mean + rest, scatter


def _enough(count: int) -> None:
    if count < 2:
        raise ValueError(f"a covariance needs two rows or more, and there are {count}")
