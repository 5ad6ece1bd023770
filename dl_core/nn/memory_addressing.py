"""How a Neural Turing Machine finds, reads and writes places in its memory.

Graves, Wayne & Danihelka, "Neural Turing Machines", 2014 (arXiv:1410.5401), sections
3.1 to 3.3, as pure functions. A memory is stored as "batch width slots": a weighting is
over the slots, and so every inner loop is over the axis that lies contiguously.

The sharpening w^γ / Σ w^γ is written as a softmax of γ log w. As published it divides 0
by 0 once w^γ leaves the range of float32; of 128 equal weights, on a CPU, it is NaN
past γ = 18, and its gradient already from γ = 10 on, where the square of the sum is 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Memory = Float[Array, "batch width slots"]
Weighting = Float[Array, "batch heads slots"]
Vectors = Float[Array, "batch heads width"]

_SQUARE = 1e-8
"""Added to squared lengths, so that a vector of zeros is similar to nothing."""
_LEAST = 1e-16
"""Added to weights before the logarithm."""


class Address(NamedTuple):
    """What heads ask for, in the paper's letters k, β, g, s and γ."""

    key: Vectors
    strength: Float[Array, "batch heads"]
    """At least 0."""
    gate: Float[Array, "batch heads"]
    """1 for the slots that resemble the key, 0 for where the head was."""
    shift: Float[Array, "batch heads shifts"]
    """How much to move by each of the steps -n, ..., n; sums to 1."""
    sharpness: Float[Array, "batch heads"]
    """At least 1."""


def address(memory: Memory, previous: Weighting, wanted: Address) -> Weighting:
    """Returns where heads look: by content, then where they were, shifted, sharpened.

    Args:
      memory: in which the keys are looked up.
      previous: where the heads were.
      wanted: what they ask for.
    """
    key, strength, gate, steps, sharpness = wanted
    content = jax.nn.softmax(strength[..., None] * similarity(memory, key), axis=-1)
    gated = previous + gate[..., None] * (content - previous)
    return sharpen(shift(gated, steps), sharpness)


def similarity(memory: Memory, key: Vectors) -> Weighting:
    """Returns the cosine of the angle between each key and each slot's content."""
    slots = jax.lax.rsqrt(_squares(memory) + _SQUARE)[:, None]
    keys = jax.lax.rsqrt(jnp.square(key).sum(-1) + _SQUARE)[..., None]
    return _compare(memory, key) * slots * keys


def shift(
    weighting: Weighting, steps: Float[Array, "batch heads shifts"]
) -> Float[Array, "batch heads slots"]:
    """Returns the weighting moved around the circle of slots: w'(i) = Σ s(j) w(i - j).

    Args:
      weighting: over the slots.
      steps: the share of each of the steps j = -n, ..., n, so an odd number of them.

    Raises:
      ValueError: if their number is even.
    """
    count = steps.shape[-1]
    if count % 2 == 0:
        raise ValueError(f"shift: expected an odd number of steps, got {steps.shape}")
    moved = (
        steps[..., k, None] * jnp.roll(weighting, k - count // 2, axis=-1)
        for k in range(count)
    )
    return sum(moved)


def sharpen(weighting: Weighting, sharpness: Float[Array, "batch heads"]) -> Weighting:
    """Returns w^γ / Σ w^γ, for any γ."""
    return jax.nn.softmax(sharpness[..., None] * jnp.log(weighting + _LEAST), axis=-1)


@jax.custom_vjp
def read(memory: Memory, weighting: Weighting) -> Vectors:
    """Returns what heads see: r = Σ w(n) M(n)."""
    return jnp.einsum("bwn,bhn->bhw", memory, weighting)


@jax.custom_vjp
def _compare(memory: Memory, vectors: Vectors) -> Weighting:
    """Returns the product of each vector and each slot's content."""
    return jnp.einsum("bwn,bhw->bhn", memory, vectors)


def _outer(vectors: Vectors, weighting: Weighting) -> Memory:
    """Returns the heads' sum of vector times weighting."""
    return jnp.einsum("bhw,bhn->bwn", vectors, weighting)


@jax.custom_vjp
def _squares(memory: Memory) -> Float[Array, "batch slots"]:
    """Returns the squared length of each slot's content."""
    return jnp.square(memory).sum(-2)


# Each is written with the others: what XLA makes of the derivatives of an einsum, or
# of a sum over the slots, takes several times as long.
def _read_backward(saved, d):
    memory, weighting = saved
    return _outer(d, weighting), _compare(memory, d)


def _compare_backward(saved, d):
    memory, vectors = saved
    return _outer(vectors, d), read(memory, d)


def _squares_backward(memory, d):
    # Else what leads to d is computed again for every number of the memory.
    return (memory * jax.lax.optimization_barrier(2 * d)[:, None],)


read.defvjp(lambda *args: (read(*args), args), _read_backward)
_compare.defvjp(lambda *args: (_compare(*args), args), _compare_backward)
_squares.defvjp(lambda memory: (_squares(memory), memory), _squares_backward)


def write(memory: Memory, weighting: Weighting, erase: Vectors, add: Vectors) -> Memory:
    """Returns the memory after each head in turn: M(n) (1 - w(n) e) + w(n) a.

    Args:
      memory: what it was.
      weighting: where each head writes.
      erase: the share of each component that is lost, in [0, 1].
      add: what comes instead.
    """
    for head in range(weighting.shape[1]):
        only = slice(head, head + 1)
        memory = _write(memory, weighting[:, only], erase[:, only], add[:, only])
    return memory


@jax.custom_vjp
def _write(memory, weighting, erase, add):
    return memory * (1 - _outer(erase, weighting)) + _outer(add, weighting)


def _write_backward(saved, d):
    memory, weighting, erase, add = saved
    lost = d * memory
    return (
        d * (1 - _outer(erase, weighting)),
        _compare(d, add) - _compare(lost, erase),
        -read(lost, weighting),
        read(d, weighting),
    )


_write.defvjp(lambda *args: (_write(*args), args), _write_backward)
