"""MADE: an autoencoder whose masked weights make it a distribution of binary vectors.

Germain, Gregor, Murray & Larochelle, "MADE: masked autoencoder for distribution
estimation", 2015. An input has as degree its place in the order, 1 to D. A hidden unit
of degree m sees what is of degree m or less, an output of degree m sees less than m.
Orders and hidden degrees are fixed, or drawn from a seed that may be traced: one
compiled program trains on a new order each step (pass the step, or the step modulo a
number of orders), and averages the probabilities under several.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from dl_core.ops.autoregression import log_likelihood

Initializer = nn.initializers.Initializer
Seed = int | Int[Array, ""]


class MaskedDense(nn.Module):
    """A dense layer of which some weights are left out; named as `flax.linen.Dense`."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.linear.default_kernel_init
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch in"],
        mask: Bool[Array, "in {self.features}"],
    ) -> Float[Array, "*batch {self.features}"]:
        """Returns what the weights that the mask lets through make of `x`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = x @ jnp.where(mask, kernel, 0)
        if not self.use_bias:
            return y
        return y + self.param("bias", self.bias_init, (self.features,))


class MADE(nn.Module):
    """A masked autoencoder with ReLUs between its layers."""

    widths: Sequence[int] = (500,)
    """Units of each hidden layer."""
    direct: bool = False
    """Whether the outputs also see the inputs themselves, by a layer of their own."""
    random_order: bool = False
    """Whether the seed draws the order of the inputs; else it is that of the array."""
    random_degrees: bool = False
    """Whether the seed draws the hidden degrees; else they are spread evenly."""

    @nn.compact
    def __call__(
        self, values: Real[Array, "n *shape"], seed: Seed = 0
    ) -> tuple[Float[Array, "n *shape"], dict[str, Array]]:
        """Returns the logits of 1 against 0, and the hidden units by "hidden_0", ….

        Args:
          values: zeros and ones, of any shape.
          seed: of the order and the degrees, where they are random.
        """
        x = values.reshape(len(values), -1).astype(jnp.float32)
        dimensions, inputs = x.shape[1], x
        first, *hidden = self.degrees(dimensions, seed)
        below, endpoints = first, {}
        for number, degrees in enumerate(hidden):
            name = f"hidden_{number}"
            layer = MaskedDense(len(degrees), name=name)
            x = endpoints[name] = nn.relu(layer(x, below[:, None] <= degrees))
            below = degrees
        logits = MaskedDense(dimensions, name="logits")(x, below[:, None] < first)
        if self.direct:
            layer = MaskedDense(dimensions, use_bias=False, name="direct")
            logits += layer(inputs, first[:, None] < first)
        return logits.reshape(values.shape), endpoints

    def log_prob(
        self, values: Real[Array, "n *shape"], seed: Seed = 0
    ) -> Float[Array, " n"]:
        """Returns the logarithms of the vectors' probabilities, in nats.

        Args: as when called.
        """
        return log_likelihood(self(values, seed)[0], values)

    def degrees(self, dimensions: int, seed: Seed = 0) -> list[Int[Array, " units"]]:
        """Returns the degrees of the inputs, then of the units of each hidden layer.

        Random ones of a layer are uniform from the least below to D - 1, so that no
        unit sees nothing.

        Raises:
          ValueError: if a layer has no units.
        """
        if not dimensions or min(self.widths, default=1) < 1:
            raise ValueError(
                f"MADE: expected layers of at least one unit, got {dimensions} inputs "
                f"and hidden layers of {tuple(self.widths)}"
            )
        keys = jax.random.split(jax.random.key(seed), len(self.widths) + 1)
        most, below = max(dimensions - 1, 1), jnp.arange(1, dimensions + 1)
        if self.random_order:
            below = jax.random.permutation(keys[0], below)
        found = [below]
        for key, width in zip(keys[1:], self.widths, strict=True):
            if self.random_degrees:
                below = jax.random.randint(key, (width,), below.min(), most + 1)
            else:
                below = jnp.asarray(np.linspace(1, most, width).round(), jnp.int32)
            found.append(below)
        return found

    def order(self, dimensions: int, seed: Seed = 0) -> Int[Array, " dimensions"]:
        """Returns the positions of the inputs in their order, as `sample` takes them.

        `dl_core.ops.autoregression.sample(lambda x: model.apply(variables, x, seed)[0],
        key, values, known, model.order(dimensions, seed))` draws from the model.
        """
        return jnp.argsort(self.degrees(dimensions, seed)[0])
