"""Ways to compute a convolution: the same numbers, chosen by backend and shape.

    xla       the compiler's own convolution; what accelerators use
    patches   the windows laid out as rows of a matrix, times the kernel as a matrix
    shifts    the sum over taps of a shifted input times that tap's weights; for
              depthwise convolutions
    auto      on CPUs what was measured to be fastest for the shape: shifts for few
              channels a group, a few groups one by one, loop where the output outgrows
              the input, else xla; elsewhere xla
    loop      as auto, but fast inside `lax.scan` and `fori_loop` on CPUs too

A `vmap` over kernels makes of the compiler's convolution a grouped one, which is slow
on every backend. So inside `stacked`, where the runs of a sweep are trained all at
once, auto and loop are plain arithmetic whose `vmap` is a batched matrix product (the
windows as rows) or, for depthwise ones, a sum of products. On an H200, forward and
backward of 32 runs of a layer, 32×32 images and smaller, took 1.04 to 12 times as long
grouped and 1.1 to 8 times as long one run after another (float32); a small network at
batches of 128 took 1.1 times as long grouped (in bfloat16 9 times), and as long in
turn. The windows are kept for the backward pass: that is paid for in memory.

On CPUs XLA (0.10) takes many times longer than it has to for grouped convolutions, for
the gradients of transposed ones, and inside a loop for the gradient with respect to any
kernel (jax#12868). So there a transposed convolution is one ordinary convolution for
all its phases at once, whose channels are then laid out in space (the polyphase form);
the gradient of a depthwise kernel is summed example by example; and in a loop that of
any other kernel is itself written as an ordinary convolution, channels last, which XLA
brings about by itself only outside of loops. `python -m launch.benchmark conv` measures
all this against torch.

All but "xla", what is xla under "auto", and what is stacked, have a backward pass of
their own, made of the same pieces: gradients of any order, but no forward-mode ones.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Lowering = Literal["auto", "loop", "xla", "patches", "shifts"]

_CHUNK = 2**21
"""Bytes of patches that are made at once; about what a core's cache holds."""

_STACKED = jax.make_user_context(False)


