"""The residual generator and critic of the SN-GAN paper, for images of 32 pixels.

Miyato et al., "Spectral normalization for generative adversarial networks", 2018,
appendix B.4, table 4; the conditional batch normalisation in the generator and the
projection in the critic are of Miyato & Koyama, "cGANs with projection discriminator",
2018. Where the papers are silent this follows the authors' code
(github.com/pfnet-research/sngan_projection): nearest upsampling before the first
convolution of a block, average pooling after the last, no ReLU at the critic's start,
the *sum* over positions before its dense layer, which has no bias, no classes in the
generator's last batch normalisation, its ε, and the initial weights.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.models.conditioning import (
    Conditioning,
    Constraint,
    constrained,
    one_hot,
    with_planes,
)
from dl_core.nn.conv import Conv
from dl_core.nn.normalization import BatchNorm
from dl_core.ops.conv_lowerings import Lowering
from dl_core.ops.pooling import avg_pool

_GLOROT = nn.initializers.glorot_uniform()
_RESIDUAL = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
_Norm = functools.partial(BatchNorm, epsilon=2e-5, unbiased=True)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with a scale and a bias for each class.

    The statistics are of the whole batch, whatever the classes in it.
    """

    classes: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n height width features"],
        labels: Int[Array, " n"] | None,
        *,
        train: bool,
    ) -> Float[Array, "n height width features"]:
        """Returns the normalised `x`, scaled and shifted as its labels tell.

        Raises:
          ValueError: if labels are missing.
        """
        codes, shape = one_hot(labels, self.classes), (self.classes, x.shape[-1])
        scales = codes @ self.param("scales", nn.initializers.ones_init(), shape)
        biases = codes @ self.param("biases", nn.initializers.zeros_init(), shape)
        x = _Norm(use_scale=False, use_bias=False)(x, train=train)
        return x * scales[:, None, None] + biases[:, None, None]


class GeneratorBlock(nn.Module):
    """A residual block that doubles the side."""

    width: int
    classes: int
    lowering: Lowering

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n height width in"],
        labels: Int[Array, " n"] | None,
        *,
        train: bool,
    ) -> Float[Array, "n rows columns {self.width}"]:
        """Returns the block's output, of twice the side."""

        def conv(size, init):
            return Conv(self.width, size, kernel_init=init, lowering=self.lowering)

        def activated(h):
            if self.classes:
                h = ConditionalBatchNorm(self.classes)(h, labels, train=train)
            else:
                h = _Norm()(h, train=train)
            return nn.relu(h)

        h = conv(3, _RESIDUAL)(_upsampled(activated(x)))
        h = conv(3, _RESIDUAL)(activated(h))
        # A 1×1 convolution before is the same as after, with a quarter of the work.
        return h + _upsampled(conv(1, _GLOROT)(x))


class Generator(nn.Module):
    """Latents to images: a dense layer, then three residual blocks that upsample."""

    width: int
    """Channels everywhere; 256 in the paper."""
    size: int
    """Pixels a side of the images, a multiple of 8; 32 in the paper."""
    channels: int
    classes: int = 0
    """Of the labels; 0 for a generator without."""
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "n latent"],
        labels: Int[Array, " n"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "n size size channels"], dict[str, Array]]:
        """Returns images from -1 to 1, and the features after each block.

        Raises:
          ValueError: if the size is no multiple of 8, or labels are missing.
        """
        if self.size % 8:
            raise ValueError(f"Generator: expected a multiple of 8, got {self.size}")
        start, endpoints = self.size // 8, {}
        x = nn.Dense(start * start * self.width, kernel_init=_GLOROT)(latents)
        x = x.reshape(len(x), start, start, self.width)
        for number in range(3):
            block = GeneratorBlock(
                self.width, self.classes, self.lowering, name=f"block_{number}"
            )
            x = endpoints[f"block_{number}"] = block(x, labels, train=train)
        x = nn.relu(_Norm()(x, train=train))
        x = Conv(self.channels, 3, kernel_init=_GLOROT, lowering=self.lowering)(x)
        return jnp.tanh(x), endpoints


class CriticBlock(nn.Module):
    """A residual block that halves the side or keeps it."""

    width: int
    halve: bool
    first: bool
    """Whether its input are images, which no ReLU goes before."""
    constraint: Constraint
    iterations: int
    batch_norm: bool
    lowering: Lowering

    @nn.compact
    def __call__(
        self, x: Float[Array, "n height width in"], *, train: bool
    ) -> Float[Array, "n rows columns {self.width}"]:
        """Returns the block's output."""

        def conv(h, size, init):
            layer = Conv(self.width, size, kernel_init=init, lowering=self.lowering)
            divided = constrained(layer, self.constraint, self.iterations, train=train)
            return divided(h)

        def activated(h):
            return nn.relu(_Norm()(h, train=train) if self.batch_norm else h)

        h = conv(x if self.first else activated(x), 3, _RESIDUAL)
        h = conv(activated(h), 3, _RESIDUAL)
        if not self.halve:
            return h + x
        # A 1×1 convolution after is the same as before, with a quarter of the work.
        return avg_pool(h, 2) + conv(avg_pool(x, 2), 1, _GLOROT)


class Critic(nn.Module):
    """Images to scores: four residual blocks, the sum over positions, a dense layer."""

    width: int
    """Channels everywhere; 128 in the paper."""
    constraint: Constraint = "none"
    iterations: int = 1
    """Of the power method in each training step, where there is a constraint."""
    batch_norm: bool = False
    """Whether to normalise before each ReLU but the last; the paper does not."""
    classes: int = 0
    """Of the labels, where there is a conditioning."""
    conditioning: Conditioning = "none"
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n size size channels"],
        labels: Int[Array, " n"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, " n"], dict[str, Array]]:
        """Returns the scores, and the features after each block.

        Args:
          images: their side is a multiple of 4.
          labels: where there is a conditioning.
          train: whether to use the batch's statistics, and to update what the
            normalisations carry along (`batch_stats`, which must then be mutable).

        Raises:
          ValueError: if the side is no multiple of 4, or labels are missing.
        """
        if images.shape[1] % 4:
            raise ValueError(
                "Critic: expected images whose side is a multiple of 4, got "
                f"{images.shape}"
            )
        x, endpoints = images, {}
        if self.conditioning == "concatenation":
            x = with_planes(x, one_hot(labels, self.classes))
        for number in range(4):
            block = CriticBlock(
                self.width,
                halve=number < 2,
                first=number == 0,
                constraint=self.constraint,
                iterations=self.iterations,
                batch_norm=self.batch_norm,
                lowering=self.lowering,
                name=f"block_{number}",
            )
            x = endpoints[f"block_{number}"] = block(x, train=train)
        x = nn.relu(x).sum((1, 2))

        def dense(x, features, name=None):
            layer = nn.Dense(features, use_bias=False, kernel_init=_GLOROT, name=name)
            divided = constrained(layer, self.constraint, self.iterations, train=train)
            return divided(x)

        scores = dense(x, 1)[:, 0]
        if self.conditioning == "projection":
            codes = one_hot(labels, self.classes)
            scores += jnp.sum(dense(codes, self.width, "embedding") * x, axis=-1)
        return scores, endpoints


def _upsampled(x: Array) -> Array:
    """Returns images of twice the side, each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
