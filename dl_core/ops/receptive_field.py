"""Receptive fields: which inputs an output can depend on.

Along one dimension output i depends on `size` neighbouring inputs, the first of which
is i · stride − padding: three numbers say it all, for a layer as for a network (Araujo,
Norris & Sim, "Computing receptive fields of convolutional neural networks", Distill
2019). Here they follow from a list of layers; from the program that a function traces
to in `dl_core.ops.receptive_field_tracing`; they are seen in a gradient, with what a
network makes of them, in `dl_core.ops.effective_receptive_field`.

    receptive_field([Layer(3), Layer(3, stride=2), Branches([], [Layer(3)])])
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

Sizes = int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The inputs that each output depends on, along one dimension."""

    size: int
    """Inputs from the first to the last; 0 if the output depends on none."""
    stride: int | Fraction
    """Inputs from one output's field to the next one's; 0 if all have the same."""
    padding: int | Fraction
    """Positions before the first input at which the field of output 0 begins."""

    def centre(self, output: int) -> float:
        """Returns the input position in the middle of an output's field."""
        return float(-self.padding + output * self.stride + Fraction(self.size - 1, 2))


@dataclasses.dataclass(frozen=True)
class Layer:
    """A window that slides: a convolution or a pooling.

    Each field is one number for all dimensions or a sequence with one for each.
    """

    kernel: Sizes
    """Taps of the window."""
    stride: Sizes = 1
    padding: Literal["valid", "same"] | Sizes | Sequence[tuple[int, int]] = 0
    """As for `dl_core.ops.conv.conv`: pairs are (start, end)."""
    dilation: Sizes = 1
    """Positions from one tap to the next."""
    upsampling: Sizes = 1
    """Positions from one input to the next, zeros between them."""

    @classmethod
    def transposed(
        cls,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        dilation: int = 1,
    ) -> "Layer":
        """Returns a transposed convolution, its arguments as torch has them."""
        low = dilation * (kernel - 1) - padding
        pads = ((low, low + output_padding),)
        return cls(kernel, 1, pads, dilation, upsampling=stride)


@dataclasses.dataclass(frozen=True, init=False)
class Branches:
    """Paths that begin at one place and are summed or concatenated at their ends.

    An empty path is a shortcut.
    """

    paths: tuple["Network", ...]

    def __init__(self, *paths: "Network"):
        """Args:
        *paths: the layers of each path.
        """
        object.__setattr__(self, "paths", paths)


Network = Layer | Branches | Sequence
"""A layer, branches, or a sequence of networks one after the other."""


def receptive_field(
    network: Network, *, input_size: int | None = None, dimension: int = 0
) -> ReceptiveField:
    """Returns the receptive field of the outputs of a network.

    Where paths meet, it reaches from the first to the last input of any of them.

    Args:
      network: the layers, from the input on.
      input_size: positions of the input; needed where "same" pads by the input's size,
        which it does at a stride above 1.
      dimension: which one, for layers that are not the same in all.

    Raises:
      ValueError: if paths meet whose strides or sizes differ, a window does not fit, or
        the padding depends on the input's size and it is not given.
    """
    reach, _ = _through(network, Reach(), input_size, dimension)
    return reach.field()


