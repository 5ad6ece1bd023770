"""The state of an ordinary training: one network, one optimiser."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PyTree


@struct.dataclass
class TrainState:
    """A step count, parameters, other variable collections and the optimiser's state.

    Holds no function and no key, so it is saved, sharded and stacked as it is.
    """

    step: Int[Array, ""]
    params: PyTree
    collections: Mapping[str, Any]
    opt_state: PyTree

    @classmethod
    def create(
        cls, variables: Mapping[str, Any], optimizer: optax.GradientTransformation
    ) -> "TrainState":
        """Returns the state at step 0.

        Args:
          variables: what a Flax module's `init` returned.
          optimizer: an optax transformation.
        """
        collections = {k: v for k, v in variables.items() if k != "params"}
        params = variables["params"]
        return cls(jnp.int32(0), params, collections, optimizer.init(params))

    def apply_gradients(
        self,
        gradients: PyTree,
        optimizer: optax.GradientTransformation,
        collections: Mapping[str, Any] | None = None,
    ) -> "TrainState":
        """Returns the state one step on.

        Args:
          gradients: of the loss with respect to `params`.
          optimizer: the transformation that `create` was given.
          collections: the new other collections, where they change.
        """
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            collections=self.collections if collections is None else collections,
            opt_state=opt_state,
        )

    def descend(
        self,
        loss: Callable[[PyTree], Float[Array, ""]],
        optimizer: optax.GradientTransformation,
    ) -> tuple["TrainState", dict[str, Float[Array, ""]]]:
        """Returns the state one step down a loss, the loss, and its gradient's norm.

        Args:
          loss: of the parameters; the other collections stay as they are.
          optimizer: the transformation that `create` was given.
        """
        value, gradients = jax.value_and_grad(loss)(self.params)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        return self.apply_gradients(gradients, optimizer), metrics
