"""Losses of adversarial networks, from the critic's scores (logits, or values).

Goodfellow et al., "Generative adversarial networks", 2014 (saturating and
non-saturating); Lim & Ye, "Geometric GAN", 2017 (hinge); Arjovsky et al., "Wasserstein
GAN", 2017; Gulrajani et al., "Improved training of Wasserstein GANs", 2017 (the
gradient penalty).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Objective = Literal["saturating", "non_saturating", "hinge", "wasserstein"]


def critic_loss(
    objective: Objective, real: Array, generated: Array
) -> Float[Array, ""]:
    """Returns the critic's loss from its scores of real and of generated examples."""
    if objective == "wasserstein":
        return jnp.mean(generated) - jnp.mean(real)
    if objective == "hinge":
        return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + generated))
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(generated))


def generator_loss(objective: Objective, generated: Array) -> Float[Array, ""]:
    """Returns the generator's loss from the critic's scores of its examples.

    Saturating: the mean of log(1 - D); non-saturating: of -log D; D = sigmoid(score).
    """
    return {
        "saturating": jnp.mean(-jax.nn.softplus(generated)),
        "non_saturating": jnp.mean(jax.nn.softplus(-generated)),
        "hinge": -jnp.mean(generated),
        "wasserstein": -jnp.mean(generated),
    }[objective]


def gradient_penalty(
    score: Callable, real: Array, generated: Array, mix: Array
) -> Float[Array, ""]:
    """Returns the mean of (‖gradient of the score‖ - 1)² between pairs of examples.

    Args:
      score: examples -> scores, each of its own example alone.
      real: examples, one of each pair.
      generated: examples, the other.
      mix: how far from `real` to `generated` to look, in [0, 1], a pair; uniform in
        the paper.
    """
    share = mix.reshape(-1, *[1] * (real.ndim - 1))
    between = real + share * (generated - real)
    gradients = jax.grad(lambda x: score(x).sum())(between)
    squares = jnp.sum(gradients**2, axis=range(1, real.ndim))
    # At a gradient of zero the norm has none of its own.
    norms = jnp.sqrt(jnp.maximum(squares, 1e-24))
    return jnp.mean((norms - 1) ** 2)
