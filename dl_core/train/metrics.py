"""Metrics of an evaluation: merged over batches, then computed once.

An `eval_step` returns a dict of these. Padded examples are masked out, so a number does
not depend on the batch size (up to rounding). `compute` returns a number or an array,
written under the metric's name, or a mapping of several, written under their own keys
instead (`dl_core.metrics.generative`).
"""

import math
from typing import Self

import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class Mean:
    """A mean over examples, kept as the sum and the count."""

    total: Float[Array, "*shape"]
    count: Float[Array, "*shape"]

    @classmethod
    def of(
        cls, values: Float[Array, "batch *shape"], mask: Float[Array, " batch"]
    ) -> Self:
        """Returns the mean of the rows of `values` whose mask is 1."""
        weights = jnp.expand_dims(mask, range(1, values.ndim))
        total = jnp.sum(jnp.where(weights > 0, values, 0), axis=0)
        return cls(total, jnp.broadcast_to(jnp.sum(mask), total.shape))

    def merge(self, other: Self) -> Self:
        """Returns the mean over both sets of examples."""
        return type(self)(self.total + other.total, self.count + other.count)

    def compute(self) -> Float[np.ndarray, "*shape"]:
        """Returns the mean."""
        return np.asarray(self.total) / np.asarray(self.count)


def classification(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Float[Array, " batch"],
) -> dict[str, Mean]:
    """Returns the mean cross-entropy, "loss", and the share of right ones, "accuracy".

    Args:
      logits: of each class.
      labels: the right classes.
      mask: 0 for padded examples.
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    return {"loss": Mean.of(loss, mask), "accuracy": Mean.of(right, mask)}


@struct.dataclass
class Likelihood(Mean):
    """The mean of -log p over tokens, in nats and in two other units."""

    def compute(self) -> dict[str, float]:
        """Returns nats ("loss") and bits a token, and the perplexity."""
        nats = float(super().compute())
        perplexity = math.exp(nats) if nats < 700 else math.inf
        return {"loss": nats, "bits": nats / math.log(2), "perplexity": perplexity}


@struct.dataclass
class Percentiles:
    """Percentiles over examples, kept as all the values."""

    values: Float[Array, "batch *shape"]
    mask: Float[Array, " batch"]
    percents: tuple[float, ...] = struct.field(pytree_node=False)

    def merge(self, other: Self) -> Self:
        """Returns the percentiles over both sets of examples."""
        return self.replace(
            values=np.concatenate([self.values, other.values]),
            mask=np.concatenate([self.mask, other.mask]),
        )

    def compute(self) -> Float[np.ndarray, "percents *shape"]:
        """Returns the percentiles, linearly interpolated."""
        kept = np.asarray(self.values)[np.asarray(self.mask) > 0]
        return np.percentile(kept, self.percents, axis=0)
