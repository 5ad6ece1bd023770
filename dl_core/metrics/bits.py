"""What sequences of bits cost: cross-entropies and wrong bits, summed over a sequence.

Graves, Wayne & Danihelka, 2014 (arXiv:1410.5401), measure "cost per sequence (bits)".
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def cost(
    logits: Float[Array, "batch time bits"],
    targets: Float[Array, "batch time bits"],
    weight: Float[Array, "batch time"],
) -> Float[Array, " batch"]:
    """Returns the cross-entropy of all that each sequence is to say, in bits.

    Args:
      logits: of a 1.
      targets: 0 or 1.
      weight: 1 at the steps that count, 0 at others.
    """
    nats = optax.sigmoid_binary_cross_entropy(logits, targets)
    return (nats.sum(-1) * weight).sum(-1) / jnp.log(2)


def wrong(
    logits: Float[Array, "batch time bits"],
    targets: Float[Array, "batch time bits"],
    weight: Float[Array, "batch time"],
) -> Float[Array, " batch"]:
    """Returns how many bits of each sequence are said wrong, where 0.5 is the limit.

    Args: as for `cost`.
    """
    return (((logits > 0) != (targets > 0.5)).sum(-1) * weight).sum(-1)
