"""Convolutional generator and critic: DCGAN, and the standard CNN of the SN-GAN paper.

Radford, Metz & Chintala, "Unsupervised representation learning with deep convolutional
generative adversarial networks", 2016: strides in place of pooling, batch normalisation
and ReLU in the generator, leaky ReLU in the critic. Miyato et al., "Spectral
normalization for generative adversarial networks", 2018, appendix B.4, table 3: the
same with 3×3 layers of stride 1 between (`refined`).

Labels enter the generator as a one-hot code beside the latent; how they enter the
critic is told in `dl_core.models.conditioning`.

The generator's kernels begin as N(0, 0.02²), as published. The critic's begin with the
variance 1/inputs: it has no batch normalisation here to make up for small ones.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.models.conditioning import (
    Conditioning,
    Constraint,
    constrained,
    one_hot,
    with_planes,
)
from dl_core.nn.conv import Conv, ConvTranspose
from dl_core.nn.normalization import BatchNorm
from dl_core.ops.conv_lowerings import Lowering

_INIT = nn.initializers.normal(0.02)


class Generator(nn.Module):
    """Latents to images: a dense layer, then three doublings of the side."""

    width: int
    """Channels after the last doubling but one; each before has twice as many."""
    size: int
    """Pixels a side of the images, a multiple of 8."""
    channels: int
    classes: int = 0
    """Of the labels; 0 for a generator without."""
    refined: bool = False
    """Whether a 3×3 layer makes the image from `width` channels at the full size."""
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "n latent"],
        labels: Int[Array, " n"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "n size size channels"], dict[str, Array]]:
        """Returns images from -1 to 1, and the features after each doubling.

        Raises:
          ValueError: if the size is no multiple of 8, or labels are missing.
        """
        if self.size % 8:
            raise ValueError(f"Generator: expected a multiple of 8, got {self.size}")
        if self.classes:
            latents = jnp.concatenate([latents, one_hot(labels, self.classes)], axis=-1)
        widths = [8, 4, 2, 1] if self.refined else [4, 2, 1]
        first, *doublings = [self.width * factor for factor in widths]
        settings = {"kernel_init": _INIT, "lowering": self.lowering}

        def doubled(x, features, **more):
            layer = ConvTranspose(features, 4, stride=2, padding=1, **settings, **more)
            return layer(x)

        def activated(x):
            return nn.relu(BatchNorm(scale_init=_around_one)(x, train=train))

        side, endpoints = self.size // 8, {}
        x = nn.Dense(side * side * first, use_bias=False, kernel_init=_INIT)(latents)
        x = activated(x.reshape(-1, side, side, first))
        for features in doublings:
            x = activated(doubled(x, features, use_bias=False))
            endpoints[f"features_{x.shape[1]}"] = x
        if self.refined:
            x = Conv(self.channels, 3, **settings)(x)
        else:
            x = doubled(x, self.channels)
        return jnp.tanh(x), endpoints


class Critic(nn.Module):
    """Images to scores: three halvings of the side, then a dense layer."""

    width: int
    """Channels after the first halving; each of the other two doubles them."""
    constraint: Constraint = "none"
    iterations: int = 1
    """Of the power method in each training step, where there is a constraint."""
    batch_norm: bool = False
    """Whether to normalise what all convolutions but the first give."""
    classes: int = 0
    """Of the labels, where there is a conditioning."""
    conditioning: Conditioning = "none"
    refined: bool = False
    """Whether a 3×3 layer goes before each halving, and one after the last."""
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n size size channels"],
        labels: Int[Array, " n"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, " n"], dict[str, Array]]:
        """Returns the scores, and the features after each convolution.

        Args:
          images: their side is a multiple of 8.
          labels: where there is a conditioning.
          train: whether to use the batch's statistics, and to update what the
            normalisations carry along (`batch_stats`, which must then be mutable).

        Raises:
          ValueError: if the side is no multiple of 8, or labels are missing.
        """
        if images.shape[1] % 8:
            raise ValueError(
                "Critic: expected images whose side is a multiple of 8, got "
                f"{images.shape}"
            )
        x = images
        if self.conditioning == "concatenation":
            x = with_planes(x, one_hot(labels, self.classes))
        widths = [self.width * factor for factor in (1, 2, 4)]
        if self.refined:  # The paper doubles the channels at the halving.
            layers = [(self.width, 3, 1)]
            for factor in (1, 2, 4):
                layers += [(self.width * factor, 4, 2), (self.width * factor * 2, 3, 1)]
        else:
            layers = [(width, 4, 2) for width in widths]

        def limited(layer):
            return constrained(layer, self.constraint, self.iterations, train=train)

        endpoints = {}
        for number, (features, size, stride) in enumerate(layers):
            normalised = self.batch_norm and number > 0
            layer = Conv(
                features,
                size,
                stride=stride,
                padding=1,
                use_bias=not normalised,
                lowering=self.lowering,
            )
            x = limited(layer)(x)
            if normalised:
                x = BatchNorm(scale_init=_around_one)(x, train=train)
            x = nn.leaky_relu(x, 0.1 if self.refined else 0.2)
            endpoints[f"layer_{number}"] = x
        x = x.reshape(len(x), -1)
        scores = limited(nn.Dense(1))(x)[:, 0]
        if self.conditioning == "projection":
            embedding = nn.Dense(x.shape[1], use_bias=False, name="embedding")
            codes = one_hot(labels, self.classes)
            scores += jnp.sum(limited(embedding)(codes) * x, axis=-1)
        return scores, endpoints


def _around_one(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)
