"""PixelCNN and gated PixelCNN: images as the product of their pixels' conditionals.

van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel recurrent neural networks", 2016 (the
plain network: residual blocks of masked convolutions, which leave a blind spot); van
den Oord et al., "Conditional image generation with PixelCNN decoders", 2016 (the gated
one: a vertical and a horizontal stack, without blind spot, and class conditioning).

Pixels come row by row, the colours of each one after the other. A network gives the
logits of all of them at once, each from what comes before it;
`dl_core.ops.autoregression.sample` calls it once for every value to be drawn.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from dl_core.models.conditioning import one_hot
from dl_core.nn.conv import Conv
from dl_core.nn.masked_conv import Kind, MaskedConv, VerticalConv
from dl_core.ops.autoregression import log_likelihood
from dl_core.ops.conv_lowerings import Lowering


class _PixelModel(nn.Module):
    """What both networks have: values to inputs, features to logits."""

    features: int
    """Channels of a layer; a multiple of the images' channels, as is `head`."""
    blocks: int
    """Layers of type B (gated), or residual blocks of three."""
    head: int = 32
    """Channels of the hidden 1×1 layer before the logits."""
    levels: int = 2
    """Values of a sub-pixel, from 0: 2 for binary images, 256 for 8 bits."""
    first_kernel: int = 7
    """Side of the window of type A."""
    kernel_size: int = 3
    """Side of the windows of type B."""
    classes: int = 0
    """Of the labels; 0 for a model without."""
    lowering: Lowering = "auto"

    def log_prob(
        self,
        images: Real[Array, "n height width channels"],
        labels: Int[Array, " n"] | None = None,
    ) -> Float[Array, " n"]:
        """Returns the logarithms of the images' probabilities, in nats.

        Args:
          images: whole numbers from 0 to `levels` - 1.
          labels: where there are classes.

        Raises:
          ValueError: as when called.
        """
        return log_likelihood(self(images, labels)[0], images)

    def _inputs(
        self, images: Array, labels: Array | None
    ) -> tuple[Array, Array | None]:
        """Returns the images from -1 to 1, and the labels' codes."""
        if self.levels < 2:
            raise ValueError(
                f"expected at least 2 levels, got {self.levels} for {images.shape}"
            )
        with_labels = self.classes or labels is not None
        codes = one_hot(labels, self.classes) if with_labels else None
        return images.astype(jnp.float32) * 2 / (self.levels - 1) - 1, codes

    def _logits(self, x: Array, channels: int) -> Array:
        """Returns logits by two 1×1 layers, each after a ReLU."""
        conv = functools.partial(
            MaskedConv, kernel_size=1, kind="B", groups=channels, lowering=self.lowering
        )
        x = conv(self.head, name="head")(nn.relu(x))
        count = 1 if self.levels == 2 else self.levels
        x = conv(channels * count, name="logits")(nn.relu(x))
        return x if count == 1 else x.reshape(*x.shape[:-1], channels, count)


class PixelCNN(_PixelModel):
    """One 7×7 layer of type A, then residual blocks of type B, and a head.

    The blocks' input and output have `2 * features` channels. In each, labels add a
    bias to the 3×3 layer, which the paper has not.
    """

    @nn.compact
    def __call__(
        self,
        images: Real[Array, "n height width channels"],
        labels: Int[Array, " n"] | None = None,
    ) -> tuple[Float[Array, "n height width channels *levels"], dict[str, Array]]:
        """Returns the logits, and the features after each block.

        Args:
          images: values from 0 to `levels` - 1.
          labels: where there are classes.

        Returns:
          Logits of 1 against 0 for each value of binary images, else of all levels in
          one more axis; and endpoints "first", "block_0", ….

        Raises:
          ValueError: if the images' channels do not divide `features` and `head`, or
            there are labels without classes or classes without labels.
        """
        x, codes = self._inputs(images, labels)
        channels = images.shape[-1]
        more = {"groups": channels, "lowering": self.lowering}
        doubled = 2 * self.features
        x = MaskedConv(doubled, self.first_kernel, "A", name="first", **more)(x)
        endpoints = {"first": x}
        for number in range(self.blocks):
            name = f"block_{number}"
            block = ResidualBlock(self.features, self.kernel_size, name=name, **more)
            x = endpoints[name] = block(x, codes)
        return self._logits(x, channels), endpoints


