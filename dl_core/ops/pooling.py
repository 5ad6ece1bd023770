"""Pooling over one, two or three spatial dimensions, channels last, as in torch.

The maximum of a window is the element that torch chooses: the first of equal ones, and
the last NaN where there is one. The value, its index and the gradient all come from it.
JAX's own `reduce_window` has no index, and the backward pass of its maximum is slow on
the CPU (`select_and_scatter`); here the maximum runs over shifted, strided slices, one
axis after another, and autodiff turns that into selections and sums.

The backward passes are also there by hand, as they are derived on paper: max pooling
routes the gradient to the maximum, average pooling spreads it over the window.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Size = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]


def max_pool(
    x: Float[Array, "batch *spatial channels"],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> Float[Array, "batch *pooled channels"]:
    """Returns the maximum of each window.

    A NaN in a window is its maximum. The gradient goes to one element of a window, the
    one `max_pool_with_argmax` names.

    Args:
      x: features with one or more spatial dimensions.
      window: its size, one for all spatial dimensions or one for each.
      stride: from window to window; the size of the window where None.
      padding: what is never the maximum, on either side: "valid" (none), "same" (the
        output has ceil(size / stride) places), a number, a number a dimension, or
        (low, high) a dimension. Smaller than the window, so that each window sees an
        element of `x`. A window that would reach beyond the padding is left out.

    Raises:
      ValueError: where the window, the stride or the padding does not fit `x`.
    """
    axes = _axes(x.shape, window, stride, padding)
    for axis in reversed(axes):
        (x,) = _max_along(axis, x)
    return x


def max_pool_with_argmax(
    x: Float[Array, "batch *spatial channels"],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> tuple[
    Float[Array, "batch *pooled channels"], Int[Array, "batch *pooled channels"]
]:
    """Returns the maximum of each window, and where in `x` it stands.

    The arguments are those of `max_pool`. An index counts the places of the unpadded
    spatial dimensions in row-major order, without batch and channels, as torch's
    `return_indices` does: of equal maxima the first, of several NaN the last.
    """
    axes = _axes(x.shape, window, stride, padding)
    spatial = x.shape[1:-1]
    indices = jnp.arange(math.prod(spatial), dtype=jnp.int32).reshape(1, *spatial, 1)
    # From the last axis to the first, so that "first" means first in row-major order.
    for axis in reversed(axes):
        x, indices = _max_along(axis, x, indices)
    return x, jnp.broadcast_to(indices, x.shape)


def max_unpool(
    values: Float[Array, "batch *pooled channels"],
    indices: Int[Array, "batch *pooled channels"],
    spatial_shape: Sequence[int],
) -> Float[Array, "batch *spatial channels"]:
    """Returns zeros with each value at its index: the other way round from max pooling.

    Windows that overlap may have the same maximum and so name the same place. If the
    values are still those of the pooling they agree. If they differ, torch's result
    is undefined; here the last window in row-major order wins, and it alone receives
    the gradient.

    Args:
      values: one for each window.
      indices: their places, from `max_pool_with_argmax`.
      spatial_shape: the spatial dimensions of the result.

    Raises:
      ValueError: where the shapes of values and indices, or the ranks, differ.
    """
    if values.shape != indices.shape or values.ndim != len(spatial_shape) + 2:
        raise ValueError(
            f"max_unpool needs values and indices of one shape, with as many spatial "
            f"dimensions as the result, not {values.shape}, {indices.shape} and "
            f"{tuple(spatial_shape)}."
        )
    values, indices = _flatten(values), _flatten(indices)
    windows = jnp.arange(values.shape[1], dtype=jnp.int32)[:, None]

    def place(values, indices):
        winner = jnp.full((math.prod(spatial_shape), values.shape[-1]), -1, jnp.int32)
        channels = jnp.arange(values.shape[-1])
        winner = winner.at[indices, channels].max(windows, mode="drop")
        return jnp.where(
            winner < 0, 0, jnp.take_along_axis(values, jnp.maximum(winner, 0), 0)
        )

    placed = jax.vmap(place)(values, indices)
    return placed.reshape(len(values), *spatial_shape, values.shape[-1])


def avg_pool(
    x: Float[Array, "batch *spatial channels"],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    count_include_pad: bool = True,
) -> Float[Array, "batch *pooled channels"]:
    """Returns the mean of each window.

    Args:
      x: features with one or more spatial dimensions.
      window: as for `max_pool`.
      stride: as for `max_pool`.
      padding: zeros; otherwise as for `max_pool`.
      count_include_pad: divides by the size of the window everywhere, so that zeros
        count; else by the number of elements of `x` in the window.

    Raises:
      ValueError: where the window, the stride or the padding does not fit `x`.
    """
    axes = _axes(x.shape, window, stride, padding)
    for axis in reversed(axes):
        x = sum(axis.slices(axis.pad(x, 0)))
    return x / _counts(axes, count_include_pad).astype(x.dtype)


def global_avg_pool(
    x: Float[Array, "batch *spatial channels"],
) -> Float[Array, "batch channels"]:
    """Returns the mean over all spatial dimensions."""
    return _flatten(x).mean(1)


def global_max_pool(
    x: Float[Array, "batch *spatial channels"],
) -> Float[Array, "batch channels"]:
    """Returns the maximum over all spatial dimensions; the first gets the gradient."""
    x = _flatten(x)
    return jnp.take_along_axis(x, jnp.argmax(x, 1, keepdims=True), 1)[:, 0]


def max_pool_input_gradient(
    x: Float[Array, "batch *spatial channels"],
    cotangent: Float[Array, "batch *pooled channels"],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> Float[Array, "batch *spatial channels"]:
    """Returns the gradient of `max_pool` by x, by hand: routed to each maximum.

    δx(p) is the sum of δy over the windows whose maximum stands at p: one that is the
    maximum of several windows collects from all of them.

    Args:
      x: what was pooled.
      cotangent: δy, the gradient by the output.
      window: as it was pooled.
      stride: likewise.
      padding: likewise.
    """
    _, indices = max_pool_with_argmax(x, window, stride=stride, padding=padding)
    if cotangent.shape != indices.shape:
        raise ValueError(f"The output is {indices.shape}, not {cotangent.shape}.")
    channels = jnp.arange(x.shape[-1])

    def route(cotangent, indices):
        zeros = jnp.zeros((math.prod(x.shape[1:-1]), x.shape[-1]), cotangent.dtype)
        return zeros.at[indices, channels].add(cotangent)

    return jax.vmap(route)(_flatten(cotangent), _flatten(indices)).reshape(x.shape)


def avg_pool_input_gradient(
    cotangent: Float[Array, "batch *pooled channels"],
    spatial_shape: Sequence[int],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    count_include_pad: bool = True,
) -> Float[Array, "batch *spatial channels"]:
    """Returns the gradient of `avg_pool` by its input, by hand: spread over windows.

    δx(p) is the sum of δy / n over the windows that hold p, each of n elements.

    Args:
      cotangent: δy, the gradient by the output.
      spatial_shape: the spatial dimensions of what was pooled.
      window: as it was pooled.
      stride: likewise.
      padding: likewise.
      count_include_pad: likewise.
    """
    shape = (cotangent.shape[0], *spatial_shape, cotangent.shape[-1])
    axes = _axes(shape, window, stride, padding)
    outputs = (shape[0], *(axis.outputs for axis in axes), shape[-1])
    if cotangent.shape != outputs:
        raise ValueError(f"The output is {outputs}, not {cotangent.shape}.")
    spread = cotangent / _counts(axes, count_include_pad).astype(cotangent.dtype)
    for axis in axes:
        spread = axis.spread(spread)
    return spread


class _Axis(NamedTuple):
    """How windows lie along one axis."""

    number: int
    size: int
    window: int
    stride: int
    low: int
    high: int

    @property
    def outputs(self):
        return (self.low + self.size + self.high - self.window) // self.stride + 1

    def starts(self, offset):
        """Returns where in the unpadded axis the windows' elements `offset` stand."""
        return np.arange(self.outputs) * self.stride + offset - self.low

    def pad(self, x, value):
        if not (self.low or self.high):
            return x
        widths = [(0, 0, 0)] * x.ndim
        widths[self.number] = (self.low, self.high, 0)
        return jax.lax.pad(x, jnp.asarray(value, x.dtype), widths)

    def slices(self, padded):
        """Yields the first elements of all windows, then the second, and so on."""
        reach = (self.outputs - 1) * self.stride + 1
        for offset in range(self.window):
            yield jax.lax.slice_in_dim(
                padded, offset, offset + reach, self.stride, self.number
            )

    def spread(self, y):
        """Returns y added to every element of its windows: the transpose of the sum."""
        shape = list(y.shape)
        shape[self.number] = self.low + self.size + self.high
        reach = (self.outputs - 1) * self.stride + 1
        before = (slice(None),) * self.number
        padded = jnp.zeros(shape, y.dtype)
        for offset in range(self.window):
            places = slice(offset, offset + reach, self.stride)
            padded = padded.at[(*before, places)].add(y)
        return padded[(*before, slice(self.low, self.low + self.size))]

    def along(self, vector, ndim):
        """Returns the vector shaped to broadcast along this axis."""
        return vector.reshape([-1 if i == self.number else 1 for i in range(ndim)])


