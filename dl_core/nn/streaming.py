"""Causal networks one position at a time: state in, state out, the same parameters.

    state = init_stream(model, variables, x[:, 0])
    state, y_t = step(model, variables, state, x_t)

does for any model of time of `dl_core.nn.temporal`, or made of its layers and of what
acts on each position by itself (dense layers, activations, layer normalisation), what
the model does to whole sequences, in time and memory that do not grow with t. `step` is
pure and holds dense products, no convolutions, so it is fast inside `lax.scan` on CPUs
too: sampling is a scan whose carry is the state and the last sample. A layer knows that
it is in a stream by the collection "stream", its memory, being mutable; it never is
inside `flax.linen.WeightNorm`, so `CausalConv` has weight normalisation of its own.

The memory of a window of k taps with dilation d is a ring of d times the last k − 1
inputs that its position, modulo d, will meet again: with k = 2 the queues of Paine et
al., "Fast WaveNet generation algorithm", 2016 (arXiv:1611.09482).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dl_core.nn.conv import ConvLayer

_COLLECTION = "stream"


def init_stream(
    model: nn.Module,
    variables: PyTree,
    x: Float[Array, "batch *features"],
    *args: Any,
    **kwargs: Any,
) -> PyTree:
    """Returns the state before the first position: zeros, as causal padding has it.

    Args:
      model: a causal network of sequences "batch time *features".
      variables: its parameters and other collections.
      x: one position, for its shape and type alone.
      *args: for the model, as for `step`.
      **kwargs: for the model, as for `step`.

    Raises:
      ValueError: if a convolution of the model remembers nothing, or has no output at
        every position.
    """

    def first(variables, x):
        with nn.intercept_methods(_check_memory):
            return step(model, variables, {}, x, *args, **kwargs)[0]

    shapes = jax.eval_shape(first, variables, x)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def step(
    model: nn.Module,
    variables: PyTree,
    state: PyTree,
    x: Float[Array, "batch *features"],
    *args: Any,
    **kwargs: Any,
) -> tuple[PyTree, Float[Array, "batch *outputs"]]:
    """Returns the state after the next position, and the model's output there.

    Args:
      model: as for `init_stream`.
      variables: as for `init_stream`.
      state: from `init_stream` or the last step.
      x: the next position of each sequence.
      *args: for the model, as they are: sequences among them are of one position,
        "batch 1 features".
      **kwargs: for the model, likewise.
    """
    y, updates = model.apply(
        {**variables, _COLLECTION: state},
        x[:, None],
        *args,
        mutable=[_COLLECTION],
        **kwargs,
    )
    return updates.get(_COLLECTION, {}), y[:, 0]


def in_stream(module: nn.Module) -> bool:
    """Returns whether a module is called with one position of a stream."""
    return module.is_mutable_collection(_COLLECTION) and not module.is_initializing()


def last_inputs(
    module: nn.Module, x: Float[Array, "batch 1 in"], taps: int, dilation: int
) -> Float[Array, "batch taps in"]:
    """Returns every `dilation`-th input up to the new one, and remembers that.

    Args:
      module: the layer, whose memory this is.
      x: the new input.
      taps: how many inputs, the new one among them.
      dilation: positions from one to the next.

    Raises:
      ValueError: if `x` is of more positions than one.
    """
    if x.shape[1] != 1:
        raise ValueError(f"a stream goes on by one position, got x of shape {x.shape}")
    shape = (dilation, len(x), taps - 1, x.shape[-1])
    ring = module.variable(_COLLECTION, "ring", jnp.zeros, shape, x.dtype)
    turn = module.variable(_COLLECTION, "turn", jnp.zeros, (), jnp.int32)
    past = jax.lax.dynamic_index_in_dim(ring.value, turn.value, keepdims=False)
    window = jnp.concatenate([past, x], axis=1)
    ring.value = jax.lax.dynamic_update_index_in_dim(
        ring.value, window[:, 1:], turn.value, axis=0
    )
    turn.value = (turn.value + 1) % dilation
    return window


def _check_memory(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Makes a call of a module; refuses windows over time that have no memory."""
    y = call(*args, **kwargs)
    module = context.module
    if (
        context.method_name == "__call__"
        and isinstance(module, ConvLayer | nn.Conv)
        and module.kernel_size not in (1, (1,))
        and not module.has_variable(_COLLECTION, "ring")
    ):
        raise ValueError(
            f"init_stream: the {type(module).__name__} {'/'.join(module.path)!r} with "
            f"kernel_size {module.kernel_size} remembers nothing; it must be a "
            "CausalConv, in no wrapper that keeps its variables from changing"
        )
    return y
