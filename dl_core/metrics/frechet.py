"""The Fréchet distance between Gaussians that have the moments of two sets of features.

Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982;
for generated images Heusel et al., "GANs trained by a two time-scale update rule
converge to a local Nash equilibrium", 2017, where the features are those of an
Inception network. As there, it is the square of the distance. Estimated from few
examples it is too large: compare values from the same number of examples alone.
"""

from typing import Self

import numpy as np
from flax import struct
from jaxtyping import Array, Float

from dl_core.metrics.moments import Moments


def frechet_distance(
    mean1: Float[np.ndarray, " d"],
    covariance1: Float[np.ndarray, "d d"],
    mean2: Float[np.ndarray, " d"],
    covariance2: Float[np.ndarray, "d d"],
) -> float:
    """Returns |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), in float64.

    The last trace is the sum of the singular values of F₁ᵀF₂, where Σ = FFᵀ: of real
    numbers alone and without the root of a product, whose rounding would count where
    covariances have no full rank (fewer examples than dimensions, dead units).

    Args:
      mean1: of the one set.
      covariance1: of the same; symmetric, without negative eigenvalues.
      mean2: of the other set.
      covariance2: of the same.

    Returns:
      The distance; NaN where a moment is not finite.

    Raises:
      ValueError: if the dimensions differ.
    """
    mean1, mean2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    pair = [np.asarray(c, np.float64) for c in (covariance1, covariance2)]
    if not mean1.shape * 2 == mean2.shape * 2 == pair[0].shape == pair[1].shape:
        raise ValueError(
            f"frechet_distance: means {mean1.shape} and {mean2.shape} and covariances "
            f"{pair[0].shape} and {pair[1].shape} must have the same dimensions"
        )
    apart = mean1 - mean2
    total = apart @ apart + np.trace(pair[0]) + np.trace(pair[1])
    if not all(np.isfinite(x).all() for x in (total, *pair)):
        return float("nan")
    factor1, factor2 = map(_factor, pair)
    common = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    return float(max(total - 2 * common, 0))


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d rank"]:
    """Returns F with FFᵀ the covariance, and as many columns as it has rank."""
    values, vectors = np.linalg.eigh(covariance)
    # Smaller ones are rounding, as in numpy.linalg.matrix_rank.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


@struct.dataclass
class FrechetDistance:
    """The distance as a metric that keeps moments, for sets too large to keep rows."""

    real: Moments
    generated: Moments

    @classmethod
    def of(
        cls,
        real: Float[Array, "batch d"],
        generated: Float[Array, "batch d"],
        mask: Float[Array, " batch"],
    ) -> Self:
        """Returns the metric of the features whose mask is 1; traceable."""
        return cls(Moments.of(real, mask), Moments.of(generated, mask))

    def merge(self, other: Self) -> Self:
        """Returns the metric of both sets of examples."""
        return type(self)(
            self.real.merge(other.real), self.generated.merge(other.generated)
        )

    def compute(self) -> float:
        """Returns the distance."""
        return frechet_distance(*self.real.compute(), *self.generated.compute())
