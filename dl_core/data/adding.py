"""The adding problem: add the two numbers of a long sequence that are marked.

Hochreiter & Schmidhuber, "Long short-term memory", 1997, section 5.4, as Bai, Kolter &
Koltun, 2018 (arXiv:1803.01271), have it: the marks lie anywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

VARIANCE = 1 / 6
"""Of the targets: the mean squared error of who always answers their mean, 1."""


def adding_problem(
    key: jax.Array, count: int, length: int
) -> dict[str, Float[Array, "count ..."]]:
    """Makes sequences and the sums that are to be said at their ends.

    Args:
      key: random numbers.
      count: sequences.
      length: steps, at least 2.

    Returns:
      "inputs" (count, length, 2): a number drawn uniformly from 0 to 1, and a mark, 1
      at two steps and 0 elsewhere; "targets" (count,): the sum of the marked numbers.

    Raises:
      ValueError: if a sequence has less than two steps.
    """
    if length < 2:
        raise ValueError(f"adding_problem: {length} steps cannot hold two marks")
    for_numbers, for_first, for_gap = jax.random.split(key, 3)
    numbers = jax.random.uniform(for_numbers, (count, length))
    first = jax.random.randint(for_first, (count, 1), 0, length)
    # A step of 1 to T - 1 around the circle: each other position is as likely.
    second = (first + jax.random.randint(for_gap, (count, 1), 1, length)) % length
    steps = jnp.arange(length)
    marks = ((steps == first) | (steps == second)).astype(jnp.float32)
    return {
        "inputs": jnp.stack([numbers, marks], axis=-1),
        "targets": (numbers * marks).sum(1),
    }
