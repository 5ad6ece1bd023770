"""Calibration: does what is given probability p happen in a share p of the cases?

Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks", ICML 2017,
sections 2 and 3. Confidences are put into bins of equal width; a *diagram* holds for
each bin its share of the examples, and the sums over it of confidence and of being
right, both divided by the number of all examples. It is a mean over examples, so it is
merged over batches, and masked, as any mean is.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dl_core.train.metrics import Mean


def reliability(
    confidence: Float[Array, "*shape"],
    correct: Bool[Array, "*shape"] | Int[Array, "*shape"] | Float[Array, "*shape"],
    bins: int = 15,
) -> Float[Array, "*shape 3 bins"]:
    """Returns each prediction's part of the diagram; their mean is the diagram.

    Bin m of M holds the confidences in ((m − 1)/M, m/M], the first one also 0.

    Args:
      confidence: probabilities, between 0 and 1.
      correct: whether what was predicted with this probability happened.
      bins: number of bins; 15 in the paper.

    Raises:
      ValueError: if the shapes differ or there is no bin.
    """
    if confidence.shape != correct.shape or bins < 1:
        raise ValueError(
            f"reliability: confidence {confidence.shape} and correct {correct.shape} "
            f"must have one shape, and {bins} bins be at least 1"
        )
    edges = jnp.arange(1, bins) / bins
    place = jax.nn.one_hot(jnp.searchsorted(edges, confidence), bins)
    parts = jnp.stack([jnp.ones_like(confidence), confidence, correct], axis=-1)
    return parts[..., None] * place[..., None, :]


def expected_calibration_error(
    diagram: Float[Array, "*shape 3 bins"],
) -> Float[Array, "*shape"]:
    """Returns the mean distance of accuracy from confidence (Guo et al., equation 3).

    The distance of each bin counts by the bin's share of the examples.

    Args:
      diagram: the mean of `reliability` over the examples.
    """
    return jnp.abs(diagram[..., 1, :] - diagram[..., 2, :]).sum(-1)


def calibrated_error(
    diagram: Float[Array, "*shape 3 bins"], examples: int
) -> Float[Array, "*shape"]:
    """Returns what a calibrated predictor's expected calibration error would measure.

    It is not 0: of n cases of probability p about np happen, give or take √(np(1 − p)),
    on average √(2/π) of that (the normal approximation, p the mean of its bin).

    Args:
      diagram: of which the confidences are taken, and not whether they were right.
      examples: over how many examples the diagram is the mean.
    """
    share, confidence = diagram[..., 0, :], diagram[..., 1, :]
    variance = confidence * (share - confidence) / jnp.where(share > 0, share, 1)
    return jnp.sqrt(2 / jnp.pi * jnp.maximum(variance, 0) / examples).sum(-1)


@struct.dataclass
class CalibrationError(Mean):
    """The expected calibration error, as a metric: `of(reliability(…), mask)`."""

    def compute(self) -> float:
        """Returns the error."""
        return float(expected_calibration_error(jnp.asarray(super().compute())))


@struct.dataclass
class CalibratedError(Mean):
    """What the error would be were the predictions calibrated: likewise a metric."""

    def compute(self) -> float:
        """Returns the error."""
        diagram = jnp.asarray(super().compute())
        return float(calibrated_error(diagram, int(np.max(self.count))))
