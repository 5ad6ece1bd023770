"""What generators and critics share: labels, and a bound on what a layer does.

Labels enter a critic as constant planes beside the image (concatenation; Mirza &
Osindero, "Conditional generative adversarial nets", 2014) or as an inner product with
its last features (projection; Miyato & Koyama, "cGANs with projection discriminator",
2018). The bound is that of Miyato et al., "Spectral normalization for generative
adversarial networks", 2018.
"""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.nn.normalization import SpectralNorm

Constraint = Literal["none", "spectral", "operator"]
"""What a critic's kernels are divided by: nothing, the largest singular value of the
kernel as a matrix, or the norm of the layer as a linear operator on its images."""
Conditioning = Literal["none", "concatenation", "projection"]


def constrained(
    layer: nn.Module, constraint: Constraint, iterations: int = 1, *, train: bool
) -> Callable:
    """Returns a layer as a function of its input, its kernels divided as told.

    Args:
      layer: convolution or dense layer.
      constraint: what to divide by.
      iterations: of the power method in each training step.
      train: whether to take them.
    """
    if constraint == "none":
        return layer
    norm = {"spectral": "kernel", "operator": "operator"}[constraint]
    divided = SpectralNorm(layer, norm=norm, steps=iterations)
    return lambda x: divided(x, train=train)


def one_hot(labels: Int[Array, " n"] | None, classes: int) -> Float[Array, "n classes"]:
    """Returns the codes of labels.

    Raises:
      ValueError: if there are no labels, or no classes.
    """
    if labels is None or classes < 1:
        raise ValueError(
            "a conditional network needs labels and their number of classes, got "
            f"{'no labels' if labels is None else labels.shape} and {classes} classes"
        )
    return jax.nn.one_hot(labels, classes)


def with_planes(
    images: Float[Array, "n height width channels"], codes: Float[Array, "n classes"]
) -> Float[Array, "n height width more"]:
    """Returns images with a constant channel for each number of their codes."""
    shape = (*images.shape[:3], codes.shape[-1])
    planes = jnp.broadcast_to(codes[:, None, None], shape)
    return jnp.concatenate([images, planes], axis=-1)
