"""Convolution and its transpose: one name each, for every kind, rank and padding.

As in every deep-learning library these are cross-correlations, with stride s, dilation
d and padding p: y(o) = Σ_k x(s·o + d·k − p) w(k), summed over the input channels of a
group. A depthwise convolution is one with as many groups as input channels, a 1×1
convolution one with a window of ones, a causal one pads at the start alone. Arrays are
channels last.

How it is computed is chosen by backend and shape (`dl_core.ops.conv_lowerings`); the
numbers are the same. Dumoulin & Visin, "A guide to convolution arithmetic for deep
learning", 2016 (arXiv:1603.07285).
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dl_core.ops import conv_lowerings
from dl_core.ops.conv_lowerings import Geometry, Lowering

Sizes = int | Sequence[int]
Padding = (
    Literal["valid", "same", "causal", "circular"] | Sizes | Sequence[tuple[int, int]]
)


def conv(
    x: Float[Array, "batch *spatial in"],
    kernel: Float[Array, "*window in_per_group out"],
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
    lowering: Lowering = "auto",
) -> Float[Array, "batch *outputs out"]:
    """Returns the convolution of `x` with `kernel`, over 1, 2 or 3 spatial dimensions.

    Args:
      x: the input, channels last.
      kernel: one window of weights for each input channel of a group and each output
        channel; output channels are ordered by group.
      stride: positions from one output to the next, one number or one a dimension.
      padding: "valid" (none); "same" (as many outputs as inputs divided by the stride,
        rounded up; where it is odd the larger half is at the end, as in TensorFlow and
        torch); "causal" (all at the start, in one dimension); "circular" (the input
        goes on at its other end; odd windows); a number, or one a dimension, or a pair
        (start, end) a dimension.
      dilation: positions from one tap of the window to the next.
      groups: parts into which the channels are split; each output part sees the input
        part of its number.
      lowering: how it is computed (`dl_core.ops.conv_lowerings`). Forward-mode
        derivatives (`jvp`, `hessian`) need "xla" on CPUs, loops there "loop".

    Raises:
      ValueError: if the shapes and numbers do not fit each other.
    """
    x, kernel = _promoted(x, kernel)
    spatial = _spatial_shape("conv", x, kernel)
    window = kernel.shape[:-2]
    stride = _sizes("conv", "stride", stride, len(spatial))
    dilation = _sizes("conv", "dilation", dilation, len(spatial))
    _check_groups("conv", x, kernel, groups, kernel.shape[-2] * groups)
    _check_outputs("conv", kernel, groups)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True))
    pads = _paddings("conv", padding, spatial, extent, stride)
    if padding == "circular":
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="wrap")
        spatial, pads = x.shape[1:-1], ((0, 0),) * len(spatial)
    geometry = Geometry(spatial, window, stride, pads, dilation, groups)
    if min(geometry.outputs) < 1:
        raise ValueError(
            f"conv: the kernel {kernel.shape}, dilated by {dilation}, does not fit the "
            f"input {x.shape} padded by {pads}"
        )
    return conv_lowerings.conv(x, kernel, geometry, lowering)


def conv_transpose(
    x: Float[Array, "batch *spatial in"],
    kernel: Float[Array, "*window in out_per_group"],
    *,
    stride: Sizes = 1,
    padding: Literal["valid", "same"] | Sizes | Sequence[tuple[int, int]] = 0,
    output_padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    lowering: Lowering = "auto",
) -> Float[Array, "batch *outputs out"]:
    """Returns the transposed convolution: each input lays its scaled window down.

    z(i) = Σ_k x(k) w(i − s·k + p), as in torch: the linear map whose matrix is the
    transpose of that of `conv` with the same window, stride, padding and dilation, from
    the channels of the output to those of the input. The kernel is not flipped.

    Args:
      x: the input, channels last.
      kernel: one window of weights for each input channel and each output channel of a
        group (torch's weight, moved to channels last).
      stride: positions from one window to the next in the output.
      padding: positions cut off from the output: a number, or one a dimension, or a
        pair (start, end) a dimension; "valid" (none); "same" (the output is the input's
        size times the stride).
      output_padding: positions added at the output's end, fewer than the stride or the
        dilation; with it every size of an input of `conv` can be had back.
      dilation: positions from one tap of the window to the next.
      groups: parts into which the channels are split.
      lowering: as for `conv`.

    Returns:
      The output, of size (n − 1)·s − 2p + d·(k − 1) + 1 + output padding.

    Raises:
      ValueError: if the shapes and numbers do not fit each other.
    """
    name = "conv_transpose"
    x, kernel = _promoted(x, kernel)
    spatial = _spatial_shape(name, x, kernel)
    window = kernel.shape[:-2]
    stride = _sizes(name, "stride", stride, len(spatial))
    dilation = _sizes(name, "dilation", dilation, len(spatial))
    _check_groups(name, x, kernel, groups, kernel.shape[-2])
    extra = _sizes(name, "output_padding", output_padding, len(spatial), least=0)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True))
    if padding == "same":
        if any(extra):
            raise ValueError(
                f"{name}: padding 'same' chooses the output's size by itself, got "
                f"output_padding {output_padding} too"
            )
        total = [max(e - s, 0) for e, s in zip(extent, stride, strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
        extra = tuple(max(s - e, 0) for e, s in zip(extent, stride, strict=True))
    elif padding in ("causal", "circular"):
        raise ValueError(f"{name}: padding {padding!r} has no transpose here")
    else:
        pads = _paddings(name, padding, spatial, extent, stride)
        for e, s, d in zip(extra, stride, dilation, strict=True):
            if e >= max(s, d):
                raise ValueError(
                    f"{name}: output_padding {extra} must be smaller than the stride "
                    f"{stride} or the dilation {dilation}"
                )
    outputs = tuple(
        (n - 1) * s - sum(p) + e + o
        for n, s, p, e, o in zip(spatial, stride, pads, extent, extra, strict=True)
    )
    if min(outputs) < 1:
        raise ValueError(
            f"{name}: padding {pads} leaves nothing of the output of the input "
            f"{x.shape} and the kernel {kernel.shape}"
        )
    # The geometry of the convolution of which this is the transpose.
    geometry = Geometry(outputs, window, stride, pads, dilation, groups)
    return conv_lowerings.conv_transpose(x, kernel, geometry, lowering)


def conv_matrix(
    kernel: Float[Array | np.ndarray, "*window in_per_group out"],
    input_shape: Sequence[int],
    *,
    stride: Sizes = 1,
    padding: Padding = "valid",
    dilation: Sizes = 1,
    groups: int = 1,
) -> Float[np.ndarray, "outputs inputs"]:
    """Returns the matrix of a convolution, rows and columns in C order.

    `conv` is x ↦ C x and `conv_transpose` with the kernel's channels exchanged is
    y ↦ Cᵀ y. For looking at and for tests: it is large, and filled tap by tap.

    Args:
      kernel: as for `conv`.
      input_shape: spatial dimensions and channels of one input: (4, 4, 1).
      stride: as for `conv`.
      padding: as for `conv`.
      dilation: as for `conv`.
      groups: as for `conv`.

    Raises:
      ValueError: as for `conv`.
    """
    name, spatial = "conv_matrix", tuple(input_shape[:-1])
    kernel, one = np.asarray(kernel), jax.ShapeDtypeStruct((1, *input_shape), float)
    _spatial_shape(name, one, kernel)
    window = kernel.shape[:-2]
    stride = _sizes(name, "stride", stride, len(spatial))
    dilation = _sizes(name, "dilation", dilation, len(spatial))
    _check_groups(name, one, kernel, groups, kernel.shape[-2] * groups)
    _check_outputs(name, kernel, groups)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True))
    pads = _paddings(name, padding, spatial, extent, stride)
    outputs = Geometry(spatial, window, stride, pads, dilation, groups).outputs
    features = kernel.shape[-1]
    matrix = np.zeros((*outputs, features, *input_shape), kernel.dtype)
    part, out_part = kernel.shape[-2], features // groups
    for at in np.ndindex(*outputs):
        for tap in np.ndindex(*window):
            place = [
                s * o + d * k - p[0]
                for s, o, d, k, p in zip(stride, at, dilation, tap, pads, strict=True)
            ]
            if padding == "circular":
                place = [i % n for i, n in zip(place, spatial, strict=True)]
            if any(not 0 <= i < n for i, n in zip(place, spatial, strict=True)):
                continue
            for g in range(groups):
                ins = slice(g * part, (g + 1) * part)
                outs = slice(g * out_part, (g + 1) * out_part)
                matrix[(*at, outs, *place, ins)] += kernel[(*tap, slice(None), outs)].T
    return matrix.reshape(math.prod(outputs) * features, math.prod(input_shape))


def _promoted(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Returns both with the type that JAX's promotion gives them together."""
    dtype = jnp.result_type(x, kernel)
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def _spatial_shape(name: str, x: Any, kernel: Any) -> tuple[int, ...]:
    if x.ndim not in (3, 4, 5) or kernel.ndim != x.ndim:
        raise ValueError(
            f"{name}: expected an input (batch, 1 to 3 spatial dimensions, channels) "
            f"and a kernel (as many dimensions, in, out), got {x.shape} and "
            f"{kernel.shape}"
        )
    return tuple(x.shape[1:-1])


def _sizes(
    name: str, what: str, value: Any, rank: int, least: int = 1
) -> tuple[int, ...]:
    sizes = _each(value, rank)
    if len(sizes) != rank or any(
        not isinstance(s, Integral) or s < least for s in sizes
    ):
        raise ValueError(
            f"{name}: expected {what} to be a whole number of at least {least}, or "
            f"{rank} of them, got {value}"
        )
    return tuple(map(int, sizes))


def _check_groups(name: str, x: Any, kernel: Any, groups: int, takes: int) -> None:
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(
            f"{name}: {groups} groups do not divide the {x.shape[-1]} channels of the "
            f"input {x.shape}"
        )
    if x.shape[-1] != takes:
        raise ValueError(
            f"{name}: the kernel {kernel.shape} with {groups} groups takes {takes} "
            f"channels, the input {x.shape} has {x.shape[-1]}"
        )


def _check_outputs(name: str, kernel: Any, groups: int) -> None:
    if kernel.shape[-1] % groups:
        raise ValueError(
            f"{name}: {groups} groups do not divide the {kernel.shape[-1]} output "
            f"channels of the kernel {kernel.shape}"
        )


def _paddings(
    name: str,
    padding: Any,
    spatial: tuple[int, ...],
    extent: tuple[int, ...],
    stride: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """Returns the positions added at the start and at the end of each dimension."""
    if padding == "valid":
        return ((0, 0),) * len(spatial)
    if padding == "same":
        totals = [
            max((-(-n // s) - 1) * s + e - n, 0)
            for n, e, s in zip(spatial, extent, stride, strict=True)
        ]
        return tuple((t // 2, t - t // 2) for t in totals)
    if padding == "causal":
        if len(spatial) != 1:
            raise ValueError(
                f"{name}: causal padding is for one dimension, there are {len(spatial)}"
            )
        return ((extent[0] - 1, 0),)
    if padding == "circular":
        if any(e % 2 == 0 for e in extent):
            raise ValueError(
                f"{name}: circular padding needs windows of odd extent, got {extent}"
            )
        return tuple((e // 2, e // 2) for e in extent)
    if isinstance(padding, str):
        raise ValueError(
            f"{name}: padding {padding!r} is not one of 'valid', 'same', 'causal', "
            "'circular'"
        )
    each = _each(padding, len(spatial))
    pads = tuple(_each(p, 2) for p in each)
    right = len(pads) == len(spatial) and all(len(p) == 2 for p in pads)
    if not right or any(not isinstance(n, Integral) or n < 0 for p in pads for n in p):
        raise ValueError(
            f"{name}: expected padding for {len(spatial)} dimensions, each a number of "
            f"at least 0 or a pair of them, got {padding}"
        )
    return tuple((int(low), int(high)) for low, high in pads)


def _each(value: Any, rank: int) -> tuple[Any, ...]:
    """Returns a value for every dimension, where there is one for all."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * rank