@contextlib.contextmanager
def stacked() -> Iterator[None]:
    """Within it convolutions are traced for a `vmap` over their kernels."""
    with _STACKED(True):
        yield


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The numbers of a convolution that are not in its arrays, one a dimension."""

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def extent(self) -> tuple[int, ...]:
        """How far the dilated window reaches."""
        pairs = zip(self.window, self.dilation, strict=True)
        return tuple(d * (k - 1) + 1 for k, d in pairs)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The spatial dimensions of the output."""
        sizes = zip(self.spatial, self.padding, self.extent, self.stride, strict=True)
        return tuple((n + sum(p) - e) // s + 1 for n, p, e, s in sizes)

    @property
    def taps(self) -> int:
        """The number of taps of the window."""
        return math.prod(self.window)


def conv(x: Array, kernel: Array, geometry: Geometry, lowering: Lowering) -> Array:
    """Returns the convolution; see `dl_core.ops.conv.conv`."""
    way = _choose(kernel, geometry, lowering)
    if way == "xla":
        return _xla(x, kernel, geometry)
    if way == "groups":
        return _each_group(conv, x, kernel, geometry, lowering)
    if way in ("rows", "sums"):
        function = {"rows": _patches_times_kernel, "sums": _shifts}[way]
        return function(x, kernel, geometry)
    return _conv(geometry, way, x, kernel)


def conv_transpose(
    x: Array, kernel: Array, geometry: Geometry, lowering: Lowering
) -> Array:
    """Returns the transposed convolution; see `dl_core.ops.conv.conv_transpose`.

    Args:
      x: the input, of spatial dimensions `geometry.outputs`.
      kernel: a window for each input channel and each output channel of a group.
      geometry: of the convolution of which this is the transpose.
      lowering: how.
    """
    if lowering == "xla" or _on_accelerator(lowering):
        return _xla_transpose(x, kernel, geometry)
    if _choose(kernel, geometry, lowering) == "groups":
        return _each_group(conv_transpose, x, kernel, geometry, lowering)
    if all(s == 1 for s in geometry.stride) or any(d > 1 for d in geometry.dilation):
        return _flipped_transpose(x, kernel, geometry, lowering)
    return _polyphase_transpose(x, kernel, geometry, lowering)


def _on_accelerator(lowering: Lowering) -> bool:
    chosen_here = lowering in ("auto", "loop") and not _STACKED.value
    return chosen_here and jax.default_backend() != "cpu"


def _choose(kernel: Array, geometry: Geometry, lowering: Lowering) -> str:
    """Returns how a shape is computed; "groups" is one by one."""
    groups = geometry.groups
    if _on_accelerator(lowering):
        return "xla"
    if lowering not in ("auto", "loop"):
        return lowering
    # Or nearly so, by channels in × out in each group.
    depthwise = groups > 1 and math.prod(kernel.shape[-2:]) <= 4 * groups
    if _STACKED.value and not (depthwise and jax.default_backend() == "cpu"):
        return "sums" if depthwise else "rows"
    if groups == 1:
        # There XLA is slow at the kernel's gradient outside loops, too.
        pairs = zip(geometry.padding, geometry.extent, strict=True)
        grows = any(sum(padding) >= extent for padding, extent in pairs)
        return "loop" if grows or lowering == "loop" else "xla"
    if depthwise:
        return "shifts"
    return "groups" if groups <= 16 else "patches"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(geometry: Geometry, forward: Lowering, x: Array, kernel: Array) -> Array:
    ways = {"loop": _xla, "patches": _patches_times_kernel, "shifts": _shifts}
    return ways[forward](x, kernel, geometry)


def _conv_forward(geometry, forward, x, kernel):
    return _conv(geometry, forward, x, kernel), (x, kernel)


def _conv_backward(geometry, forward, saved, cotangent):
    x, kernel = saved
    dx = conv_transpose(cotangent, kernel.swapaxes(-1, -2), geometry, forward)
    ways = {"loop": _correlation, "patches": _patches_gradient}
    return dx, ways.get(forward, _shifts_gradient)(x, cotangent, geometry)


_conv.defvjp(_conv_forward, _conv_backward)


def _by_group(kernel: Array, groups: int) -> Array:
    """Turns a kernel "*window in out/groups" into "*window in/groups out"."""
    *window, ins, outs = kernel.shape
    kernel = kernel.reshape(*window, groups, ins // groups, outs)
    return jnp.moveaxis(kernel, -3, -2).reshape(*window, ins // groups, groups * outs)


def _numbers(rank: int) -> tuple[str, str, str]:
    letters = "HWD"[:rank]
    return f"N{letters}C", f"{letters}IO", f"N{letters}C"


def _xla(x: Array, kernel: Array, geometry: Geometry) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_numbers(len(geometry.window)),
        feature_group_count=geometry.groups,
    )


def _each_group(
    function: Callable[..., Array],
    x: Array,
    kernel: Array,
    geometry: Geometry,
    lowering: Lowering,
) -> Array:
    """Computes each group by itself: XLA's own way with several is slow on CPUs."""
    groups = geometry.groups
    one = dataclasses.replace(geometry, groups=1)
    inputs = jnp.split(x, groups, -1)
    # The input channels of a transposed kernel are of all groups, else the output's.
    kernels = jnp.split(kernel, groups, -2 if function is conv_transpose else -1)
    parts = [
        function(*pair, one, lowering) for pair in zip(inputs, kernels, strict=True)
    ]
    return jnp.concatenate(parts, -1)


def _full_padding(geometry: Geometry) -> tuple[tuple[int, int], ...]:
    """The padding under which a flipped window, at stride 1, gives the transpose."""
    pads = []
    for n, o, s, e, p in zip(
        geometry.spatial,
        geometry.outputs,
        geometry.stride,
        geometry.extent,
        geometry.padding,
        strict=True,
    ):
        low = e - 1 - p[0]
        pads.append((low, n + e - 1 - ((o - 1) * s + 1) - low))
    return tuple(pads)


def _xla_transpose(x: Array, kernel: Array, geometry: Geometry) -> Array:
    rank = len(geometry.window)
    return jax.lax.conv_general_dilated(
        x,
        _by_group(jnp.flip(kernel, range(rank)), geometry.groups),
        (1,) * rank,
        _full_padding(geometry),
        lhs_dilation=geometry.stride,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_numbers(rank),
        feature_group_count=geometry.groups,
    )


def _flipped_transpose(
    x: Array, kernel: Array, geometry: Geometry, lowering: Lowering
) -> Array:
    """Slides the flipped window over the input, spread out by the stride."""
    pads = zip(_full_padding(geometry), geometry.stride, strict=True)
    inside = [(low, high, s - 1) for (low, high), s in pads]
    # Less than 0 cuts: padding that the convolution had beyond its window's reach.
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *inside, (0, 0, 0)))
    none = ((0, 0),) * len(inside)
    ones = (1,) * len(inside)
    swapped = dataclasses.replace(
        geometry, spatial=x.shape[1:-1], stride=ones, padding=none
    )
    flipped = jnp.flip(kernel, range(len(inside)))
    return conv(x, _by_group(flipped, geometry.groups), swapped, lowering)


