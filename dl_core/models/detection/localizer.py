"""A classifier of digits, and heads that give boxes from what its layers see.

After Sermanet et al., "OverFeat", ICLR 2014, section 4: two hidden layers between the
features and the sides of a box.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.config import config, static
from dl_core.nn.conv import Conv

CLASSES = 10


@config
class Network:
    """The convolution layers, and what comes after them."""

    width: int = static(
        24, "Channels of the first layer; each next has twice as many.", at_least=1
    )
    depth: int = static(3, "Convolution layers; each halves the image.", at_least=1)
    hidden: int = static(128, "Units of a head's first layer.", at_least=2)


_he = nn.initializers.he_normal()


class Classifier(nn.Module):
    """Convolution layers of stride 2, and a head for the class."""

    model: Network

    def setup(self):
        """Names the layers."""
        widths = [self.model.width << i for i in range(self.model.depth)]
        self.layers = [Conv(width, 3, stride=2, kernel_init=_he) for width in widths]
        self.head = nn.Sequential(
            [nn.Dense(self.model.hidden), nn.relu, nn.Dense(CLASSES)]
        )

    def features(
        self, images: Float[Array, "batch height width 1"]
    ) -> Float[Array, "batch features"]:
        """Returns what the last convolution layer gives, as vectors."""
        x = images
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x.reshape(len(x), -1)

    def classify(
        self, features: Float[Array, "batch features"]
    ) -> Float[Array, "batch 10"]:
        """Returns the logits of the classes."""
        return self.head(features)

    def __call__(
        self, images: Float[Array, "batch height width 1"]
    ) -> Float[Array, "batch 10"]:
        """Returns the logits of the classes."""
        return self.classify(self.features(images))


class Regressor(nn.Module):
    """Two hidden layers and boxes: one, or one for each class."""

    hidden: int
    boxes: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch features"]
    ) -> Float[Array, "batch boxes 4"]:
        """Returns the sides of boxes, in sides of the image."""
        x = nn.relu(nn.Dense(self.hidden)(features))
        x = nn.relu(nn.Dense(self.hidden // 2)(x))
        x = nn.Dense(4 * self.boxes, bias_init=_about_the_middle)(x)
        return x.reshape(len(x), self.boxes, 4)


def _about_the_middle(key, shape, dtype=jnp.float32):
    return jnp.tile(jnp.array([0.25, 0.25, 0.75, 0.75], dtype), shape[0] // 4)
