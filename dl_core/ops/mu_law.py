"""The µ-law: amplitudes on a scale nearly logarithmic, so that 256 levels do for sound.

ITU-T recommendation G.711 in its continuous form, as van den Oord et al., "WaveNet: a
generative model for raw audio", 2016 (arXiv:1609.03499), section 2.2, have it:
f(x) = sign(x) ln(1 + µ |x|) / ln(1 + µ), with µ one less than the number of levels. The
levels are equally spaced in f from −1 to 1, both ends among them; an amplitude goes to
the nearest.
"""

import math

import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int


def compress(x: Float[Array, "*shape"], mu: float = 255) -> Float[Array, "*shape"]:
    """Returns f(x), from −1 to 1 as `x` is."""
    return jnp.sign(x) * jnp.log1p(mu * jnp.abs(x)) / math.log1p(mu)


def expand(y: Float[Array, "*shape"], mu: float = 255) -> Float[Array, "*shape"]:
    """Returns the amplitude whose `compress` is `y`."""
    return jnp.sign(y) * jnp.expm1(jnp.abs(y) * math.log1p(mu)) / mu


def encode(x: Float[Array, "*shape"], levels: int = 256) -> Int[Array, "*shape"]:
    """Returns the number of the level that is nearest to each amplitude.

    Args:
      x: amplitudes; those beyond ±1 go to the outermost levels.
      levels: how many, at least 2.

    Raises:
      ValueError: if there are fewer.
    """
    mu = _mu(levels)
    y = compress(jnp.clip(x, -1, 1), mu)
    return jnp.floor((y + 1) / 2 * mu + 0.5).astype(jnp.int32)


def decode(codes: Int[Array, "*shape"], levels: int = 256) -> Float[Array, "*shape"]:
    """Returns the amplitude of each level, which `encode` takes back to it.

    Args:
      codes: numbers of levels, from 0 to `levels` − 1.
      levels: how many, at least 2.

    Raises:
      ValueError: if there are fewer.
    """
    mu = _mu(levels)
    return expand((2 * codes - mu) / mu, mu)


def log_probability(
    codes: Int[Array, "*shape"],
    mean: Float[Array, "*shape"],
    deviation: float,
    levels: int = 256,
) -> Float[Array, "*shape"]:
    """Returns ln P(encode(x) = code) for an amplitude x that is normally distributed.

    Args:
      codes: as for `decode`.
      mean: of x.
      deviation: the standard deviation of x.
      levels: as for `decode`.

    Raises:
      ValueError: if there are fewer than 2 levels.
    """
    mu = _mu(levels)
    low, high = (
        (expand((2 * codes - mu + side) / mu, mu) - mean) / deviation
        for side in (-1, 1)
    )
    low = jnp.where(codes == 0, -jnp.inf, low)
    high = jnp.where(codes == mu, jnp.inf, high)
    # Both ends below the mean, where the logarithm of their probability is exact.
    low, high = jnp.where(low > 0, -high, low), jnp.where(low > 0, -low, high)
    return log_ndtr(high) + jnp.log1p(-jnp.exp(log_ndtr(low) - log_ndtr(high)))


def _mu(levels: int) -> int:
    if levels < 2:
        raise ValueError(f"µ-law: expected at least 2 levels, got {levels}")
    return levels - 1
