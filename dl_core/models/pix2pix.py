"""Networks that make an image of an image: U-Net generator and PatchGAN critic.

Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR
2017, section 3.2 and the appendix: an encoder and decoder with skip connections, and a
critic that scores patches.

The paper normalises by the statistics of the test batch, at batch size 1: that is
instance normalisation, which is what is used here. With it an output does not depend
on the other images of its batch, whatever their number, and training and test do the
same; batch normalisation with running averages, by which later code evaluates, is
another function than the one that was trained, and users see it in their results.
Where a single value a channel is left, at the bottleneck, nothing is normalised: it
would be 0.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.nn.conv import Conv, ConvTranspose
from dl_core.ops.conv_lowerings import Lowering

Patch = Literal[1, 16, 34, 70, 142, 286, "image"]
"""Pixels a side of what one score of the critic sees."""

_INIT = nn.initializers.normal(0.02)
_HALVINGS = {16: 1, 34: 2, 70: 3, 142: 4, 286: 5}
"""Layers of stride 2, of the critic of each patch."""
_MOST = 8
"""Channels of the widest layers, as a multiple of the first's."""


def _normalized(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Instance normalisation with a scale and a shift, but of single values."""
    if x.shape[1] * x.shape[2] == 1:
        return x
    return nn.InstanceNorm(epsilon=1e-5, use_fast_variance=False)(x)


class UNet(nn.Module):
    """Images to images of the same size, a power of two.

    Strided convolutions halve the side until it is 1, transposed ones double it again;
    each of these sees the output of its mirror image in the encoder beside that of the
    layer before it.
    """

    width: int
    """Channels of the first layer; each later one has twice as many, up to 8 times."""
    channels: int
    """Channels of the output."""
    dropout: float = 0.5
    """Share of activations dropped in the first three layers of the decoder but the
    last, wherever a key of that name is given: in the paper, in tests too."""
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, images: Float[Array, "n size size in"]
    ) -> tuple[Float[Array, "n size size channels"], dict[str, Array]]:
        """Returns images from -1 to 1, and the output of each layer.

        Raises:
          ValueError: if the images are not square, or their side no power of two.
        """
        size = images.shape[1]
        depth = size.bit_length() - 1
        if images.shape[1:3] != (size, size) or size != 2**depth or depth < 2:
            raise ValueError(
                "UNet: expected square images whose side is a power of two, at least "
                f"4, got {images.shape}"
            )
        settings = {
            "stride": 2,
            "padding": 1,
            "kernel_init": _INIT,
            "lowering": self.lowering,
        }
        widths = [self.width * min(2**level, _MOST) for level in range(depth)]
        endpoints, x = {}, images
        for level, features in enumerate(widths):
            if level:
                x = nn.leaky_relu(x, 0.2)
            x = Conv(features, 4, name=f"down_{level}", **settings)(x)
            if level:
                x = _normalized(x)
            endpoints[f"down_{level}"] = x
        for level in reversed(range(depth)):
            if level < depth - 1:
                x = jnp.concatenate([x, endpoints[f"down_{level}"]], axis=-1)
            features = widths[level - 1] if level else self.channels
            name = f"up_{level}"
            x = ConvTranspose(features, 4, name=name, **settings)(nn.relu(x))
            if level:
                x = _normalized(x)
                if level > depth - 4:
                    given = self.has_rng("dropout")
                    x = nn.Dropout(self.dropout, deterministic=not given)(x)
            endpoints[name] = x
        return jnp.tanh(x), endpoints


class PatchCritic(nn.Module):
    """Images, and what they were made from, to a score for each patch.

    The patch is what the convolutions see. The statistics of a normalisation are of
    the whole image: without it no score depends on anything outside of its patch.
    """

    width: int
    """Channels of the first layer; each later one has twice as many, up to 8 times."""
    patch: Patch = 70
    """1 has layers of 1×1 filters; "image" ends in one score for the image."""
    normalize: bool = True
    """Whether layers between the first and the last are normalised."""
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "n height width channels"],
        inputs: Float[Array, "n height width in"] | None = None,
    ) -> tuple[Float[Array, "n rows columns"], dict[str, Array]]:
        """Returns the scores (logits), and the output of each layer.

        Args:
          images: real or generated, from -1 to 1.
          inputs: what they were made from; None for an unconditional critic.

        Raises:
          ValueError: if inputs and images differ in size, or are too small.
        """
        x = images
        if inputs is not None:
            if inputs.shape[:3] != images.shape[:3]:
                raise ValueError(
                    f"PatchCritic: images {images.shape} and inputs {inputs.shape} "
                    "differ in number or size"
                )
            x = jnp.concatenate([inputs, images], axis=-1)
        settings = {"lowering": self.lowering}
        if self.normalize:  # Else so small kernels would let nothing through.
            settings["kernel_init"] = _INIT
        *hidden, last = _layers(self.patch, images.shape[1:3])
        endpoints = {}
        for level, layer in enumerate(hidden):
            features, name = self.width * min(2**level, _MOST), f"layer_{level}"
            x = Conv(features, name=name, **layer, **settings)(x)
            if level and self.normalize:
                x = _normalized(x)
            x = endpoints[name] = nn.leaky_relu(x, 0.2)
        x = endpoints["scores"] = Conv(1, name="scores", **last, **settings)(x)
        return x[..., 0], endpoints


def _layers(patch: Patch, size: tuple[int, ...]) -> list[dict[str, Any]]:
    """Returns window, stride and padding of each layer of a critic."""
    if patch == 1:
        return 3 * [{"kernel_size": 1}]
    halving = {"kernel_size": 4, "stride": 2, "padding": 1}
    if patch == "image":
        halvings = max(0, min(size).bit_length() - 3)
        left = tuple(side >> halvings for side in size)
        return halvings * [halving] + [{"kernel_size": left, "padding": 0}]
    sliding = {"kernel_size": 4, "stride": 1, "padding": 1}
    if min(size) < smallest_image(patch):
        raise ValueError(
            f"PatchCritic: images of {size} pixels are too small for patches of {patch}"
        )
    return _HALVINGS[patch] * [halving] + 2 * [sliding]


def smallest_image(patch: Patch) -> int:
    """Returns the least side of images for patches of a size."""
    # Each of the last two windows, of 4 with a padding of 1, takes one from a side.
    return 3 << _HALVINGS[patch] if patch in _HALVINGS else 1
