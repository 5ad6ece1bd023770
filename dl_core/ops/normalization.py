"""Normalisation without parameters: of responses over channels, of linear maps.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural
networks", 2012, section 3.3 (local response normalisation); Miyato et al., "Spectral
normalization for generative adversarial networks", 2018, appendix A (power iteration).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def local_response_norm(
    x: Float[Array, "... channels"],
    size: int = 5,
    *,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    average: bool = False,
) -> Float[Array, "... channels"]:
    """Divides each activation by (k + α Σ a²)^β, the sum over neighbouring channels.

    The defaults are AlexNet's. torch and ONNX divide α by `size`, and start from k = 1;
    the paper and TensorFlow do not divide.

    Args:
      x: the activations.
      size: channels in the sum; of an even number one more comes before than after, as
        in torch.
      alpha: weight of the squares.
      beta: the exponent.
      k: the constant.
      average: whether α multiplies the mean of the squares (torch, ONNX) in place of
        their sum. Beyond the first and the last channel they count as zeros.

    Raises:
      ValueError: if there is no channel axis or `size` is not positive.
    """
    if x.ndim < 1 or size < 1:
        raise ValueError(
            f"local_response_norm: expected channels in the last axis and a size of at "
            f"least 1, got {x.shape} and size {size}"
        )
    edges = [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)]
    squares = jnp.pad(x * x, edges)
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(size))
    if average:
        total /= size
    return x / (k + alpha * total) ** beta


def operator_norm(
    linear: Callable[[Array], Array], start: Array, iterations: int = 1
) -> tuple[Float[Array, ""], Array]:
    """Estimates the largest singular value of a linear function, by power iteration.

    For a convolution this is its norm on images of this size, with its stride and
    padding; the norm of its kernel as a matrix is another number.

    The gradient is that of uᵀAv with the singular vectors held fixed, which is the
    exact one once they have converged.

    Args:
      linear: a linear function of one array, such as a convolution without bias; what
        it closes over may be differentiated.
      start: an input that is not orthogonal to the first singular vector (a random
        one), or the vector that an earlier call returned.
      iterations: applications of the function and of its transpose, at least 1.

    Returns:
      The estimate, never above the true value (rounding apart), and the unit vector to
      start from the next time.

    Raises:
      ValueError: if `iterations` is not positive.
    """
    if iterations < 1:
        raise ValueError(f"operator_norm: expected iterations >= 1, got {iterations}")
    # Not `linear_transpose`, which cannot see through rules written by hand.
    _, transpose = jax.vjp(linear, start)

    def step(_, vectors):
        u = unit(linear(vectors[1]))
        return u, unit(transpose(u)[0])

    # A convolution inside a device loop is slow on CPUs.
    u, v = jax.lax.fori_loop(
        0, iterations, step, (linear(start), start), unroll=iterations <= 4
    )
    u, v = jax.lax.stop_gradient((u, v))
    return jnp.vdot(u, linear(v)), v


def unit(x: Array, epsilon: float = 1e-12) -> Array:
    """Returns the array divided by its Euclidean norm, or by `epsilon` if larger."""
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x)), epsilon)