@dataclasses.dataclass(frozen=True)
class Reach:
    """The interval of inputs that each position along a dimension depends on.

    Position i depends on `first[i % period] + (i // period) * shift` to the same of
    `last`, the period being the number of entries: 1, unless something was upsampled.
    Padding counts as inputs that go on beyond the ends. Of nothing: from ∞ to −∞.
    """

    first: tuple[float, ...] = (0,)
    last: tuple[float, ...] = (0,)
    shift: int = 1

    @property
    def stride(self) -> Fraction:
        """Inputs from one position's interval to the next one's, on average."""
        return Fraction(self.shift, len(self.first))

    def at(self, position: int) -> tuple[float, float]:
        """Returns the first and the last input of a position, which may be negative."""
        turns, phase = divmod(position, len(self.first))
        moved = turns * self.shift
        return self.first[phase] + moved, self.last[phase] + moved

    def window(
        self,
        kernel: int,
        stride: int = 1,
        low: int = 0,
        dilation: int = 1,
        upsampling: int = 1,
    ) -> "Reach":
        """Returns the reach of a window over positions of this reach.

        Args:
          kernel: taps of the window.
          stride: positions from one window to the next.
          low: positions that the first window begins before position 0.
          dilation: positions from tap to tap.
          upsampling: positions from one entry to the next after zeros between them.
        """
        entries = upsampling * len(self.first)
        period = math.lcm(stride, entries) // stride
        intervals = []
        for output in range(period):
            taps = (stride * output + dilation * k - low for k in range(kernel))
            seen = [self.at(t // upsampling) for t in taps if t % upsampling == 0]
            intervals.append(_hull(seen))
        return Reach(*_columns(intervals), self.shift * stride * period // entries)

    def join(self, other: "Reach") -> "Reach":
        """Returns the reach of what depends on the same position of both.

        Raises:
          ValueError: if their strides differ.
        """
        if self.stride != other.stride:
            raise ValueError(
                f"paths meet whose strides are {self.stride} and {other.stride}"
            )
        period = math.lcm(len(self.first), len(other.first))
        intervals = [_hull([self.at(i), other.at(i)]) for i in range(period)]
        return Reach(*_columns(intervals), int(self.stride * period))

    def field(self) -> ReceptiveField:
        """Returns the three numbers.

        Where fields differ from output to output, as after upsampling, the size is that
        of the largest, and the padding the one with which the centres are right on
        average.
        """
        phases = [
            (i, int(first), int(last))
            for i, (first, last) in enumerate(zip(self.first, self.last, strict=True))
            if first <= last
        ]
        if not phases:
            return ReceptiveField(0, 0, 0)
        size = max(last - first + 1 for _, first, last in phases)
        before = sum(
            Fraction(size - 1 - first - last, 2) + i * self.stride
            for i, first, last in phases
        )
        return ReceptiveField(size, _plain(self.stride), _plain(before / len(phases)))


def _through(
    network: Network, reach: Reach, size: int | None, dimension: int
) -> tuple[Reach, int | None]:
    """Returns the reach behind a network, and the positions there, if known."""
    if isinstance(network, Layer):
        return _slide(network, reach, size, dimension)
    if isinstance(network, Branches):
        ends = [_through(path, reach, size, dimension) for path in network.paths]
        reaches, sizes = zip(*ends, strict=True)
        if len(set(sizes)) > 1:
            raise ValueError(f"paths meet whose sizes are {', '.join(map(str, sizes))}")
        return functools.reduce(Reach.join, reaches), sizes[0]
    for part in network:
        reach, size = _through(part, reach, size, dimension)
    return reach, size


def _slide(
    layer: Layer, reach: Reach, size: int | None, dimension: int
) -> tuple[Reach, int | None]:
    kernel, stride, dilation, upsampling = (
        _along(value, dimension)
        for value in (layer.kernel, layer.stride, layer.dilation, layer.upsampling)
    )
    if min(kernel, stride, dilation, upsampling) < 1:
        raise ValueError(f"kernel, stride, dilation and upsampling of {layer}: below 1")
    extent = dilation * (kernel - 1) + 1
    places = size and (size - 1) * upsampling + 1
    if layer.padding == "same":
        pads = _same(layer, places, extent, stride)
    else:
        pads = 0 if layer.padding == "valid" else _along(layer.padding, dimension)
    low, high = (pads, pads) if isinstance(pads, int) else pads
    outputs = places and (places + low + high - extent) // stride + 1
    if outputs is not None and outputs < 1:
        raise ValueError(f"{layer} does not fit an input of {size} positions")
    return reach.window(kernel, stride, low, dilation, upsampling), outputs


def _same(
    layer: Layer, places: int | None, extent: int, stride: int
) -> tuple[int, int]:
    if stride == 1 or extent == 1:
        total = extent - 1
    elif places is None:
        raise ValueError(f'the padding "same" of {layer} depends on the input\'s size')
    else:
        total = max((-(-places // stride) - 1) * stride + extent - places, 0)
    return total // 2, total - total // 2


def _along(value: Sizes | Sequence[tuple[int, int]], dimension: int):
    """Returns what holds in a dimension; a sequence of one holds in all."""
    if isinstance(value, int):
        return value
    return value[0] if len(value) == 1 else value[dimension]


def _hull(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first = min((first for first, _ in intervals), default=math.inf)
    return first, max((last for _, last in intervals), default=-math.inf)


def _columns(intervals: Sequence[tuple[float, float]]):
    return tuple(zip(*intervals, strict=True))


def _plain(number: Fraction) -> int | Fraction:
    return int(number) if number.denominator == 1 else number
