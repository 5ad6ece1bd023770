"""Convolution layers: Flax modules over `dl_core.ops.conv`, channels last.

Conv            any window, stride, padding ("causal" and "circular" too), dilation,
                groups; a 1×1 convolution is Conv(features, 1)
DepthwiseConv   a window (or `multiplier` of them) for each channel by itself
SeparableConv   depthwise, then 1×1 (Chollet, "Xception", 2017; MobileNet v1)
ConvTranspose   torch's convention, any stride, padding and output padding
"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from dl_core.ops import conv as ops
from dl_core.ops.conv import Padding, Sizes
from dl_core.ops.conv_lowerings import Lowering

Initializer = nn.initializers.Initializer
_KERNEL_INIT = nn.linear.default_kernel_init
_ZEROS = nn.initializers.zeros_init()


class Conv(nn.Module):
    """A convolution with a bias: see `dl_core.ops.conv.conv` for the arguments.

    The parameters are named and shaped as those of `flax.linen.Conv`.
    """

    features: int
    """Output channels."""
    kernel_size: Sizes
    """Taps of the window in each spatial dimension."""
    stride: Sizes = 1
    padding: Padding = "same"
    dilation: Sizes = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = _KERNEL_INIT
    bias_init: Initializer = _ZEROS
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial in"]
    ) -> Float[Array, "batch *outputs features"]:
        """Returns the convolution of `x` with the layer's kernel, plus its bias.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(
                f"Conv: {self.groups} groups do not divide the {x.shape[-1]} channels "
                f"of the input {x.shape} and the {self.features} features"
            )
        window = _window(self.kernel_size, x)
        shape = (*window, x.shape[-1] // self.groups, self.features)
        y = ops.conv(
            x,
            self.param("kernel", self.kernel_init, shape),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            lowering=self.lowering,
        )
        return _biased(self, y, self.features)


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, with `multiplier` windows each.

    Output channels are ordered by input channel.
    """

    kernel_size: Sizes
    multiplier: int = 1
    stride: Sizes = 1
    padding: Padding = "same"
    dilation: Sizes = 1
    use_bias: bool = True
    kernel_init: Initializer = _KERNEL_INIT
    bias_init: Initializer = _ZEROS
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *outputs features"]:
        """Returns the convolution of each channel, plus the layer's bias.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        features = x.shape[-1] * self.multiplier
        y = ops.conv(
            x,
            self.param(
                "kernel", self.kernel_init, (*_window(self.kernel_size, x), 1, features)
            ),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=x.shape[-1],
            lowering=self.lowering,
        )
        return _biased(self, y, features)


class SeparableConv(nn.Module):
    """A depthwise convolution without a bias, then a 1×1 convolution over channels."""

    features: int
    """Output channels."""
    kernel_size: Sizes
    multiplier: int = 1
    stride: Sizes = 1
    padding: Padding = "same"
    dilation: Sizes = 1
    use_bias: bool = True
    kernel_init: Initializer = _KERNEL_INIT
    bias_init: Initializer = _ZEROS
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial in"]
    ) -> Float[Array, "batch *outputs features"]:
        """Returns the separable convolution of `x`.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        x = DepthwiseConv(
            self.kernel_size,
            self.multiplier,
            self.stride,
            self.padding,
            self.dilation,
            use_bias=False,
            kernel_init=self.kernel_init,
            lowering=self.lowering,
            name="depthwise",
        )(x)
        return Conv(
            self.features,
            1,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            lowering=self.lowering,
            name="pointwise",
        )(x)


class ConvTranspose(nn.Module):
    """A transposed convolution with a bias: see `dl_core.ops.conv.conv_transpose`."""

    features: int
    """Output channels."""
    kernel_size: Sizes
    stride: Sizes = 1
    padding: str | Sizes | Sequence[tuple[int, int]] = 0
    output_padding: Sizes = 0
    dilation: Sizes = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = _KERNEL_INIT
    bias_init: Initializer = _ZEROS
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial in"]
    ) -> Float[Array, "batch *outputs features"]:
        """Returns the transposed convolution of `x`, plus the layer's bias.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        if self.features % self.groups:
            raise ValueError(
                f"ConvTranspose: {self.groups} groups do not divide the "
                f"{self.features} features; the input is {x.shape}"
            )
        window = _window(self.kernel_size, x)
        shape = (*window, x.shape[-1], self.features // self.groups)
        y = ops.conv_transpose(
            x,
            self.param("kernel", self.kernel_init, shape),
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
            lowering=self.lowering,
        )
        return _biased(self, y, self.features)


def _window(size: Sizes, x: Array) -> tuple[int, ...]:
    window = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size)
    if len(window) != x.ndim - 2 or min(window, default=0) < 1:
        raise ValueError(
            f"kernel_size {size} does not fit an input of shape {x.shape} (batch, "
            "spatial dimensions, channels)"
        )
    return window


def _biased(layer: nn.Module, y: Array, features: int) -> Array:
    if not layer.use_bias:
        return y
    return y + layer.param("bias", layer.bias_init, (features,))
