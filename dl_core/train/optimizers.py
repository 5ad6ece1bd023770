"""Adam as a part of an experiment's config."""

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
