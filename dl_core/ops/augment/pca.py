"""PCA jitter: colours moved along the directions in which a data set's colours vary.

Krizhevsky, Sutskever & Hinton, "ImageNet classification with deep convolutional neural
networks", NIPS 2012, section 4.1: to every pixel of an image the same colour
Σ_i α_i λ_i p_i is added, where λ_i and p_i are eigenvalues and eigenvectors of the
covariance of the training set's pixels, and α_i is normal with standard deviation 0.1,
drawn once an image.

Compute the eigenvectors on the data set that is trained on: those of other sets, copied
from code to code, are for other colours and often for another scale. The standard
deviation of 0.1 is for values from 0 to 1, to which bytes are scaled here. On grey
images there is one direction, and PCA jitter only changes the brightness.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Shaped

from dl_core.ops.augment.unit_range import Image, from_unit, to_unit


class PrincipalColors(NamedTuple):
    """The eigenvalues and eigenvectors of the covariance of a data set's pixels."""

    variances: Float[np.ndarray, " channels"]
    """The eigenvalues, of values from 0 to 1, the largest first."""
    directions: Float[np.ndarray, "channels channels"]
    """The eigenvectors, one a column; the largest entry of each is positive."""


def principal_colors(
    batches: Iterable[Shaped[np.ndarray, "... channels"]],
) -> PrincipalColors:
    """Returns the principal colours of images, of which it holds one batch at a time.

    Args:
      batches: images with channels last, batched or single ones; bytes, which are
        scaled to the range from 0 to 1, or floats.

    Raises:
      ValueError: where there are not two pixels, or the channels differ.
    """
    count, total, products = 0, 0.0, 0.0
    for batch in batches:
        pixels = np.reshape(batch, (-1, batch.shape[-1])).astype(np.float64)
        pixels = pixels / 255 if batch.dtype == np.uint8 else pixels
        if count and pixels.shape[1] != len(total):
            raise ValueError(
                f"Images of {len(total)} channels are followed by some of shape "
                f"{batch.shape}."
            )
        count += len(pixels)
        total = total + pixels.sum(0)
        products = products + pixels.T @ pixels
    if count < 2:
        raise ValueError(f"A covariance needs two pixels at least, not {count}.")
    covariance = (products - np.outer(total, total) / count) / (count - 1)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, range(len(largest))])
    return PrincipalColors(
        np.maximum(variances, 0).astype(np.float32), directions.astype(np.float32)
    )


def pca_jitter(
    key: Key[Array, ""], image: Image, colors: PrincipalColors, sigma: ArrayLike = 0.1
) -> Image:
    """Returns the image with one random colour added to all its pixels.

    Args:
      key: the randomness.
      image: with the channels of `colors`.
      colors: of the data set, from `principal_colors`.
      sigma: standard deviation of the α_i.

    Raises:
      ValueError: where the channels differ.
    """
    unit = to_unit(image)
    if image.shape[-1] != len(colors.variances):
        raise ValueError(
            f"Principal colours of {len(colors.variances)} channels do not fit an "
            f"image of shape {image.shape}."
        )
    alpha = sigma * jax.random.normal(key, colors.variances.shape)
    parts = zip(colors.directions.T, alpha * colors.variances, strict=True)
    added = sum(amount * direction for direction, amount in parts)
    return from_unit(unit + added, image.dtype)
