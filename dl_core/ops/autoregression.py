"""Auto-regressive models: examples as the product of their values' conditionals.

A model gives the logits of all values of an example at once, each from the values that
come before it in some order. By the chain rule that is a distribution: what is here
reads probabilities off the logits, and draws one value after the other.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Real


def log_likelihood(
    logits: Float[Array, "n *shape_and_levels"], values: Real[Array, "n *shape"]
) -> Float[Array, " n"]:
    """Returns the logarithms of the probabilities of examples, in nats.

    Args:
      logits: of 1 against 0 for each value, or of all its levels in one more axis.
      values: whole numbers from 0.

    Raises:
      ValueError: if there are not logits for each value.
    """
    every = _of_levels(logits, values.shape)
    # Else the difference of large numbers would round small losses away.
    every -= jax.lax.stop_gradient(every.max(-1, keepdims=True))
    losses = optax.softmax_cross_entropy_with_integer_labels(
        every, values.astype(jnp.int32)
    )
    return -losses.reshape(len(values), -1).sum(1)


def bits_per_dimension(
    nats: Float[Array, "*shape"], dimensions: int
) -> Float[Array, "*shape"]:
    """Returns the bits that log-likelihoods in nats are in each of the dimensions."""
    return -nats / (dimensions * math.log(2))


def sample(
    logits: Callable[[Array], Array],
    key: Array,
    values: Real[Array, "n *shape"],
    known: Bool[Array, "n *shape"] | None = None,
    order: Int[Array, " dimensions"] | None = None,
) -> Real[Array, "n *shape"]:
    """Returns examples drawn value by value, each from the logits given those before.

    Known values are kept. Those drawn follow the model's conditional distribution if
    all that is known comes before all that is not; else what is known later is not
    taken into account by what is drawn earlier.

    Args:
      logits: what a model makes of values, called once for each dimension:
        `lambda images: model.apply(variables, images, labels)[0]`.
      key: of the randomness.
      values: what is known, and anything elsewhere.
      known: where `values` are kept; nowhere by default.
      order: the positions, in C order, in which values are drawn; by default 0, 1, ….

    Raises:
      ValueError: if there are not logits for each value.
    """
    shape = values.shape
    values = values.reshape(len(values), -1)
    given = False if known is None else known
    given = jnp.broadcast_to(given, shape).reshape(values.shape)
    order = jnp.arange(values.shape[1]) if order is None else order

    def draw(step, drawn):
        at = order[step]
        every = _of_levels(logits(drawn.reshape(shape)), shape)
        every = every.reshape(*drawn.shape, -1)
        new = jax.random.categorical(jax.random.fold_in(key, step), every[:, at])
        new = jnp.where(given[:, at], values[:, at], new.astype(drawn.dtype))
        return drawn.at[:, at].set(new)

    start = jnp.where(given, values, 0)
    return jax.lax.fori_loop(0, values.shape[1], draw, start).reshape(shape)


def _of_levels(logits: Array, shape: tuple[int, ...]) -> Array:
    """Returns logits of all levels in a last axis, those of 0 and 1 where it lacks."""
    if logits.shape == shape:
        return jnp.stack([jnp.zeros_like(logits), logits], -1)
    if logits.shape[:-1] != shape:
        raise ValueError(f"logits {logits.shape} do not fit values {shape}")
    return logits
