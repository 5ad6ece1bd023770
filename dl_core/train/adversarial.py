"""Two networks that play against each other: their state, and a step of the game.

A step is `critic_steps` updates of the critic, each on examples of its own, then one of
the generator, all in one compiled program (Goodfellow et al., 2014, algorithm 1). What
keeps the critic Lipschitz is clipping of its weights (Arjovsky et al., 2017), a penalty
on its gradient (Gulrajani et al., 2017), or layers that normalise themselves.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from dl_core.ops.adversarial import (
    Objective,
    critic_loss,
    generator_loss,
    gradient_penalty,
)

Variables = Mapping[str, Any]
Batch = Mapping[str, Array]


@struct.dataclass
class Player:
    """A network's parameters, its other collections and its optimiser's state."""

    params: PyTree
    collections: Mapping[str, Any]
    opt_state: PyTree

    @classmethod
    def create(
        cls, variables: Variables, optimizer: optax.GradientTransformation
    ) -> "Player":
        """Returns a network before training, from what its `init` returned."""
        collections = {k: v for k, v in variables.items() if k != "params"}
        params = variables["params"]
        return cls(params, collections, optimizer.init(params))

    @property
    def variables(self) -> Variables:
        """What the network's `apply` takes."""
        return {"params": self.params, **self.collections}

    def updated(
        self,
        gradients: PyTree,
        optimizer: optax.GradientTransformation,
        collections: Mapping[str, Any],
    ) -> "Player":
        """Returns the network one step of its optimiser on."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return Player(params, collections, opt_state)


@struct.dataclass
class GanState:
    """Both networks, and the average of the generator over its steps."""

    step: Int[Array, ""]
    generator: Player
    critic: Player
    average: Variables
    """Parameters and statistics, moving averages; what is evaluated."""

    @classmethod
    def create(
        cls,
        generator: Variables,
        critic: Variables,
        generator_optimizer: optax.GradientTransformation,
        critic_optimizer: optax.GradientTransformation,
    ) -> "GanState":
        """Returns both networks before training."""
        return cls(
            step=jnp.int32(0),
            generator=Player.create(generator, generator_optimizer),
            critic=Player.create(critic, critic_optimizer),
            average=jax.tree.map(jnp.copy, dict(generator)),
        )


@dataclasses.dataclass(frozen=True)
class Game:
    """The rules, made from a config inside of the traced function."""

    generate: Callable[[Variables, Batch], tuple[Array, Mapping[str, Any]]]
    """(variables, batch) -> (examples, new collections), in training mode."""
    criticise: Callable[[Variables, Array, Batch], tuple[Array, Mapping[str, Any]]]
    """(variables, examples, batch) -> (scores, new collections), in training mode."""
    objective: Objective
    generator_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation
    clip: float | Array | None = None
    """Largest magnitude of a weight of the critic."""
    penalty: float | Array | None = None
    """Weight of the gradient penalty."""
    apart: bool = False
    """Whether the critic sees real and generated examples one after the other, so that
    a batch normalisation in it never mixes them."""
    decay: float | Array = 0.0
    """What is kept of the generator's average in a step; 0 for the generator itself."""

    @classmethod
    def of(cls, generator: nn.Module, critic: nn.Module, **rules: Any) -> "Game":
        """Returns the game of two Flax modules, such as those of `dl_core.models`.

        Args:
          generator: `(latents, labels, train=) -> (examples, endpoints)`.
          critic: `(examples, labels, train=) -> (scores, endpoints)`.
          **rules: the other fields.
        """

        def applied(module, variables, x, batch):
            mutable = [name for name in variables if name != "params"]
            (y, _), collections = module.apply(
                variables, x, batch.get("label"), train=True, mutable=mutable
            )
            return y, collections

        return cls(
            lambda variables, batch: applied(
                generator, variables, batch["latents"], batch
            ),
            lambda variables, x, batch: applied(critic, variables, x, batch),
            **rules,
        )

    def play(
        self, state: GanState, real: Batch, generated: Batch, key: jax.Array
    ) -> tuple[GanState, dict[str, Float[Array, ""]]]:
        """Takes one step.

        Args:
          state: of both networks.
          real: `example`, and whatever else `criticise` and `generate` read (labels,
            latents), for the critic's updates: arrays "updates batch …".
          generated: what `generate` and `criticise` read for the generator's update:
            arrays "batch …".
          key: of the places where the gradient penalty looks.

        Returns:
          The new state, and both losses; the critic's of its last update.
        """

        def update(critic, part):
            return self._update_critic(state.generator, critic, *part)

        count = jax.tree.leaves(real)[0].shape[0]
        parts = (real, jax.random.split(key, count))
        if count == 1:
            parts = jax.tree.map(lambda x: x[0], parts)
            critic, loss = update(state.critic, parts)
        else:
            critic, losses = jax.lax.scan(update, state.critic, parts)
            loss = losses[-1]
        generator, generator_loss_ = self._update_generator(
            state.generator, critic, generated
        )
        average = jax.tree.map(
            lambda old, new: self.decay * old + (1 - self.decay) * new,
            state.average,
            generator.variables,
        )
        state = GanState(state.step + 1, generator, critic, average)
        return state, {"critic_loss": loss, "generator_loss": generator_loss_}

    def _update_critic(self, generator, critic, batch, key):
        fakes, _ = self.generate(generator.variables, batch)
        reals = batch["example"]

        def loss_fn(params):
            variables = {"params": params, **critic.collections}
            if self.apart:
                scores, collections = self.criticise(variables, reals, batch)
                variables = {"params": params, **collections}
                others, collections = self.criticise(variables, fakes, batch)
            else:
                twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
                both = jnp.concatenate([reals, fakes])
                both, collections = self.criticise(variables, both, twice)
                scores, others = jnp.split(both, 2)
            loss = critic_loss(self.objective, scores, others)
            if self.penalty is not None:
                mix = jax.random.uniform(key, reals.shape[:1])
                variables = {"params": params, **collections}
                slope = gradient_penalty(
                    lambda x: self.criticise(variables, x, batch)[0], reals, fakes, mix
                )
                loss += self.penalty * slope
            return loss, collections

        (loss, collections), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            critic.params
        )
        critic = critic.updated(gradients, self.critic_optimizer, collections)
        if self.clip is not None:
            clipped = optax.tree.clip(critic.params, -self.clip, self.clip)
            critic = critic.replace(params=clipped)
        return critic, loss

    def _update_generator(self, generator, critic, batch):
        def loss_fn(params):
            variables = {"params": params, **generator.collections}
            fakes, collections = self.generate(variables, batch)
            scores, _ = self.criticise(critic.variables, fakes, batch)
            return generator_loss(self.objective, scores), collections

        (loss, collections), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            generator.params
        )
        generator = generator.updated(gradients, self.generator_optimizer, collections)
        return generator, loss
