"""Recurrences as functions: linear ones, and gradients through a part of the time.

The linear recurrence h_t = a_t h_{t-1} + b_t is at the heart of gated linear networks
and state space models. It is associative in (a, b), so that a parallel scan needs
O(log T) steps in place of T (Blelloch, 1990; Martin & Cundy, "Parallelizing linear
recurrent neural nets over sequence length", 2018, arXiv:1709.04057).

Clipping by the global norm, min(‖∇f‖, δ) ∇f / ‖∇f‖ (Pascanu, Mikolov & Bengio, 2013,
arXiv:1211.5063), is `optax.clip_by_global_norm`; orthogonal initialisation (Saxe,
McClelland & Ganguli, 2014, arXiv:1312.6120) is `jax.nn.initializers.orthogonal`.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def linear_recurrence(
    a: Float[Array, "batch time features"],
    b: Float[Array, "batch time features"],
    initial: Float[Array, "batch features"] | None = None,
    lengths: Int[Array, " batch"] | None = None,
    *,
    lowering: Literal["auto", "associative", "sequential"] = "auto",
) -> tuple[Float[Array, "batch time features"], Float[Array, "batch features"]]:
    """Returns all h_t = a_t h_{t-1} + b_t, and the last one of each sequence.

    Args:
      a: what is kept of the state at each step.
      b: what is added.
      initial: the state before the first step; 0 where None.
      lengths: valid steps of each sequence, all where None. After them the outputs are
        0; what `a` and `b` are there has no influence.
      lowering: "associative" does more than twice the sums, but in O(log T) steps;
        "auto" takes it on accelerators, and "sequential", one step after another, on
        CPUs.

    Raises:
      ValueError: if the shapes do not fit each other.
    """
    fits = a.shape == b.shape and a.ndim == 3 and a.shape[1] > 0
    if initial is not None:
        fits = fits and initial.shape == (a.shape[0], a.shape[2])
    if lengths is not None:
        fits = fits and lengths.shape == a.shape[:1]
    if not fits:
        shapes = [getattr(x, "shape", None) for x in (a, b, initial, lengths)]
        raise ValueError(
            "linear_recurrence: expected a and b of one shape (batch, time, features), "
            "initial (batch, features) and lengths (batch,), got {}, {}, {} and "
            "{}".format(*shapes)
        )
    if lengths is not None:
        valid = (jnp.arange(a.shape[1]) < lengths[:, None])[..., None]
        a, b = jnp.where(valid, a, 1), jnp.where(valid, b, 0)
    if initial is not None:
        b = b.at[:, 0].add(a[:, 0] * initial)
    if lowering == "auto":
        lowering = "sequential" if jax.default_backend() == "cpu" else "associative"
    h = _sequential(a, b) if lowering == "sequential" else _associative(a, b)
    last = h[:, -1]
    return (h if lengths is None else jnp.where(valid, h, 0)), last


def _sequential(a: Array, b: Array) -> Array:
    def step(h, now):
        h = now[0] * h + now[1]
        return h, h

    time_first = a.swapaxes(0, 1), b.swapaxes(0, 1)
    return jax.lax.scan(step, jnp.zeros_like(b[:, 0]), time_first)[1].swapaxes(0, 1)


def _associative(a: Array, b: Array) -> Array:
    def then(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(then, (a, b), axis=1)[1]


def truncated(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    x: PyTree,
    steps: int,
) -> tuple[PyTree, PyTree]:
    """Runs a recurrence whose gradients reach back to the start of their chunk only.

    Truncated back-propagation through time with the state carried on (Williams & Peng,
    1990): the values are those of the whole sequence, but every chunk of `steps` steps
    takes the carry that it gets, the very first one too, for a constant.

    Args:
      function: a pure function of a carry and a chunk, "batch steps …", that returns
        the next carry, of the same shapes, and outputs "batch steps …".
      carry: before the first step.
      x: sequences, "batch time …"; a last chunk may be shorter than the others.
      steps: in a chunk.

    Returns:
      The last carry, and the outputs of all chunks as one.

    Raises:
      ValueError: if a chunk has no step, or `x` no time or more than one.
    """
    times = {leaf.shape[1] for leaf in jax.tree.leaves(x) if leaf.ndim > 1}
    if steps < 1 or len(times) != 1 or 0 in times:
        raise ValueError(
            f"truncated: expected chunks of at least one step and sequences of one "
            f"time, got {steps} and {jax.tree.map(jnp.shape, x)}"
        )

    def chunk(carry, now):
        return function(jax.lax.stop_gradient(carry), now)

    (time,) = times
    whole = time // steps
    parts = []
    if whole:

        def split(leaf):
            batch, _, *rest = leaf.shape
            chunks = leaf[:, : whole * steps].reshape(batch, whole, steps, *rest)
            return chunks.swapaxes(0, 1)

        def joined(leaf):
            _, batch, _, *rest = leaf.shape
            return leaf.swapaxes(0, 1).reshape(batch, whole * steps, *rest)

        carry, outputs = jax.lax.scan(chunk, carry, jax.tree.map(split, x))
        parts.append(jax.tree.map(joined, outputs))
    if time % steps:
        rest = jax.tree.map(lambda leaf: leaf[:, whole * steps :], x)
        carry, outputs = chunk(carry, rest)
        parts.append(outputs)
    return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)
