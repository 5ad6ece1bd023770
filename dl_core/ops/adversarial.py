"""Losses of adversarial networks, from the critic's scores (logits, or values).

Goodfellow et al., "Generative adversarial networks", 2014 (saturating and
non-saturating); Arjovsky et al., "Wasserstein GAN", 2017; Gulrajani et al., "Improved
training of Wasserstein GANs", 2017 (the gradient penalty).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Objective = Literal["saturating", "non_saturating", "wasserstein"]


def critic_loss(
    objective: Objective, real: Array, generated: Array
) -> Float[Array, ""]:
    """Returns the critic's loss from its scores of real and of generated points."""
    if objective == "wasserstein":
        return jnp.mean(generated) - jnp.mean(real)
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(generated))


def generator_loss(objective: Objective, generated: Array) -> Float[Array, ""]:
    """Returns the generator's loss from the critic's scores of its points.

    Saturating: the mean of log(1 - D); non-saturating: of -log D; D = sigmoid(score).
    """
    return {
        "saturating": jnp.mean(-jax.nn.softplus(generated)),
        "non_saturating": jnp.mean(jax.nn.softplus(-generated)),
        "wasserstein": -jnp.mean(generated),
    }[objective]


def gradient_penalty(
    score: Callable, real: Array, generated: Array, mix: Array
) -> Array:
    """Returns the mean of (‖gradient of the score‖ - 1)² between pairs of points.

    Args:
      score: points -> scores.
      real: points, one of each pair.
      generated: points, the other.
      mix: how far from `real` to `generated` to look, in [0, 1], a pair.
    """
    between = real + mix[:, None] * (generated - real)
    gradients = jax.grad(lambda x: score(x).sum())(between)
    return jnp.mean((jnp.linalg.norm(gradients, axis=1) - 1) ** 2)
