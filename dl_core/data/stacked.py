"""Stacked digits: three random digits as the colour channels of one image, 1,000 modes.

Metz, Poole, Pfau & Sohl-Dickstein, "Unrolled generative adversarial networks", 2017,
section 3.3: which of the 1,000 triples of digits a generator makes is told by a
classifier of single digits, applied to each channel; how many it makes at all, and the
divergence of their shares from the uniform distribution, tell a mode collapse.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from dl_core.metrics.coverage import Coverage

CHANNELS = 3
CLASSES = 10
MODES = CLASSES**CHANNELS
_COLLAPSED = 0.1
"""Share of the modes to be expected, below which a generator has collapsed."""


def draw_stacks(
    key: jax.Array, digits: UInt8[Array, "digits height width 1"], count: int
) -> UInt8[Array, "count height width 3"]:
    """Returns stacks of digits, each drawn at random, with replacement.

    Args:
      key: of the draw.
      digits: grey images.
      count: of the stacks.

    Raises:
      ValueError: if the images are not grey.
    """
    if digits.shape[-1:] != (1,):
        raise ValueError(f"draw_stacks: expected grey images, got {digits.shape}")
    chosen = jax.random.randint(key, (count, CHANNELS), 0, len(digits))
    return jnp.moveaxis(digits[chosen, ..., 0], 1, -1)


def split_stacks(
    stacks: Float[Array, "n height width channels"],
) -> Float[Array, "more height width 1"]:
    """Returns the channels as grey images, those of a stack one after the other."""
    n, *size, channels = stacks.shape
    return jnp.moveaxis(stacks, -1, 1).reshape(n * channels, *size, 1)


def modes_of(labels: Int[Array, " digits"]) -> Int[Array, " n"]:
    """Returns the modes, 0 to 999, of stacks whose channels are these digits.

    Args:
      labels: from 0 to 9, three a stack, as `split_stacks` has them.
    """
    return labels.reshape(-1, CHANNELS) @ CLASSES ** np.arange(CHANNELS)[::-1]


def expected_modes(samples: int, modes: int = MODES) -> float:
    """Returns how many of equally likely modes so many samples have on average."""
    return float(-modes * np.expm1(samples * np.log1p(-1 / modes)))


@struct.dataclass
class StackCoverage(Coverage):
    """Adds to {"modes", "modes_kl"} whether the samples have "collapsed", 1 or 0.

    That is if they have less than a tenth of the modes that as many samples would have,
    were all modes equally likely.
    """

    def compute(self) -> dict[str, float]:
        """Returns the modes covered, their divergence in nats, and the verdict."""
        found = Coverage(self.counts).compute()
        counts = np.asarray(self.counts)
        enough = _COLLAPSED * expected_modes(int(counts.sum()), len(counts))
        return {**found, "collapsed": float(found["modes"] < enough)}
