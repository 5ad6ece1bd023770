"""Optimal transport between samples."""

import os

import numpy as np
from jaxtyping import Float


def wasserstein(
    x: Float[np.ndarray, "n dims"], y: Float[np.ndarray, "m dims"]
) -> float:
    """Returns the exact Wasserstein-1 distance between two sets of points.

    The points of a set weigh the same; the cost is the Euclidean distance. The linear
    programme is solved by POT (Flamary et al., JMLR 2021), on the host.
    """
    # POT would otherwise import every array library that is installed.
    for name in ("PYTORCH", "JAX", "TENSORFLOW", "CUPY"):
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{name}", "1")
    import ot

    cost = ot.dist(np.asarray(x, np.float64), np.asarray(y, np.float64), "euclidean")
    return float(ot.emd2([], [], cost))
