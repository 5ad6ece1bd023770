"""Distributions in the plane whose modes are known: rings, grids, a Swiss roll.

Scaled as in the public code of Gulrajani et al., "Improved training of Wasserstein
GANs", 2017: all lie within [-2, 2]².
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Target = Literal["8_gaussians", "25_gaussians", "swiss_roll"]

MODES = {
    "8_gaussians": np.array(
        [(np.cos(a), np.sin(a)) for a in np.arange(8) * np.pi / 4], np.float32
    )
    * np.sqrt(2),
    "25_gaussians": np.array(
        [(i, j) for i in range(-2, 3) for j in range(-2, 3)], np.float32
    )
    / np.sqrt(2),
}
SPREAD = {"8_gaussians": 0.02 / np.sqrt(2), "25_gaussians": 0.05 / np.sqrt(8)}


def sample(target: Target, key: jax.Array, count: int) -> Float[Array, "n 2"]:
    """Returns points of a target.

    Args:
      target: which one.
      key: a random key.
      count: number of points.
    """
    choice, noise = jax.random.split(key)
    normal = jax.random.normal(noise, (count, 2))
    if target == "swiss_roll":
        angle = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(choice, (count,)))
        roll = angle[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return (roll + 0.25 * normal) / 7.5
    modes = jnp.asarray(MODES[target])
    chosen = jax.random.randint(choice, (count,), 0, len(modes))
    return modes[chosen] + SPREAD[target] * normal
