"""Precision and recall of generated images: are they like real ones, and are all there?

Kynkäänniemi, Karras, Laine, Lehtinen & Aila, "Improved precision and recall metric for
assessing generative models", 2019, section 2: a set's manifold is the union of balls
around its features, each reaching to the k-th nearest other feature of the set.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dl_core.metrics.distances import squared_distances


class PrecisionRecall(NamedTuple):
    """Shares, from 0 to 1."""

    precision: float
    """Of the generated images, those that lie in the manifold of the real ones."""
    recall: float
    """Of the real images, those that lie in the manifold of the generated ones."""


def precision_recall(
    real: Float[np.ndarray, "m d"], generated: Float[np.ndarray, "n d"], k: int = 3
) -> PrecisionRecall:
    """Returns precision and recall of generated features.

    Both depend on the numbers of examples: compare values from the same ones alone.

    Args:
      real: features of real images.
      generated: features of generated images.
      k: which neighbour the balls reach to; 3 in the paper.

    Raises:
      ValueError: if the dimensions differ, or a set has no k-th neighbour.
    """
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(
            f"precision_recall: k = {k} must be 1 or more and less than the rows of "
            f"features {real.shape} and {generated.shape}"
        )
    return PrecisionRecall(
        float(_inside(generated, real, k).mean()),
        float(_inside(real, generated, k).mean()),
    )


def _inside(
    points: Float[np.ndarray, "m d"], centres: Float[np.ndarray, "n d"], k: int
) -> Bool[np.ndarray, " m"]:
    """Returns which points lie in the manifold of the centres."""
    # Each centre's nearest is itself.
    radii = np.concatenate(
        [np.partition(x, k, axis=1)[:, k] for x in squared_distances(centres, centres)]
    )
    return np.concatenate(
        [(x <= radii).any(1) for x in squared_distances(points, centres)]
    )
