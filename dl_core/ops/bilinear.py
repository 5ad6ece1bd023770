"""Bilinear pooling: second-order features, from products of channels at each position.

All functions take two inputs, x and y, which may differ in channels: two networks, or
two modalities (an image and a question). Without y, x is multiplied with itself.

* the full outer product: Lin et al., "Bilinear CNN models for fine-grained visual
  recognition", ICCV 2015; with the normalisation of that paper, `power_normalize`;
* the compact one, a tensor sketch: Pham & Pagh, "Fast and scalable polynomial kernels
  via explicit feature maps", KDD 2013; Gao et al., "Compact bilinear pooling", CVPR
  2016; between modalities (MCB) Fukui et al., EMNLP 2016;
* the factorised one: between modalities Kim et al., "Hadamard product for low-rank
  bilinear pooling", ICLR 2017 (MLB), and Yu et al., ICCV 2017 (MFB); with sparse codes
  Gao et al., "Revisiting bilinear pooling: a coding perspective", AAAI 2020 (FBC).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def bilinear_pool(
    x: Float[Array, "batch *positions channels"],
    y: Float[Array, "batch *positions other_channels"] | None = None,
) -> Float[Array, "batch products"]:
    """Returns the mean over positions of the outer product of x and y, flattened.

    Args:
      x: features at any number of positions; vectors have none.
      y: other features at the same positions; x where None.

    Raises:
      ValueError: where the positions differ.
    """
    x, y = _at_positions(x, y)
    products = jnp.einsum("bpi,bpj->bij", x, y) / x.shape[1]
    return products.reshape(len(x), -1)


def power_normalize(
    x: Float[Array, "*batch features"],
) -> Float[Array, "*batch features"]:
    """Returns `l2_normalize(signed_sqrt(x))`, what follows a bilinear pooling."""
    return l2_normalize(signed_sqrt(x))


def signed_sqrt(
    x: Float[Array, "*shape"], epsilon: float = 1e-10
) -> Float[Array, "*shape"]:
    """Returns sign(x) √|x|, with a finite gradient at 0.

    Between -epsilon and epsilon it is the line x / √epsilon, which joins the root at
    both ends, is off by at most √epsilon / 4, and has the gradient 1 / √epsilon.

    Args:
      x: numbers of either sign.
      epsilon: where the line ends, above 0.
    """
    return x * jax.lax.rsqrt(jnp.maximum(jnp.abs(x), epsilon))


def l2_normalize(
    x: Float[Array, "*batch features"], epsilon: float = 1e-12
) -> Float[Array, "*batch features"]:
    """Returns x over its length; one no longer than epsilon gives 0, gradient 0."""
    squares = jnp.sum(x**2, -1, keepdims=True)
    long = squares > epsilon**2
    return jnp.where(long, x * jax.lax.rsqrt(jnp.where(long, squares, 1)), 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CountSketch:
    """A random linear map that adds each channel, with a sign, to one of the features.

    Attributes:
      indices: the feature of each channel.
      signs: 1 or -1 for each channel.
      features: how many there are.
    """

    indices: Int[Array, " channels"]
    signs: Float[Array, " channels"]
    features: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def random(cls, key: Array, channels: int, features: int) -> "CountSketch":
        """Returns a sketch of independent, uniform indices and signs."""
        of_indices, of_signs = jax.random.split(key)
        return cls(
            jax.random.randint(of_indices, (channels,), 0, features),
            jax.random.rademacher(of_signs, (channels,), jnp.float32),
            features,
        )

    def __call__(
        self, x: Float[Array, "*batch channels"]
    ) -> Float[Array, "*batch features"]:
        """Returns the sketch of each vector of channels."""
        if x.shape[-1:] != self.indices.shape:
            raise ValueError(
                f"A sketch of {self.indices.shape} channels does not fit {x.shape}."
            )
        signed = jnp.moveaxis(x * self.signs.astype(x.dtype), -1, 0)
        sums = jax.ops.segment_sum(signed, self.indices, self.features)
        return jnp.moveaxis(sums, 0, -1)


def compact_bilinear_pool(
    x: Float[Array, "batch *positions channels"],
    sketches: tuple[CountSketch, CountSketch],
    y: Float[Array, "batch *positions other_channels"] | None = None,
) -> Float[Array, "batch features"]:
    """Returns the mean over positions of the tensor sketch of the outer product.

    The count sketch of an outer product is the circular convolution of the count
    sketches of its factors, here by fast Fourier transforms. In expectation over
    sketches, inner products are those of `bilinear_pool`.

    Args:
      x: features at any number of positions; vectors have none.
      sketches: of x and of y, with as many features; independent, also where y is x.
      y: other features at the same positions; x where None.

    Raises:
      ValueError: where the positions or the sketches' features differ, or a sketch is
        of another number of channels.
    """
    x, y = _at_positions(x, y)
    sizes = [sketch.features for sketch in sketches]
    if sizes[0] != sizes[1]:
        raise ValueError(f"The sketches differ in features: {sizes[0]} and {sizes[1]}.")
    # The transform is of single precision at least.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    spectra = [
        jnp.fft.rfft(sketch(factor).astype(wide))
        for sketch, factor in zip(sketches, (x, y), strict=True)
    ]
    # The inverse is linear too: one of the mean, not one for each position.
    pooled = jnp.fft.irfft((spectra[0] * spectra[1]).mean(1), sizes[0])
    return pooled.astype(x.dtype)


def factorized_bilinear(
    x: Float[Array, "*batch channels"],
    factors: tuple[
        Float[Array, "channels features rank"],
        Float[Array, "other_channels features rank"],
    ],
    y: Float[Array, "*batch other_channels"] | None = None,
    *,
    activation: Callable[[Array], Array] = lambda x: x,
    beta: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*batch features"]:
    """Returns low-rank bilinear forms of x and y, or with `beta` their sparse codes.

    Feature k is Σ_r (u_kr · x) (v_kr · y) = ⟨Σ_r u_kr v_krᵀ, x yᵀ⟩: MFB; with rank 1
    and tanh for activation MLB, before its last linear map.

    FBC then shrinks it by beta / 2 towards 0. If the atoms A_k = Σ_r u_kr v_krᵀ are
    orthonormal, this is the sparse code c that minimises ‖x yᵀ - Σ_k c_k A_k‖² +
    beta ‖c‖₁; if not, one proximal gradient step of 1/2 from c = 0. FBC's pooling, in
    its authors' code, is the `power_normalize` of the codes' mean over positions.

    Args:
      x: features at any number of positions.
      factors: u and v, learnt.
      y: other features at the same positions; x where None.
      activation: applied to u · x and to v · y.
      beta: the price of a code's absolute value, at least 0.

    Raises:
      ValueError: where positions differ, or factors do not fit the channels.
    """
    y = x if y is None else y
    u, v = factors
    fits = x.shape[-1:] == u.shape[:1] and y.shape[-1:] == v.shape[:1]
    if x.shape[:-1] != y.shape[:-1] or u.shape[1:] != v.shape[1:] or not fits:
        raise ValueError(
            f"Factors {u.shape} and {v.shape} do not fit {x.shape} and {y.shape}."
        )
    left = activation(jnp.einsum("...i,ikr->...kr", x, u))
    right = activation(jnp.einsum("...i,ikr->...kr", y, v))
    return soft_threshold((left * right).sum(-1), beta / 2)


def soft_threshold(
    x: Float[Array, "*shape"], threshold: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """Returns x moved towards 0 by the threshold, and 0 where that would pass it."""
    return jax.nn.relu(x - threshold) - jax.nn.relu(-x - threshold)


def _at_positions(x, y):
    """Returns x and y, or x twice, with their positions as one axis."""
    y = x if y is None else y
    if x.shape[:-1] != y.shape[:-1]:
        raise ValueError(f"x and y differ in positions: {x.shape} and {y.shape}.")
    positions = math.prod(x.shape[1:-1])
    return tuple(z.reshape(len(x), positions, z.shape[-1]) for z in (x, y))
