"""What a function costs: the multiply-adds of its convolutions and matrix products.

They are read from the traced program, so nothing is computed and any model will do. A
convolution that a lowering has turned into slices and elementwise products is not seen
as one: count what was traced with `lowering="xla"`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jaxtyping import PyTree


def multiply_adds(function: Callable, *args: Any, **kwargs: Any) -> int:
    """Returns how many multiply-adds one call of a function takes.

    Counted are convolutions and matrix products, forward or backward; a pair of a
    multiplication and an addition is one. As is usual in papers, products with the
    zeros of a padding count. Products with the zeros that a transposed convolution puts
    between its inputs do not. Of the branches of a `cond` the dearest counts.

    Args:
      function: what jax can trace.
      *args: its arguments: arrays or `jax.ShapeDtypeStruct`s.
      **kwargs: its keyword arguments.

    Raises:
      ValueError: if the function has a `while` loop around them, whose number of turns
        is not known before it runs.
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def parameter_count(params: PyTree) -> int:
    """Returns how many numbers a tree of parameters holds (arrays, or their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _COUNTS:
            total += _COUNTS[name](eqn)
            continue
        inner = [_count(part) for part in _parts(eqn)]
        if name == "while" and any(inner):
            raise ValueError(
                "multiply_adds: the function has a while loop around convolutions or "
                "matrix products, and how often it turns is not known"
            )
        turns = eqn.params["length"] if name == "scan" else 1
        total += turns * (max(inner) if name == "cond" else sum(inner))
    return total


def _parts(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yields the programs that an equation holds, such as the body of a loop."""
    is_program = (core.Jaxpr, core.ClosedJaxpr)
    leaves = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: isinstance(x, is_program)
    )
    for leaf in leaves:
        if isinstance(leaf, is_program):
            yield getattr(leaf, "jaxpr", leaf)


def _convolution(eqn: core.JaxprEqn) -> int:
    x, kernel = (v.aval.shape for v in eqn.invars)
    places = eqn.params["dimension_numbers"]
    window = math.prod(kernel[i] for i in places.rhs_spec[1:])  # With input channels.
    if max(eqn.params["lhs_dilation"], default=1) == 1:
        return math.prod(eqn.outvars[0].aval.shape) * window
    # Zeros lie between the inputs: each input meets each weight of its group once.
    features = kernel[places.rhs_spec[0]] // eqn.params["feature_group_count"]
    spatial = math.prod(kernel[i] for i in places.rhs_spec[2:])
    return math.prod(x) * spatial * features // eqn.params["batch_group_count"]


def _product(eqn: core.JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    x = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(x[i] for i in contracted)


_COUNTS = {"conv_general_dilated": _convolution, "dot_general": _product}
