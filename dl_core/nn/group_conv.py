"""Convolution layers over the groups p4 and p4m: see `dl_core.ops.group_conv`.

    LiftingConv   from images to feature maps on the group: the first layer
    GroupConv     from feature maps on the group to feature maps on it: all others

Then `dl_core.ops.group_conv.group_pool`. What acts in between keeps the equivariance if
it treats positions and elements alike: pointwise functions, batch normalisation (whose
statistics are over all axes but the last, so over the group too), spatial pooling whose
windows lie symmetrically on its input.
"""

from dataclasses import KW_ONLY

import flax.linen as nn
from jaxtyping import Array, Float

from dl_core.nn.conv import ConvLayer
from dl_core.ops import group_conv as ops
from dl_core.ops.conv import Sizes
from dl_core.ops.group_conv import Group, Padding


class LiftingConv(ConvLayer):
    """The first layer of a network on a group: an image seen by each filter each way.

    The default initial kernel has variance 1 / (size² · in): each copy is turned, not
    changed, so that outputs have the variance of the inputs as in an ordinary layer.
    """

    features: int
    """Output features for each of the 4 (p4) or 8 (p4m) elements of the group."""
    kernel_size: Sizes
    group: Group = "p4"
    _: KW_ONLY
    padding: Padding = "same"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch rows columns group features"]:
        """Returns the feature map on the group, plus one bias a feature.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        shape = (*_window(self.kernel_size), x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return self.biased(
            self.convolve(ops.lifting_conv, x, kernel, self.group, padding=self.padding)
        )


class GroupConv(ConvLayer):
    """A layer from feature maps on a group to feature maps on it.

    The default initial kernel has variance 1 / (size² · group · in): a sum over all
    elements of the group goes into each output.
    """

    features: int
    """Output features for each of the 4 (p4) or 8 (p4m) elements of the group."""
    kernel_size: Sizes
    group: Group = "p4"
    _: KW_ONLY
    padding: Padding = "same"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width group in"]
    ) -> Float[Array, "batch rows columns group features"]:
        """Returns the feature map on the group, plus one bias a feature.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        window = (*_window(self.kernel_size), ops.ORDER[self.group])
        shape = (*window, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return self.biased(
            self.convolve(ops.group_conv, x, kernel, padding=self.padding)
        )


def _window(size: Sizes) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)
