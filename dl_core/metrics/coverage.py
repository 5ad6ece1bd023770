"""Modes that a generator covers, of a known number of equally likely ones.

Stacked MNIST has 1,000: three digits, one a colour channel (Metz, Poole, Pfau &
Sohl-Dickstein, "Unrolled generative adversarial networks", 2017). A classifier says to
which mode an image belongs; a mode is covered if one image or more is of it.
"""

from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int
from scipy.special import xlogy


class ModeCoverage(NamedTuple):
    """How many modes have an example, and how uneven they are."""

    covered: int
    kl: float
    """KL(examples' modes ‖ uniform), in nats, from 0 to log(modes)."""


def mode_coverage(labels: Int[np.ndarray, " n"], modes: int) -> ModeCoverage:
    """Returns the modes covered and the Kullback-Leibler divergence to uniform.

    A perfect generator's divergence is not 0 either: of n examples it is about
    (modes − 1) / 2n.

    Args:
      labels: the mode of each example, from 0.
      modes: how many there are.

    Raises:
      ValueError: if there are no examples or a label is not one of the modes.
    """
    labels = np.asarray(labels)
    if not labels.size or labels.min() < 0 or labels.max() >= modes:
        raise ValueError(
            f"mode_coverage: expected labels from 0 to {modes - 1}, one or more, got "
            f"{labels.size} with the values {np.unique(labels)}"
        )
    return _coverage(np.bincount(labels, minlength=modes))


def _coverage(counts: np.ndarray) -> ModeCoverage:
    shares = counts / counts.sum()
    kl = xlogy(shares, shares * len(counts)).sum()
    return ModeCoverage(int((counts > 0).sum()), float(kl))


@struct.dataclass
class Coverage:
    """The same as a metric: {"modes", "modes_kl"}."""

    counts: Float[Array, " modes"]

    @classmethod
    def of(
        cls, labels: Int[Array, " batch"], mask: Float[Array, " batch"], modes: int
    ) -> Self:
        """Returns the metric of the labels whose mask is 1; traceable.

        Labels that are no modes are not counted.
        """
        places = jnp.where((mask > 0) & (labels >= 0), labels, modes)
        return cls(jnp.zeros(modes).at[places].add(1.0, mode="drop"))

    def merge(self, other: Self) -> Self:
        """Returns the metric of both sets of examples."""
        return type(self)(self.counts + other.counts)

    def compute(self) -> dict[str, float]:
        """Returns the modes covered, and the divergence from uniform in nats."""
        covered, kl = _coverage(np.asarray(self.counts, np.float64))
        return {"modes": covered, "modes_kl": kl}