class GatedPixelCNN(_PixelModel):
    """Gated layers of two stacks, the first of type A, and a head on the horizontal."""

    @nn.compact
    def __call__(
        self,
        images: Real[Array, "n height width channels"],
        labels: Int[Array, " n"] | None = None,
    ) -> tuple[Float[Array, "n height width channels *levels"], dict[str, Array]]:
        """Returns the logits, and the features of both stacks after each layer.

        Args:
          images: values from 0 to `levels` - 1.
          labels: where there are classes.

        Returns:
          Logits as of `PixelCNN`; and endpoints "vertical_0", "horizontal_0", …, of
          `blocks` layers after the first.

        Raises:
          ValueError: as `PixelCNN`.
        """
        x, codes = self._inputs(images, labels)
        channels = images.shape[-1]
        above, row, endpoints = x, x, {}
        for number in range(self.blocks + 1):
            layer = GatedLayer(
                self.features,
                self.kernel_size if number else self.first_kernel,
                "B" if number else "A",
                groups=channels,
                lowering=self.lowering,
                name=f"layer_{number}",
            )
            above, row = layer(above, row, codes)
            endpoints |= {f"vertical_{number}": above, f"horizontal_{number}": row}
        return self._logits(row, channels), endpoints


class ResidualBlock(nn.Module):
    """1×1, masked and 1×1 layers of type B, each after a ReLU, added to the input."""

    features: int
    kernel_size: int
    groups: int
    lowering: Lowering

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n height width channels"],
        codes: Float[Array, "n classes"] | None,
    ) -> Float[Array, "n height width channels"]:
        """Returns the block's output, with a bias for each class if there are codes."""
        conv = functools.partial(
            MaskedConv, kind="B", groups=self.groups, lowering=self.lowering
        )
        y = conv(self.features, 1, name="reduce")(nn.relu(x))
        y = conv(self.features, self.kernel_size, name="conv")(nn.relu(y))
        y = _with_class(y, codes, "classes")
        return x + conv(x.shape[-1], 1, name="expand")(nn.relu(y))


class GatedLayer(nn.Module):
    """One layer of both stacks: van den Oord et al., 2016 (gated), figure 2.

    The vertical stack's features at a row are of the rows above alone, all colours, so
    the horizontal stack may take them at its own place.
    """

    features: int
    kernel_size: int
    kind: Kind
    groups: int
    lowering: Lowering

    @nn.compact
    def __call__(
        self,
        above: Float[Array, "n height width above"],
        row: Float[Array, "n height width row"],
        codes: Float[Array, "n classes"] | None,
    ) -> tuple[
        Float[Array, "n height width {self.features}"],
        Float[Array, "n height width {self.features}"],
    ]:
        """Returns the vertical and the horizontal stack's features.

        The first layer's horizontal output has no residual: it would see its own pixel.
        """
        more, doubled = {"lowering": self.lowering}, 2 * self.features
        masked = functools.partial(MaskedConv, groups=self.groups, **more)
        above = VerticalConv(
            doubled, self.kernel_size, self.kind, name="vertical", **more
        )(above)
        here = masked(doubled, (1, self.kernel_size), self.kind, name="horizontal")(row)
        here += Conv(doubled, 1, use_bias=False, name="from_vertical", **more)(above)
        above = self._gated(_with_class(above, codes, "vertical_classes"))
        here = self._gated(_with_class(here, codes, "horizontal_classes"))
        here = masked(self.features, 1, "B", name="output")(here)
        return above, here if self.kind == "A" else row + here

    def _gated(self, x: Array) -> Array:
        """Returns tanh(a)·σ(b), a and b being the halves of each colour's channels."""
        halves = x.reshape(*x.shape[:-1], self.groups, 2, -1)
        y = jnp.tanh(halves[..., 0, :]) * nn.sigmoid(halves[..., 1, :])
        return y.reshape(*x.shape[:-1], -1)


def _with_class(x: Array, codes: Array | None, name: str) -> Array:
    """Returns images of features plus a bias for the class of each."""
    if codes is None:
        return x
    return x + nn.Dense(x.shape[-1], use_bias=False, name=name)(codes)[:, None, None]
