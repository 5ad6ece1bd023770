"""Receptive fields of any function of images, read from the program it traces to.

Nothing is computed: for each array of the program (a jaxpr) it is worked out which
interval of the input each of its positions depends on, primitive by primitive. So a
Flax model needs no variables:

    model = lambda x: net.init_with_output(jax.random.key(0), x, train=False)[0]
    trace_receptive_fields(model, (1, 224, 224, 3))

No output depends on more than its field. It may depend on less where entries that
depend on different positions lie along one axis other than the positions' own (they
count as depending on all of these), and behind a product with a matrix over positions,
whose zeros are not seen. What cannot be followed is an error that names the primitive.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, PyTree

from dl_core.ops import receptive_field_rules as rules
from dl_core.ops.receptive_field import Reach
from dl_core.ops.receptive_field_rules import Seen

Rule = Callable[[Any, list[Seen | None]], Any]


def trace_receptive_fields(
    function: Callable[[Array], PyTree[Array]], input_shape: Sequence[int]
) -> PyTree:
    """Returns the receptive field of each output of a function, in each dimension.

    As in `receptive_field`, padding counts as input that goes on beyond its ends, also
    where it is circular. An output of an operation over all positions, such as global
    pooling, has the whole input as its field and stride 0.

    Args:
      function: of images "batch *spatial channels"; returns arrays in any pytree, such
        as (output, endpoints).
      input_shape: (batch, *spatial, channels).

    Returns:
      The same pytree with a tuple of `ReceptiveField` in the place of each array, one
      for each spatial dimension of the input.

    Raises:
      ValueError: if a primitive cannot be followed, paths of different strides meet, or
        the input has no spatial dimension.
    """
    shape = tuple(input_shape)
    if len(shape) < 3:
        raise ValueError(f"expected (batch, *spatial, channels), got {shape}")
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(spec)
    by_dimension = []
    for axis in range(1, len(shape) - 1):
        seen = Seen(Reach(), axis, 1, shape[axis], shape[axis])
        found = _walk(closed.jaxpr, [seen])
        pairs = zip(found, closed.jaxpr.outvars, strict=True)
        by_dimension.append([_field(seen, var.aval.shape) for seen, var in pairs])
    fields = [tuple(each) for each in zip(*by_dimension, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(outputs), fields)


def _field(seen, shape):
    if seen is None:
        return Reach((math.inf,), (-math.inf,)).field()
    if (own := seen.unrolled(shape)) is None:
        raise ValueError(
            f"receptive field: the output {shape} mixes positions with other axes"
        )
    return own.reach.field()


def _walk(jaxpr, arguments):
    """Returns the dependence of each output; None where there is none."""
    known = dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom):
        return None if isinstance(atom, core.Literal) else known.get(atom)

    for eqn in jaxpr.eqns:
        seen = [read(atom) for atom in eqn.invars]
        if any(s is not None for s in seen):
            rule = _RULES.get(eqn.primitive.name)
            if rule is None:
                raise rules.lost(eqn, "there is no rule for it")
            found = rule(eqn, seen)
            if not isinstance(found, list):
                found = [found] * len(eqn.outvars)
            known |= zip(eqn.outvars, found, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _call(eqn, seen):
    params = eqn.params
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next(params[name] for name in names if name in params)
    return _walk(getattr(inner, "jaxpr", inner), seen)


_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
convert_element_type copy cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter
not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square
stop_gradient sub tan tanh xor
"""
_REDUCTIONS = """
argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
"""
_CALLS = """
checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit pjit remat2
"""


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES = {
    **_each(_ELEMENTWISE, rules.join),
    **_each(_REDUCTIONS, rules.reduce),
    **_each(_CALLS, _call),
    **_each("cumlogsumexp cummax cummin cumprod cumsum", rules.cumulative),
    **_each("expand_dims reshape squeeze", rules.reshape),
    **_each(
        "reduce_window_max reduce_window_min reduce_window_sum", rules.reduce_window
    ),
    "broadcast_in_dim": rules.broadcast,
    "concatenate": rules.concatenate,
    "conv_general_dilated": rules.convolution,
    "dot_general": rules.dot,
    "dynamic_slice": rules.dynamic_slice,
    "gather": rules.gather,
    "pad": rules.pad,
    "rev": rules.reverse,
    "slice": rules.slice_,
    "split": rules.split,
    "transpose": rules.transpose,
}
