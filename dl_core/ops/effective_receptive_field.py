"""Receptive fields as gradients show them: where an output depends on its input.

The support of the gradient is the field that the arithmetic gives
(`dl_core.ops.receptive_field`). How strong the gradient is falls off from the centre:
the effective receptive field is smaller, and roughly a Gaussian (Luo, Li, Urtasun &
Zemel, "Understanding the effective receptive field in deep convolutional neural
networks", NIPS 2016).
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def gradient_support(
    function: Callable[[Array], Array],
    input_shape: Sequence[int],
    *,
    samples: int = 8,
    seed: int = 0,
) -> Bool[np.ndarray, "*spatial"]:
    """Returns where the gradient of the centre output is not zero: the field, seen.

    It is the union over random positive inputs, and complete if nothing cancels: make
    the weights positive, and every ReLU is active too. The maximum of a pooling may be
    anywhere in its window, so many samples are needed to see all of it.

    Args:
      function: from "batch *spatial channels" to "batch *outputs features"; each
        example by itself.
      input_shape: (*spatial, channels).
      samples: how many inputs.
      seed: of the inputs.
    """
    shape = (samples, *input_shape)
    inputs = jax.random.uniform(jax.random.key(seed), shape, minval=0.5, maxval=1.5)
    gradient = jax.jit(lambda x: centre_gradient(function, x, jnp.ones_like))(inputs)
    return np.asarray((gradient != 0).any((0, -1)))


def centre_gradient(
    function: Callable[[Array], Float[Array, "batch *outputs features"]],
    inputs: Float[Array, "batch *spatial channels"],
    weights: Callable[[Array], Array],
) -> Float[Array, "batch *spatial channels"]:
    """Returns the gradient of the output at the centre, in each dimension (n − 1) // 2.

    Args:
      function: whose output has a place for the centre.
      inputs: where the gradient is taken.
      weights: from the features there, "batch features", to the weight of each.
    """
    outputs, pullback = jax.vjp(function, inputs)
    centre = (slice(None), *((n - 1) // 2 for n in outputs.shape[1:-1]))
    weighted = weights(outputs[centre])
    return pullback(jnp.zeros_like(outputs).at[centre].set(weighted))[0]


def effective_size(field: Float[np.ndarray, "height width"]) -> float:
    """Returns the side of a square as large as what counts of a field.

    What counts are the pixels above 4.55 % (1 − 95.45 %) of the largest, as in Luo et
    al., section 3.

    Args:
      field: how strongly an output depends on each input, not negative.
    """
    return math.sqrt(np.count_nonzero(field > (1 - 0.9545) * field.max()))
