"""How near images are to their targets: classes by colour, sharpness, their ratios."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8
from scipy.cluster.vq import kmeans2


@struct.dataclass
class Ratio:
    """A sum over examples divided by another, averaged over the classes that occur."""

    part: Float[Array, " classes"]
    whole: Float[Array, " classes"]

    def merge(self, other: "Ratio") -> "Ratio":
        """Returns the ratio over both sets of examples."""
        return Ratio(self.part + other.part, self.whole + other.whole)

    def compute(self) -> float:
        """Returns the mean ratio."""
        part, whole = np.asarray(self.part), np.asarray(self.whole)
        return float(np.mean(part[whole > 0] / whole[whole > 0]))


def palette(
    images: UInt8[np.ndarray, "n height width 3"], classes: int, samples: int = 40_000
) -> Float[np.ndarray, "classes 3"]:
    """Returns the colours that stand for all pixels of images, by k-means.

    They are numbers from -1 to 1, the brightest first. Of ten beginnings the one is
    taken that ends nearest to the pixels; the result is the same for all runs.

    Args:
      images: of any size.
      classes: how many colours.
      samples: pixels that are looked at, evenly spread.
    """
    pixels = np.reshape(images, (-1, 3))
    pixels = pixels[:: max(1, len(pixels) // samples)] / 127.5 - 1

    def far(found):
        colors, nearest = found
        return np.square(pixels - colors[nearest]).sum()

    tries = [kmeans2(pixels, classes, minit="++", rng=seed) for seed in range(10)]
    colors, _ = min(tries, key=far)
    return colors[np.argsort(-colors.sum(axis=1))].astype(np.float32)


def nearest(
    images: Float[Array, "n height width 3"], colors: Float[Array, "classes 3"]
) -> Int[Array, "n height width"]:
    """Returns which colour is nearest to each pixel."""
    return jnp.square(images[..., None, :] - colors).sum(-1).argmin(-1)


def gradient_energy(
    images: Float[Array, "n height width channels"],
) -> Float[Array, " n"]:
    """Returns the sum of the squares of all differences between neighbouring pixels."""
    axes = (1, 2, 3)
    return sum(jnp.square(jnp.diff(images, axis=axis)).sum(axes) for axis in (1, 2))
