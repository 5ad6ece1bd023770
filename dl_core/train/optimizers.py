"""Update rules as parts of an experiment's config."""

from typing import Literal

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
        largest = jnp.where(self.clip > 0, self.clip, jnp.inf)
        return optax.chain(optax.clip_by_global_norm(largest), rule)
