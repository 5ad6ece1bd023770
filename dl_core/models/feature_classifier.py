"""A small classifier of 32×32 images whose last hidden layer gives features.

Distances between sets of images are distances between their features (Heusel et al.,
"GANs trained by a two time-scale update rule converge to a local Nash equilibrium",
2017, with those of an Inception network). `gans.features` trains this network for data
sets that Inception was not made for; it is small enough to look at thousands of images
an evaluation on a CPU.
"""

import flax.linen as nn
from jaxtyping import Array, Float

from dl_core.nn.conv import Conv
from dl_core.nn.normalization import BatchNorm

SIDE = 32
"""Pixels a side of the images."""
FEATURES = 64
"""Dimensions of the features."""


class FeatureClassifier(nn.Module):
    """Three normalised 3×3 layers of stride 2, a hidden layer, and the logits.

    The features are the hidden layer's normalised values before its ReLU. A Fréchet
    distance compares means and covariances, which describe these better than what the
    ReLU leaves: mostly zeros, with units that are zero for whole classes. The
    normalisation gives each feature the same weight, at training's start at least.
    """

    width: int
    """Channels of the first layer; each next has twice as many."""
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width channels"], *, train: bool
    ) -> tuple[Float[Array, "n classes"], dict[str, Array]]:
        """Returns the logits, and the features by that name.

        Args:
          images: of 32×32 pixels, from -1 to 1.
          train: whether to normalise by the batch, and to update `batch_stats`.

        Raises:
          ValueError: if the images are of another size.
        """
        if images.shape[1:3] != (SIDE, SIDE):
            raise ValueError(
                f"FeatureClassifier: expected images of {SIDE}×{SIDE} pixels, got "
                f"{images.shape}"
            )
        x = images
        for doublings in range(3):
            x = Conv(self.width << doublings, 3, stride=2, use_bias=False)(x)
            x = nn.relu(BatchNorm()(x, train=train))
        x = nn.Dense(FEATURES, use_bias=False)(x.reshape(len(x), -1))
        features = BatchNorm()(x, train=train)
        return nn.Dense(self.classes)(nn.relu(features)), {"features": features}
