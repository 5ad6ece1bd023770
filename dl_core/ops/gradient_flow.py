"""How a gradient changes on its way back through time.

What a loss after the last step says about the state after step t is a product of as
many Jacobians as there are steps between: it vanishes or explodes exponentially
(Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks",
2013, arXiv:1211.5063).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


def state_gradients(
    step: Callable[[PyTree, PyTree], PyTree],
    initial: PyTree,
    inputs: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
) -> PyTree:
    """Returns the gradients of a loss with respect to the state after each step.

    They are exact, and all of one backward pass: to each state a zero is added, with
    respect to which the loss is differentiated.

    Args:
      step: makes the next state of a state and a step's inputs.
      initial: the state before the first step.
      inputs: of all steps, time first.
      loss: of the last state.

    Returns:
      As the state, each leaf "time *shape"; the last is the gradient of `loss` itself.
    """

    def unrolled(nudges):
        def nudged(state, now):
            x, nudge = now
            return jax.tree.map(jnp.add, step(state, x), nudge), None

        return loss(jax.lax.scan(nudged, initial, (inputs, nudges))[0])

    time = len(jax.tree.leaves(inputs)[0])
    zeros = jax.tree.map(lambda x: jnp.zeros((time, *x.shape), x.dtype), initial)
    return jax.grad(unrolled)(zeros)


def norm(x: Float[Array, "*shape features"]) -> Float[Array, "*shape"]:
    """Returns ‖x‖ over the last axis, also where squares would under- or overflow.

    In float32 they do below 10⁻²³ and above 10¹⁹, where gradients through a hundred
    steps are soon.
    """
    largest = jnp.abs(x).max(axis=-1)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.linalg.norm(x / scale[..., None], axis=-1)


def growth(norms: Float[np.ndarray, " distances"]) -> float:
    """Returns the factor of the exponential that fits best, by least squares of logs.

    Norms of 0, which have no logarithm, count as the smallest of float32.
    """
    logs = np.log(np.maximum(norms, np.finfo(np.float32).tiny).astype(np.float64))
    return float(np.exp(np.polyfit(np.arange(len(logs)), logs, 1)[0]))
