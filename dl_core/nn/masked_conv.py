"""Masked convolutions: what an auto-regressive model of images may see, and no more.

Pixels come row by row, and the colours of a pixel one after the other (red, green,
blue). A layer of type A sees what comes before an output's place; one of type B also
that place itself, which is no leak where its input are features of a type A layer.

    MaskedConv     the window's pixels before its centre, and of the centre the colours
                   before. van den Oord, Kalchbrenner & Kavukcuoglu, "Pixel recurrent
                   neural networks", 2016, section 3.4. A stack of these has a blind
                   spot: it never sees some pixels above to the right. With a window of
                   one row it is the horizontal stack of:
    VerticalConv   the window's rows above, whole. van den Oord et al., "Conditional
                   image generation with PixelCNN decoders", 2016, section 2.2: beside a
                   horizontal stack that also takes what this one finds, nothing that
                   may be seen is left out

Windows are cut to the rectangle that holds all they see, and the input is padded (or
cropped) to match, so that nearly half of the taps are never computed, nor stored.
`VerticalConv`, and `MaskedConv` over one row and one group, then need no mask at all;
elsewhere the masked weights are exact zeros, and so are their gradients. Both are exact
where a convolution is a sum of products: always on CPUs, and with lowering "patches".
"""

from dataclasses import KW_ONLY
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dl_core.nn.conv import ConvLayer
from dl_core.ops import conv as ops
from dl_core.ops.conv import Sizes

Kind = Literal["A", "B"]
"""Whether a layer sees what comes before an output's place, or also that place."""


def causal_mask(
    window: tuple[int, int],
    channels: int,
    features: int,
    kind: Kind,
    groups: int = 1,
) -> Bool[np.ndarray, "rows columns channels features"]:
    """Returns which weights of a window a masked convolution may use.

    Args:
      window: rows and columns, both odd.
      channels: of the input, ordered by group.
      features: channels of the output, ordered by group.
      kind: whether at the window's centre an output sees the groups before its own
        ("A"), or its own too ("B").
      groups: parts of the channels in the order in which they come: the colours of a
        pixel, or the features about each.

    Raises:
      ValueError: if the window is even or the groups do not divide the channels.
    """
    _check_odd(window)
    if groups < 1 or channels % groups or features % groups:
        raise ValueError(
            f"{groups} groups do not divide {channels} channels and {features} features"
        )
    rows, columns = window
    mask = np.zeros((rows * columns, channels, features), bool)
    centre = len(mask) // 2
    mask[:centre] = True
    group_in = np.arange(channels) * groups // channels
    group_out = np.arange(features) * groups // features
    compare = np.less if kind == "A" else np.less_equal
    mask[centre] = compare(group_in[:, None], group_out)
    return mask.reshape(rows, columns, channels, features)


class _CroppedConv(ConvLayer):
    """A convolution with the part of an odd window that `seen` tells."""

    features: int
    """Output channels."""
    kernel_size: Sizes
    """Rows and columns of the whole window, both odd."""
    kind: Kind
    """Whether an output sees what comes before its place ("A"), or also that ("B")."""

    def seen(
        self, window: tuple[int, int], channels: int
    ) -> Bool[np.ndarray, "rows columns _in _out"]:
        """Returns which weights of the whole window are used; axes of 1 are for all."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch rows columns features"]:
        """Returns the convolution of `x`, plus the layer's bias.

        The kernel is stored cut to the rows and columns of which anything is seen. With
        a stride, the place of an output is that of its window's centre in the input.

        Raises:
          ValueError: if the window is even or sees nothing, or the groups do not divide
            the channels.
        """
        window, dilation = _pair(self.kernel_size), _pair(self.dilation)
        if x.ndim != 4 or len(window) != 2:
            raise ValueError(
                "expected images (batch, height, width, channels) and a window of rows "
                f"and columns, got {x.shape} and {window}"
            )
        seen = self.seen(window, x.shape[-1])
        if not seen.any():
            raise ValueError(
                f"a layer of type {self.kind} with a window of {window} sees nothing "
                f"of the input {x.shape}"
            )
        cut = [int(np.flatnonzero(seen.any(axes))[-1]) + 1 for axes in _OTHERS]
        seen = seen[: cut[0], : cut[1]]
        shape = (*cut, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if not seen.all():
            kernel = jnp.where(seen, kernel, 0)
        # At the end less than nothing, where the cut window stops before its centre.
        pads = [
            (d * (size // 2), d * (size_cut - 1 - size // 2), 0)
            for size, size_cut, d in zip(window, cut, dilation, strict=True)
        ]
        none = (0, 0, 0)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), (none, *pads, none))
        return self.biased(self.convolve(ops.conv, x, kernel))


class MaskedConv(_CroppedConv):
    """A convolution of the pixels and colours that come before, in reading order."""

    _: KW_ONLY
    groups: int = 1
    """Parts of the channels, in and out, by colour: see `causal_mask`."""

    def seen(
        self, window: tuple[int, int], channels: int
    ) -> Bool[np.ndarray, "rows columns _in _out"]:
        """Returns the mask; one for all channels where there is but one group."""
        mask = causal_mask(window, channels, self.features, self.kind, self.groups)
        return mask if self.groups > 1 else mask[..., :1, :1]


class VerticalConv(_CroppedConv):
    """A convolution of the rows above ("A"), or of them and the own row ("B")."""

    def seen(
        self, window: tuple[int, int], channels: int
    ) -> Bool[np.ndarray, "rows columns 1 1"]:
        """Returns the rows that are used, whole."""
        _check_odd(window)
        rows = np.arange(window[0]) < window[0] // 2 + (self.kind == "B")
        return np.broadcast_to(rows[:, None, None, None], (*window, 1, 1))


_OTHERS = ((1, 2, 3), (0, 2, 3))
"""All axes of a kernel but its rows, and but its columns."""


def _check_odd(window: tuple[int, int]) -> None:
    if any(size < 1 or size % 2 == 0 for size in window):
        raise ValueError(
            f"a masked window has a centre: its sides are odd, got {window}"
        )


def _pair(value: Sizes) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
