"""Update rules as parts of an experiment's config."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from dl_core.config import config, static, traced


@config
class Adam:
    """Adam (Kingma & Ba, 2015): what both networks of a game are updated by."""

    learning_rate: float = traced(1e-3, "Step size.", above=0)
    beta1: float = traced(0.5, "Decay of the mean.", at_least=0, below=1)
    beta2: float = traced(0.999, "Decay of the square.", at_least=0, below=1)

    def make(self) -> optax.GradientTransformation:
        """Returns the update rule."""
        return optax.adam(self.learning_rate, self.beta1, self.beta2)


@config
class FallingAdam(Adam):
    """Adam whose step size may fall to 0 over a run."""

    falls: bool = static(False, "Whether the step size falls linearly to 0.")

    def make(self, updates: int) -> optax.GradientTransformation:
        """Returns the update rule of a network that takes so many updates."""
        rate = self.learning_rate
        if self.falls:
            rate = optax.schedules.linear_schedule(rate, 0.0, updates)
        return optax.adam(rate, self.beta1, self.beta2)


@config
class Warmed(Adam):
    """Adam whose step size rises linearly, then falls along a cosine; clipped.

    Weights decay apart from the gradient (Loshchilov & Hutter, 2019), matrices alone.
    """

    beta1: float = traced(0.9, "Decay of the mean.", at_least=0, below=1)
    warmup: int = static(0, "Steps over which the step size rises.", at_least=0)
    least: float = traced(
        0.1, "The step size at the end, of the largest.", at_least=0, at_most=1
    )
    weight_decay: float = traced(
        0.0, "Part of a matrix lost a step, times the step size.", at_least=0
    )
    clip: float = traced(
        1.0, "Largest norm of the gradient; 0 leaves it as it is.", at_least=0
    )

    def make(self, updates: int) -> optax.GradientTransformation:
        """Returns the update rule of a network that takes so many updates."""
        falling = max(updates - self.warmup, 1)

        def rate(count):
            rise = (count + 1) / (self.warmup + 1)
            fallen = jnp.clip((count - self.warmup) / falling, 0, 1)
            cosine = (1 + jnp.cos(jnp.pi * fallen)) / 2
            shape = self.least + (1 - self.least) * cosine
            return self.learning_rate * jnp.minimum(rise, shape)

        def matrices(params):
            return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

        return optax.chain(
            _clip(self.clip),
            optax.adamw(
                rate,
                self.beta1,
                self.beta2,
                weight_decay=self.weight_decay,
                mask=matrices,
            ),
        )


def _clip(largest: Any) -> optax.GradientTransformation:
    return optax.clip_by_global_norm(jnp.where(largest > 0, largest, jnp.inf))


@config
class Optimizer:
    """One of three update rules, clipped gradients, a step size that falls in stairs.

    They are torch's: RMSprop (its decay 0.99) adds epsilon outside the root. The whole
    gradient is scaled down to a norm of at most `clip` (Pascanu, Mikolov & Bengio,
    2013).
    """

    name: Literal["adam", "rmsprop", "sgd"] = static("adam", "Update rule.")
    learning_rate: float = traced(2e-3, "Step size.", above=0)
    clip: float = traced(
        0.0, "Largest norm of the gradient; 0 leaves it as it is.", at_least=0
    )
    stair: int = static(
        0, "Steps after which the step size falls; 0 for never.", at_least=0
    )
    stair_factor: float = traced(
        0.1, "What it is multiplied by then.", above=0, at_most=1
    )

    def make(self) -> optax.GradientTransformation:
        """Returns the update rule."""

        def stairs(count):
            return self.learning_rate * self.stair_factor ** (count // self.stair)

        rate = stairs if self.stair else self.learning_rate
        rule = {
            "adam": optax.adam,
            "rmsprop": lambda rate: optax.rmsprop(rate, 0.99, eps_in_sqrt=False),
            "sgd": optax.sgd,
        }[self.name](rate)
        return optax.chain(_clip(self.clip), rule)


@config
class RMSprop:
    """Clipped gradients, RMSprop, momentum: what Graves trains recurrent networks by.

    As in torch, epsilon is outside the root. It limits how far a large gradient throws
    a network whose gradients have long been small: by 4.5 / (1 - momentum) step sizes
    without it.
    """

    learning_rate: float = traced(3e-4, "Step size.", above=0)
    decay: float = traced(0.95, "Decay of the square.", at_least=0, below=1)
    momentum: float = traced(0.9, "Momentum.", at_least=0, below=1)
    epsilon: float = traced(1e-4, "Added to the root of the mean square.", above=0)
    clip: float = traced(10.0, "Largest entry of a gradient.", above=0)
    falls: bool = static(False, "Whether the step size falls linearly to 0.")

    def make(self, updates: int) -> optax.GradientTransformation:
        """Returns the update rule of a network that takes so many updates."""
        rate = self.learning_rate
        if self.falls:
            rate = optax.schedules.linear_schedule(rate, 0.0, updates)
        rule = optax.rmsprop(
            rate,
            self.decay,
            self.epsilon,
            momentum=self.momentum,
            eps_in_sqrt=False,
        )
        return optax.chain(optax.clip(self.clip), rule)
