"""Training a language model on windows of text, measuring it, and writing with it.

A model is called as `dl_core.models.language.LanguageModel` is. The state it carries
from window to window, if it is recurrent, is the collection "carry" of its train state.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from dl_core.train.metrics import Likelihood
from dl_core.train.state import TrainState

_MEMORIES = ["stream", "cache"]
"""Collections in which networks keep what they have read (`dl_core.nn.streaming`)."""


def begin(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    key: jax.Array,
) -> TrainState:
    """Returns a model's state before training; its carries are zero."""
    tokens = jnp.zeros((batch_size, 1), jnp.int32)
    (_, carry), variables = model.init_with_output(key, tokens, train=False)
    if carry is not None:
        variables = {**variables, "carry": jax.tree.map(jnp.zeros_like, carry)}
    return TrainState.create(variables, optimizer)


def step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: dict[str, Array],
    key: jax.Array,
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the mean loss of a window, and carries the state on."""
    carry = reset(state.collections.get("carry"), batch["first"])

    def loss_fn(params):
        loss, carried = losses(model, params, batch, carry, key)
        return (loss * batch["weight"]).sum() / batch["weight"].sum(), carried

    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, carry), gradients = grad(state.params)
    collections = {} if carry is None else {"carry": carry}
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
    return state.apply_gradients(gradients, optimizer, collections), metrics


def reset(carry: PyTree, first: Bool[Array, " batch"]) -> PyTree:
    """Returns the carries, those of the streams that begin again zero."""
    return jax.tree.map(lambda leaf: jnp.where(first[:, None], 0, leaf), carry)


def losses(
    model: nn.Module,
    params: PyTree,
    batch: dict[str, Array],
    carry: PyTree = None,
    key: jax.Array | None = None,
) -> tuple[Float[Array, "batch targets"], PyTree]:
    """Returns -log p of each target in nats, and the last carries.

    Args:
      model: the language model.
      params: its parameters.
      batch: a batch of `dl_core.data.text.Windows`.
      carry: what a recurrent network begins with; zero where None.
      key: of what is dropped; nothing is without one.
    """
    inputs, targets = batch["inputs"], batch["targets"]
    logits, carry = model.apply(
        {"params": params},
        inputs,
        carry,
        train=key is not None,
        context=inputs.shape[1] - targets.shape[1],
        rngs=None if key is None else {"dropout": key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return loss, carry


def likelihood(
    model: nn.Module, params: PyTree, batch: dict[str, Array]
) -> dict[str, Likelihood]:
    """Measures how likely the targets of a batch are."""
    loss, _ = losses(model, params, batch)
    return {"likelihood": Likelihood.of(loss.ravel(), batch["weight"].ravel())}


def write(
    model: nn.Module,
    params: PyTree,
    first: Int[Array, " texts"],
    length: int,
    key: jax.Array,
) -> Int[Array, "texts {length}"]:
    """Writes texts, token by token, each drawn from what the model predicts.

    Every token costs one position: convolutions and attention remember what they have
    read in collections of their own, recurrent networks carry their state.

    Args:
      model: the language model.
      params: its parameters.
      first: the token that stands before each text.
      length: tokens to write.
      key: of the draws.
    """

    def one(memory: Any, key: jax.Array):
        kept, carry, tokens = memory
        (logits, carry), kept = model.apply(
            {"params": params, **kept},
            tokens[:, None],
            carry,
            train=False,
            mutable=_MEMORIES,
        )
        tokens = jax.random.categorical(key, logits[:, 0]).astype(jnp.int32)
        return (kept, carry, tokens), tokens

    keys = jax.random.split(key, length)
    # The first call makes the memories, with nothing in them.
    memory, drawn = one(({}, None, first), keys[0])
    _, others = jax.lax.scan(one, memory, keys[1:])
    return jnp.concatenate([drawn[None], others]).T