def _max_along(axis, x, *companions):
    """Returns x at the maximum of each window of an axis, and the companions there."""
    candidates = zip(
        axis.slices(axis.pad(x, -jnp.inf)),
        *(axis.slices(axis.pad(array, 0)) for array in companions),
        strict=True,
    )
    best = next(candidates)
    for offset, candidate in enumerate(candidates, 1):
        better = (candidate[0] > best[0]) | jnp.isnan(candidate[0])
        if axis.low >= offset:  # Some windows see their first element: even if -inf.
            better |= axis.along(axis.starts(offset) == 0, x.ndim)
        best = [jnp.where(better, *pair) for pair in zip(candidate, best, strict=True)]
    return best


def _counts(axes, count_include_pad):
    """Returns the elements of each window, to broadcast against the output."""
    if count_include_pad:
        return np.asarray(math.prod(axis.window for axis in axes))
    counts = np.ones([1] * (len(axes) + 2), int)
    for axis in axes:
        first = axis.starts(0)
        inside = np.minimum(first + axis.window, axis.size) - np.maximum(first, 0)
        counts = counts * axis.along(inside, counts.ndim)
    return counts


def _axes(shape, window, stride, padding):
    """Returns how windows lie along each spatial axis; an error if they do not fit."""
    spatial = shape[1:-1]
    asked = f"window {window}, stride {stride} and padding {padding} on {shape}"
    if not spatial:
        raise ValueError(f"Pooling needs batch, spatial and channel axes, not {shape}.")
    windows = _each(window, spatial, asked)
    strides = windows if stride is None else _each(stride, spatial, asked)
    if min(windows + strides) < 1:
        raise ValueError(f"Windows and strides are at least 1: {asked}.")
    axes = []
    for number, size in enumerate(spatial):
        width, step = windows[number], strides[number]
        if padding == "valid":
            pads = (0, 0)
        elif padding == "same":
            total = max((-(-size // step) - 1) * step + width - size, 0)
            pads = (total // 2, total - total // 2)
        elif isinstance(padding, str):
            raise ValueError(f'Padding is "valid", "same" or numbers, not "{padding}".')
        else:
            pads = _each(padding, spatial, asked)[number]
            pads = tuple(pads) if isinstance(pads, Sequence) else (pads, pads)
        if len(pads) != 2:
            raise ValueError(f"Padding has a low and a high side: {asked}.")
        if not 0 <= min(pads) <= max(pads) < width:
            raise ValueError(f"Padding is at least 0, less than the window: {asked}.")
        if size + sum(pads) < width:
            raise ValueError(f"A window is larger than what it pools: {asked}.")
        axes.append(_Axis(number + 1, size, width, step, *pads))
    return axes


def _each(size, spatial, asked):
    """Returns one entry for each spatial dimension."""
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * len(spatial)
    if len(sizes) != len(spatial):
        raise ValueError(f"One entry for each of {len(spatial)} axes, please: {asked}.")
    return sizes


def _flatten(x):
    """Returns x with its spatial dimensions as one."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