def _polyphase_transpose(
    x: Array, kernel: Array, geometry: Geometry, lowering: Lowering
) -> Array:
    """Computes all phases of the output, by position modulo stride, as channels.

    Phase r takes the taps r, r + s, r + 2s, … of the window, at stride 1.
    """
    rank, groups, stride = len(geometry.window), geometry.groups, geometry.stride
    *window, ins, outs = kernel.shape
    counts = [-(-k // s) for k, s in zip(window, stride, strict=True)]
    pads = [(0, c * s - k) for c, s, k in zip(counts, stride, window, strict=True)]
    kernel = jnp.pad(kernel, (*pads, (0, 0), (0, 0)))
    # (count, phase) of each dimension, then "counts in out/groups phases".
    pairs = [n for pair in zip(counts, stride, strict=True) for n in pair]
    kernel = kernel.reshape(*pairs, ins, outs)
    order = (*range(0, 2 * rank, 2), 2 * rank, *range(1, 2 * rank, 2), 2 * rank + 1)
    kernel = jnp.flip(kernel.transpose(order), range(rank))
    kernel = kernel.reshape(*counts, ins, math.prod(stride) * outs)
    ones, around = (1,) * rank, tuple((c - 1, c - 1) for c in counts)
    phases = Geometry(x.shape[1:-1], tuple(counts), ones, around, ones, groups)
    y = conv(x, _by_group(kernel, groups), phases, lowering)
    places = y.shape[1:-1]
    y = y.reshape(len(x), *places, groups, *stride, outs)
    order = [n for i in range(rank) for n in (1 + i, 2 + rank + i)]
    y = y.transpose(0, *order, 1 + rank, 2 + 2 * rank)
    sizes = [n * s for n, s in zip(places, stride, strict=True)]
    y = y.reshape(len(x), *sizes, groups * outs)
    starts = [low for low, _ in geometry.padding]
    ends = [
        max(low + n - size, 0)
        for low, n, size in zip(starts, geometry.spatial, sizes, strict=True)
    ]
    y = jnp.pad(y, ((0, 0), *((0, end) for end in ends), (0, 0)))
    crop = (slice(a, a + n) for a, n in zip(starts, geometry.spatial, strict=True))
    return y[(slice(None), *crop)]


def _shifted(x: Array, geometry: Geometry) -> list[Array]:
    """Returns for each tap what it sees: "batch *outputs in"."""
    if any(sum(p) for p in geometry.padding):
        x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    views = []
    for tap in np.ndindex(*geometry.window):
        starts = [t * d for t, d in zip(tap, geometry.dilation, strict=True)]
        ends = [
            a + (o - 1) * s + 1
            for a, o, s in zip(starts, geometry.outputs, geometry.stride, strict=True)
        ]
        views.append(
            jax.lax.slice(
                x,
                (0, *starts, 0),
                (x.shape[0], *ends, x.shape[-1]),
                (1, *geometry.stride, 1),
            )
        )
    return views


def _patches(x: Array, geometry: Geometry) -> Float[Array, "groups positions taps_in"]:
    groups = geometry.groups
    views = [
        v.reshape(-1, groups, v.shape[-1] // groups) for v in _shifted(x, geometry)
    ]
    return jnp.concatenate(views, axis=-1).swapaxes(0, 1)


def _patches_times_kernel(x: Array, kernel: Array, geometry: Geometry) -> Array:
    groups, outs = geometry.groups, kernel.shape[-1]
    rows = _patches(x, geometry)
    columns = kernel.reshape(-1, groups, outs // groups).swapaxes(0, 1)
    y = (rows @ columns).swapaxes(0, 1)
    return y.reshape(len(x), *geometry.outputs, outs)


def _correlation(x: Array, cotangent: Array, geometry: Geometry) -> Array:
    """Returns the gradient with respect to the kernel, of a single group.

    The cotangent, spread out by the stride, slides over the images, one step a tap; the
    examples take the place of the input channels.
    """
    # Padded and cut beforehand: XLA is slow where a window outgrows its images.
    x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))
    sides = zip(geometry.outputs, geometry.stride, geometry.extent, strict=True)
    used = [slice((o - 1) * s + e) for o, s, e in sides]
    # Sums over many positions of half precision would lose digits.
    wide = jnp.promote_types(cotangent.dtype, jnp.float32)
    images = x[(slice(None), *used)].swapaxes(0, -1).astype(wide)
    window = jnp.moveaxis(cotangent, 0, -2).astype(wide)
    spread, none = geometry.stride, ((0, 0),) * len(used)
    slid = Geometry(
        images.shape[1:-1], geometry.outputs, geometry.dilation, none, spread, groups=1
    )
    steps = _conv(slid, "loop", images, window)
    return jnp.moveaxis(steps, 0, -2).astype(cotangent.dtype)


def _patches_gradient(x: Array, cotangent: Array, geometry: Geometry) -> Array:
    """Returns the gradient with respect to the kernel."""
    groups, outs = geometry.groups, cotangent.shape[-1]
    # Sums over many slices of half precision would lose digits.
    wide = jnp.promote_types(cotangent.dtype, jnp.float32)

    def of(x, cotangent):
        columns = cotangent.reshape(-1, groups, outs // groups).swapaxes(0, 1)
        rows = _patches(x, geometry).swapaxes(1, 2)
        return jnp.matmul(rows, columns, preferred_element_type=wide)

    def add(total, parts):
        return total + of(*parts), None

    size = 4 * geometry.taps * math.prod(geometry.outputs) * x.shape[-1]
    count = _divisor(len(x), _CHUNK // size)
    if count == len(x) or not len(x):
        total = of(x, cotangent)
    else:
        parts = jax.tree.map(
            lambda a: a.reshape(-1, count, *a.shape[1:]), (x, cotangent)
        )
        shape = groups, geometry.taps * x.shape[-1] // groups, outs // groups
        total, _ = jax.lax.scan(add, jnp.zeros(shape, wide), parts)
    total = total.swapaxes(0, 1).reshape(*geometry.window, -1, outs)
    return total.astype(cotangent.dtype)


def _divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of a number that is not above a limit, or 1."""
    return next((n for n in range(min(limit, number), 1, -1) if number % n == 0), 1)


def _shifts(x: Array, kernel: Array, geometry: Geometry) -> Array:
    groups, outs = geometry.groups, kernel.shape[-1]
    weights = kernel.reshape(geometry.taps, -1, groups, outs // groups)
    terms = [
        view.reshape(*view.shape[:-1], groups, -1)[..., i, None] * weights[tap, i]
        for tap, view in enumerate(_shifted(x, geometry))
        for i in range(weights.shape[1])
    ]
    return sum(terms).reshape(len(x), *geometry.outputs, outs)


def _shifts_gradient(x: Array, cotangent: Array, geometry: Geometry) -> Array:
    """Returns the gradient with respect to the kernel."""
    groups, outs = geometry.groups, cotangent.shape[-1]
    wide = jnp.promote_types(cotangent.dtype, jnp.float32)

    def add(totals, example):
        # Summed over the first dimension here, over the others at the end: XLA's CPU
        # backend is slow at sums that leave only the last.
        image, cotangent = example
        split = cotangent.reshape(*cotangent.shape[:-1], 1, groups, outs // groups)
        views = _shifted(image[None], geometry)
        return [
            total + (_by_input(view[0], groups) * split).sum(0, dtype=wide)
            for total, view in zip(totals, views, strict=True)
        ], None

    shape = (*geometry.outputs[1:], x.shape[-1] // groups, groups, outs // groups)
    start = [jnp.zeros(shape, wide)] * geometry.taps
    totals, _ = jax.lax.scan(add, start, (x, cotangent))
    sums = jnp.stack(totals).sum(tuple(range(1, len(geometry.window))))
    return sums.reshape(*geometry.window, -1, outs).astype(cotangent.dtype)


def _by_input(view: Array, groups: int) -> Array:
    """Turns channels into "in groups 1", to be multiplied by "1 groups out"."""
    split = view.reshape(*view.shape[:-1], groups, -1)
    return split.swapaxes(-1, -2)[..., None]
