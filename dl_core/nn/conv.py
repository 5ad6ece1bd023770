"""Convolution layers: Flax modules over `dl_core.ops.conv`, channels last.

Conv            any window, stride, padding ("causal" and "circular" too), dilation,
                groups; a 1×1 convolution is Conv(features, 1)
DepthwiseConv   a window (or `multiplier` of them) for each channel by itself
SeparableConv   depthwise, then 1×1 (Chollet, "Xception", 2017; MobileNet v1)
ConvTranspose   torch's convention, any stride, padding and output padding
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from dl_core.ops import conv as ops
from dl_core.ops.conv import Padding, Sizes
from dl_core.ops.conv_lowerings import Lowering

Initializer = nn.initializers.Initializer


class ConvLayer(nn.Module, kw_only=True):
    """What all layers of the family have; see `dl_core.ops.conv` for the numbers."""

    stride: Sizes = 1
    dilation: Sizes = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.linear.default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()
    lowering: Lowering = "auto"

    def biased(self, y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns `y` plus a bias for each of its last dimension, if there is one."""
        if not self.use_bias:
            return y
        return y + self.param("bias", self.bias_init, y.shape[-1:])

    def convolve(self, function: Callable, x: Array, *args: Any, **more: Any) -> Array:
        """Returns what a convolution makes of `x` with the numbers of this layer."""
        return function(
            x,
            *args,
            stride=self.stride,
            dilation=self.dilation,
            lowering=self.lowering,
            **more,
        )


class Conv(ConvLayer):
    """A convolution with a bias: see `dl_core.ops.conv.conv` for the arguments.

    The parameters are named and shaped as those of `flax.linen.Conv`.
    """

    features: int
    """Output channels."""
    kernel_size: Sizes
    """Taps of the window in each spatial dimension."""
    _: KW_ONLY
    padding: Padding = "same"
    groups: int = 1

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
        kernel = self.param("kernel", self.kernel_init, shape)
        y = self.convolve(ops.conv, x, kernel, padding=self.padding, groups=self.groups)
        return self.biased(y)


class DepthwiseConv(ConvLayer):
    """A convolution of each channel by itself, with `multiplier` windows each.

    Output channels are ordered by input channel.
    """

    kernel_size: Sizes
    multiplier: int = 1
    _: KW_ONLY
    padding: Padding = "same"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *outputs features"]:
        """Returns the convolution of each channel, plus the layer's bias.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        channels = x.shape[-1]
        shape = (*_window(self.kernel_size, x), 1, channels * self.multiplier)
        kernel = self.param("kernel", self.kernel_init, shape)
        return self.biased(
            self.convolve(ops.conv, x, kernel, padding=self.padding, groups=channels)
        )


class SeparableConv(ConvLayer):
    """A depthwise convolution without a bias, then a 1×1 convolution over channels."""

    features: int
    """Output channels."""
    kernel_size: Sizes
    multiplier: int = 1
    _: KW_ONLY
    padding: Padding = "same"

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
            padding=self.padding,
            stride=self.stride,
            dilation=self.dilation,
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


class ConvTranspose(ConvLayer):
    """A transposed convolution with a bias: see `dl_core.ops.conv.conv_transpose`."""

    features: int
    """Output channels."""
    kernel_size: Sizes
    _: KW_ONLY
    padding: str | Sizes | Sequence[tuple[int, int]] = 0
    output_padding: Sizes = 0
    groups: int = 1

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
        y = self.convolve(
            ops.conv_transpose,
            x,
            self.param("kernel", self.kernel_init, shape),
            padding=self.padding,
            output_padding=self.output_padding,
            groups=self.groups,
        )
        return self.biased(y)


def _window(size: Sizes, x: Array) -> tuple[int, ...]:
    window = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size)
    if len(window) != x.ndim - 2 or min(window, default=0) < 1:
        raise ValueError(
            f"kernel_size {size} does not fit an input of shape {x.shape} (batch, "
            "spatial dimensions, channels)"
        )
    return window
