"""What tells positions apart for layers that see sets: encodings and rotations.

binary       the digits of the position
sinusoidal   sines and cosines of wavelengths from 2π to 10,000 · 2π
Learned      a vector for each position
rotary       no encoding of its own: queries and keys are turned by their position
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_WAVES = 10_000


def binary(length: int, bits: int) -> Float[Array, "length bits"]:
    """Returns the binary digits of the positions, lowest first.

    Args:
      length: number of positions.
      bits: number of digits.

    Raises:
      ValueError: if some positions would have the same digits.
    """
    if length > 2**bits:
        raise ValueError(
            f"binary: {bits} digits tell {2**bits} positions apart, got {length}"
        )
    return (jnp.arange(length)[:, None] >> jnp.arange(bits) & 1).astype(jnp.float32)


def sinusoidal(length: int, features: int) -> Float[Array, "length features"]:
    """Returns sines (even features) and cosines (odd ones) of the positions.

    At position t, features 2i and 2i + 1 are the sine and the cosine of
    t / 10,000^(2i / features) (Vaswani et al., 2017, arXiv:1706.03762, section 3.5).

    Args:
      length: number of positions.
      features: of each; even.

    Raises:
      ValueError: if the number of features is odd.
    """
    angles = _angles(jnp.arange(length), features, "sinusoidal")
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(length, features)


def rotary(
    x: Float[Array, "batch time heads depth"],
    positions: Int[Array, "*#batch time"],
) -> Float[Array, "batch time heads depth"]:
    """Returns queries or keys turned by their positions.

    Each pair of features, 2i and 2i + 1, is turned by the angle t / 10,000^(2i /
    depth), so the product of a query and a key depends on the difference of their
    positions alone (Su et al., "RoFormer", 2021, arXiv:2104.09864).

    Args:
      x: queries or keys; an even number of features a head.
      positions: the same for all sequences, "time", or of each, "batch time".

    Raises:
      ValueError: if the number of features is odd.
    """
    angles = _angles(positions, x.shape[-1], "rotary")[..., None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)


class Learned(nn.Module):
    """A vector of parameters for each position."""

    longest: int
    """Number of positions."""
    features: int
    """Numbers of each."""
    table_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(
        self, positions: Int[Array, "*shape time"]
    ) -> Float[Array, "*shape time features"]:
        """Returns the vectors of these positions; NaN for one beyond the last.

        Raises:
          ValueError: if there are more positions than vectors.
        """
        if positions.shape[-1] > self.longest:
            raise ValueError(
                f"Learned: {self.longest} positions are known, got "
                f"{positions.shape[-1]}"
            )
        table = self.param("table", self.table_init, (self.longest, self.features))
        return jnp.take(table, positions, axis=0, mode="fill", fill_value=jnp.nan)


def _angles(positions: jax.Array, features: int, name: str) -> jax.Array:
    if features % 2:
        raise ValueError(f"{name}: the number of features must be even, got {features}")
    powers = jnp.arange(0, features, 2) / features
    return positions[..., None] / _WAVES**powers
