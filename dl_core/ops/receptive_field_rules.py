"""How each primitive of a traced program hands on which inputs its operands depend on.

For `dl_core.ops.receptive_field_tracing`. A rule takes the equation and what is known
of its operands (None: does not depend on the input), and returns what holds for its
results: one for all of them, or a list.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

from dl_core.ops.receptive_field import Reach

Equation = Any
"""A `jax.extend.core.JaxprEqn`."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """How the positions of an array depend on one dimension of the input.

    Those at index j along `axis` have the reach of position (j // inner) % count. If
    `axis` is None they all have that of position 0.
    """

    reach: Reach
    axis: int | None
    inner: int
    count: int
    input_size: int

    def fixed(self) -> "Seen":
        """Returns the dependence of what reads all positions."""
        spans = [self.reach.at(i) for i in range(self.count)]
        first = max(0, min(first for first, _ in spans))
        last = min(self.input_size - 1, max(last for _, last in spans))
        reach = Reach((first,), (last,), 0)
        return dataclasses.replace(self, reach=reach, axis=None, inner=1, count=1)

    def moved(self, axis: int | None) -> "Seen":
        """Returns the same along another axis."""
        return dataclasses.replace(self, axis=axis)

    def unrolled(self, shape: Sequence[int]) -> "Seen | None":
        """Returns the same with an own position for each index along the axis.

        None if something else shares the axis from outside.
        """
        if self.axis is not None and self.inner * self.count != shape[self.axis]:
            return None
        if self.inner == 1:
            return self
        first = tuple(f for f in self.reach.first for _ in range(self.inner))
        last = tuple(f for f in self.reach.last for _ in range(self.inner))
        reach, count = Reach(first, last, self.reach.shift), self.inner * self.count
        return dataclasses.replace(self, reach=reach, inner=1, count=count)

    def windows(self, outputs: int, **window: SupportsIndex) -> "Seen":
        """Returns the dependence of windows over the positions."""
        reach = self.reach.window(**{name: int(n) for name, n in window.items()})
        return dataclasses.replace(self, reach=reach, count=outputs)


Operands = Sequence[Seen | None]


def lost(eqn: Equation, why: str) -> ValueError:
    """Returns the error that names the primitive."""
    shapes = ", ".join(str(getattr(atom.aval, "shape", ())) for atom in eqn.invars)
    name = f"the primitive {eqn.primitive.name} of {shapes}"
    return ValueError(f"receptive field: cannot follow {name}: {why}")


def join(eqn: Equation, seen: Operands) -> Seen | None:
    """Anything elementwise: reads the same position of all operands."""
    seen = [s for s in seen if s is not None]
    moving = [s for s in seen if s.axis is not None]
    fixed = [s for s in seen if s.axis is None]
    if not moving:
        reach = functools.reduce(Reach.join, (s.reach for s in fixed))
        return dataclasses.replace(fixed[0], reach=reach)
    whole = Reach((0,), (moving[0].input_size - 1,), 0)
    places = {(s.axis, s.inner, s.count) for s in moving}
    if len(places) > 1 or any(s.reach == whole for s in fixed):
        return Seen(whole, None, 1, 1, moving[0].input_size)
    if fixed:
        raise lost(eqn, "a part of the input that is fixed meets one that moves")
    try:
        reach = functools.reduce(Reach.join, (s.reach for s in moving))
    except ValueError as error:
        raise lost(eqn, str(error)) from None
    return dataclasses.replace(moving[0], reach=reach)


def _unrolled(eqn, seen, operand=0):
    """Returns the dependence with an own position for each index of its axis."""
    if (own := seen.unrolled(eqn.invars[operand].aval.shape)) is None:
        raise lost(eqn, "the positions share an axis with something else")
    return own


def _only_first(eqn, seen):
    if any(s is not None for s in seen[1:]):
        raise lost(eqn, "more than its first operand depends on the input")
    return seen[0]


def convolution(eqn: Equation, seen: Operands) -> Seen | None:
    """A convolution of any kind: windows along space, a sum over channels."""
    seen, params = _only_first(eqn, seen), eqn.params
    numbers = params["dimension_numbers"]
    batch, features, *spatial = numbers.lhs_spec
    if seen.axis is None:
        return seen
    if seen.axis == features:
        return seen.fixed()
    if seen.axis == batch:
        if params["batch_group_count"] > 1:
            raise lost(eqn, "it sums over groups of the batch")
        return seen.moved(numbers.out_spec[0])
    i = spatial.index(seen.axis)
    axis = numbers.out_spec[2 + i]
    return (
        _unrolled(eqn, seen)
        .moved(axis)
        .windows(
            eqn.outvars[0].aval.shape[axis],
            kernel=eqn.invars[1].aval.shape[numbers.rhs_spec[2 + i]],
            stride=params["window_strides"][i],
            low=params["padding"][i][0],
            dilation=params["rhs_dilation"][i],
            upsampling=params["lhs_dilation"][i],
        )
    )


def reduce_window(eqn: Equation, seen: Operands) -> Seen | None:
    """A pooling."""
    seen, params = _only_first(eqn, seen), eqn.params
    axis = seen.axis
    if (
        axis is None
        or params["window_dimensions"][axis] == 1 == (params["window_strides"][axis])
    ):
        return seen
    return _unrolled(eqn, seen).windows(
        eqn.outvars[0].aval.shape[axis],
        kernel=params["window_dimensions"][axis],
        stride=params["window_strides"][axis],
        low=params["padding"][axis][0],
        dilation=params["window_dilation"][axis],
        upsampling=params["base_dilation"][axis],
    )


def dot(eqn: Equation, seen: Operands) -> Seen | None:
    """A product of matrices, with axes that are summed, shared and free."""
    (left_sums, right_sums), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = (atom.aval.ndim for atom in eqn.invars)
    after = left - len(left_sums)
    sides = (
        (seen[0], left_sums, left_batch, left, len(left_batch)),
        (seen[1], right_sums, right_batch, right, after),
    )
    found = []
    for one, sums, batch, ndim, start in sides:
        if one is None or one.axis is None:
            found.append(one)
        elif one.axis in sums:
            found.append(one.fixed())
        elif one.axis in batch:
            found.append(one.moved(batch.index(one.axis)))
        else:
            free = [i for i in range(ndim) if i not in (*sums, *batch)]
            found.append(one.moved(start + free.index(one.axis)))
    return join(eqn, found)


def reduce(eqn: Equation, seen: Operands) -> Seen | None:
    """A sum, a maximum or the like over whole axes."""
    axes = eqn.params["axes"]

    def one(s):
        if s is None or s.axis is None:
            return s
        if s.axis in axes:
            return s.fixed()
        return s.moved(s.axis - sum(axis < s.axis for axis in axes))

    return join(eqn, [one(s) for s in seen])


def cumulative(eqn: Equation, seen: Operands) -> Seen | None:
    """A cumulative sum or the like: only along other axes."""
    if seen[0].axis == eqn.params["axis"]:
        raise lost(eqn, "what it reads grows from position to position")
    return seen[0]


def pad(eqn: Equation, seen: Operands) -> Seen | None:
    """Padding, negative (cropping) and between positions too."""
    seen = _only_first(eqn, seen)
    if seen.axis is None:
        return seen
    low, high, between = eqn.params["padding_config"][seen.axis]
    if low == high == between == 0:
        return seen
    size = eqn.outvars[0].aval.shape[seen.axis]
    return _unrolled(eqn, seen).windows(size, kernel=1, low=low, upsampling=between + 1)


def slice_(eqn: Equation, seen: Operands) -> Seen | None:
    """A slice, with strides."""
    (seen,), params = seen, eqn.params
    size = None if seen.axis is None else eqn.outvars[0].aval.shape[seen.axis]
    if size is None or size == eqn.invars[0].aval.shape[seen.axis]:
        return seen
    stride = params["strides"][seen.axis] if params["strides"] else 1
    low = -params["start_indices"][seen.axis]
    return _unrolled(eqn, seen).windows(size, kernel=1, stride=stride, low=low)


def split(eqn: Equation, seen: Operands) -> Seen | list[Seen]:
    """A split into pieces along an axis."""
    (seen,), axis = seen, eqn.params["axis"]
    if seen.axis != axis:
        return seen
    seen, sizes = _unrolled(eqn, seen), eqn.params["sizes"]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        seen.windows(size, kernel=1, low=-start)
        for size, start in zip(sizes, starts, strict=True)
    ]


def dynamic_slice(eqn: Equation, seen: Operands) -> Seen | None:
    """A slice that begins where a number says: only along other axes."""
    one, sizes = _only_first(eqn, seen), eqn.params["slice_sizes"]
    if one.axis is not None and sizes[one.axis] != eqn.invars[0].aval.shape[one.axis]:
        raise lost(eqn, "it picks positions by numbers that the program computes")
    return one


def gather(eqn: Equation, seen: Operands) -> Seen | None:
    """Picked by index: all of an axis, or any of its positions."""
    array, indices = seen
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if array is not None and array.axis is not None:
        full = sizes[array.axis] == eqn.invars[0].aval.shape[array.axis]
        if full and array.axis not in dropped:
            offset = array.axis - sum(axis < array.axis for axis in dropped)
            array = array.moved(numbers.offset_dims[offset])
        elif indices is None or array.axis in numbers.operand_batching_dims:
            raise lost(eqn, "it picks positions by numbers that the program computes")
        else:  # Positions picked by what depends on the input: any of them.
            array = array.fixed()
    if indices is not None and indices.axis is not None:
        raise lost(eqn, "what it picks depends on the position")
    return join(eqn, [array, indices])


def reverse(eqn: Equation, seen: Operands) -> Seen | None:
    """A flip."""
    (seen,) = seen
    if seen.axis not in eqn.params["dimensions"]:
        return seen
    seen = _unrolled(eqn, seen)
    spans = [seen.reach.at(seen.count - 1 - i) for i in range(len(seen.reach.first))]
    first, last = zip(*spans, strict=True)
    return dataclasses.replace(seen, reach=Reach(first, last, -seen.reach.shift))


def concatenate(eqn: Equation, seen: Operands) -> Seen | None:
    """Pieces, one after the other along positions or along another axis."""
    axis = eqn.params["dimension"]
    if not any(s is not None and s.axis == axis for s in seen):
        return join(eqn, seen)
    sizes = [atom.aval.shape[axis] for atom in eqn.invars]
    if any(s is not None and s.axis != axis for s in seen):
        raise lost(eqn, "the positions of its operands lie along different axes")
    pieces = [
        (sum(sizes[:i]), size, _unrolled(eqn, s, i))
        for i, (size, s) in enumerate(zip(sizes, seen, strict=True))
        if s is not None
    ]
    start, size, main = max(pieces, key=lambda piece: piece[1])
    for begin, length, piece in pieces:
        # As the longest piece goes on, or a turn further where padding is circular.
        turn = main.reach.stride * size
        gaps = {
            gap
            for i in range(length)
            for gap in _gaps(piece.reach.at(i), main.reach.at(begin + i - start))
        }
        if gaps not in ({0}, {turn}, {-turn}):
            raise lost(eqn, "its pieces do not continue each other")
    return main.windows(sum(sizes), kernel=1, low=start)


def _gaps(one, other):
    return (a - b for a, b in zip(one, other, strict=True))


def transpose(eqn: Equation, seen: Operands) -> Seen | None:
    """A permutation of the axes."""
    (seen,) = seen
    if seen.axis is None:
        return seen
    return seen.moved(eqn.params["permutation"].index(seen.axis))


def broadcast(eqn: Equation, seen: Operands) -> Seen | None:
    """New axes, or axes of one position that grow."""
    seen = seen[0]
    if seen.axis is None:
        return seen
    axis = eqn.params["broadcast_dimensions"][seen.axis]
    if eqn.outvars[0].aval.shape[axis] != eqn.invars[0].aval.shape[seen.axis]:
        return seen.fixed()
    return seen.moved(axis)


def reshape(eqn: Equation, seen: Operands) -> Seen | None:
    """Another shape: positions are a digit of the index in row-major order."""
    seen = seen[0]
    if seen.axis is None:
        return seen
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if seen.count == 1:
        return seen.fixed()
    inner = seen.inner * math.prod(old[seen.axis + 1 :])
    for axis, size in enumerate(new):
        below = math.prod(new[axis + 1 :])
        if inner % below == 0 and inner * seen.count <= below * size:
            return dataclasses.replace(seen, axis=axis, inner=inner // below)
    raise lost(eqn, f"{new} takes the positions apart")
