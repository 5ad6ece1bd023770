"""Normalisation layers, with their conventions written down.

    BatchNorm      Ioffe & Szegedy, 2015; running statistics as Flax's or as torch's
    SpectralNorm   Miyato et al., 2018, around any layer, as torch's; or by the norm of
                   a convolution as a linear operator on its images

Weight normalisation (Salimans & Kingma, 2016) is `flax.linen.WeightNorm`: equal to
torch's, but for its scale, which begins at 1 where torch's begins at the norm of the
initial kernel. Local response normalisation has no parameters and is a function in
`dl_core.ops.normalization`.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.nn.conv import ConvLayer
from dl_core.ops.normalization import operator_norm, unit

Initializer = nn.initializers.Initializer


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    In training the batch is normalised by its own mean and biased variance, and the
    running statistics move towards those of the batch. In evaluation they are used.
    Parameters and statistics are named and shaped as those of `flax.linen.BatchNorm`,
    which has no unbiased running variance, and by default takes the variance as
    E[x²] − E[x]², wrong where the mean is much larger than the deviation.
    """

    momentum: float = 0.9
    """What is kept of a running statistic in each step: 1 − torch's momentum."""
    epsilon: float = 1e-5
    """Added to the variance."""
    unbiased: bool = False
    """Whether the running variance is of n/(n−1) times the batch's, as in torch."""
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Initializer = nn.initializers.ones_init()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch features"], *, train: bool
    ) -> Float[Array, "*batch features"]:
        """Returns the normalised `x`.

        Args:
          x: at least one axis before the features.
          train: whether to use the statistics of `x` and to update the running ones
            (the collection `batch_stats`, which must then be mutable).

        Raises:
          ValueError: if a feature has but one value, in training.
        """
        features = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        variance = self.variable("batch_stats", "var", jnp.ones, features)
        center, spread = mean.value, variance.value
        if train:
            count = x.size // x.shape[-1]
            if count < 2 and not self.is_initializing():
                raise ValueError(
                    "BatchNorm: expected more than one value of each feature in "
                    f"training, got {x.shape}"
                )
            axes = tuple(range(x.ndim - 1))
            center, spread = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                kept, new = self.momentum, 1 - self.momentum
                correction = count / (count - 1) if self.unbiased else 1
                mean.value = kept * mean.value + new * center
                variance.value = kept * variance.value + new * correction * spread
        factor = jax.lax.rsqrt(spread + self.epsilon)
        if self.use_scale:
            factor *= self.param("scale", self.scale_init, features)
        y = (x - center) * factor
        return y + self.param("bias", self.bias_init, features) if self.use_bias else y


class SpectralNorm(nn.Module):
    """A layer whose kernels are divided by estimates of their largest singular values.

    A kernel is a matrix of its last axis by all others, whatever the layer: dense,
    convolution, grouped or transposed convolution, embedding. Parameters of one axis
    are left alone. The singular vectors `u` and `v` are in the collection
    `batch_stats`: in training they are improved by `steps` of power iteration from
    where they were, in evaluation used as they are, and the gradient takes them for
    constants. All this is as torch's `parametrizations.spectral_norm`.

    That bounds what a dense layer does, but not a convolution, whose windows overlap:
    on images its norm is up to √n times its kernel's, where n windows hold a pixel (3
    times for 3×3 windows of stride 1). With `norm="operator"` it is that of the layer
    as a linear map on images of the size that it is given, with its stride and padding,
    which is then at most 1 (as estimated). The state is the right singular vector, an
    image. The two kernels of a `SeparableConv` are each divided by the norm's root.

    `flax.linen.SpectralNorm` begins with a random vector: before training and in its
    first steps it divides by too little (0.7 to 0.9 of the singular value, for random
    kernels of the usual sizes), so that a network breaks the bound it was made for. It
    also iterates in evaluation, and stores the initial kernels already divided. Here
    `initial_steps` go before, and the kernels are stored as they were drawn.
    """

    layer: nn.Module
    """The layer whose kernels are divided; with the norm "operator" a `Dense` or one of
    `dl_core.nn.conv`."""
    steps: int = 1
    """Power iterations in each training step."""
    initial_steps: int = 15
    """Power iterations when the parameters are made."""
    epsilon: float = 1e-12
    """The least norm by which a vector is divided."""
    norm: Literal["kernel", "operator"] = "kernel"
    """Of the kernel as a matrix, or of the layer as an operator on its images."""

    @nn.compact
    def __call__(self, *args: Any, train: bool, **kwargs: Any) -> Any:
        """Returns what the layer with divided kernels makes of the other arguments.

        Args:
          *args: for the layer.
          train: whether to update the vectors (`batch_stats` must then be mutable);
            not passed on.
          **kwargs: for the layer.

        Raises:
          ValueError: with the norm "operator", if the layer is no linear one on a
            batch, or was made for images of another shape.
        """

        def divide(tree):
            if self.norm == "operator":
                kernels = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(tree))
                root = self._operator_norm(tree, *args, train=train) ** (1 / kernels)

            def divided(path, kernel):
                if kernel.ndim < 2:
                    return kernel
                if self.norm == "operator":
                    return kernel / root
                name = "/".join(key.key for key in path[1:])
                matrix = kernel.reshape(-1, kernel.shape[-1])
                return kernel / self._kernel_norm(name, matrix, train)

            return jax.tree_util.tree_map_with_path(divided, tree)

        if self.is_initializing():
            self.layer(*args, **kwargs)  # Made here, they are stored undivided.
        return nn.map_variables(
            lambda layer: layer(*args, **kwargs), trans_in_fn=divide
        )(self.layer)

    def _kernel_norm(self, name: str, matrix: Array, train: bool) -> Array:
        """Returns uᵀWv, W being the kernel as "outputs inputs", here its transpose."""
        fixed = jax.lax.stop_gradient(matrix)

        def iterate(vectors, steps):
            def step(_, vectors):
                u = unit(vectors["v"] @ fixed, self.epsilon)
                return {"u": u, "v": unit(fixed @ u, self.epsilon)}

            return jax.lax.fori_loop(0, steps, step, vectors)

        def start():
            v = unit(jax.random.normal(self.make_rng("params"), matrix.shape[:1]))
            vectors = {"u": jnp.zeros(matrix.shape[1]), "v": v}
            return iterate(vectors, self.initial_steps)

        vectors = self.variable("batch_stats", name, start)
        if train and not self.is_initializing():
            vectors.value = iterate(vectors.value, self.steps)
        norm = vectors.value["v"] @ matrix @ vectors.value["u"]
        return jnp.where(norm == 0, 1, norm)

    def _operator_norm(self, variables: Any, x: Array, *, train: bool) -> Array:
        """Returns ‖Av‖, A being the layer on one input, its bias left out."""
        if not isinstance(self.layer, ConvLayer | nn.Dense) or x.ndim < 2:
            raise ValueError(
                "SpectralNorm: only a Dense or a layer of dl_core.nn.conv on a batch "
                f"has a norm as an operator, got a {type(self.layer).__name__} on an "
                f"input of shape {x.shape}"
            )
        layer, shape = self.layer.clone(parent=None, use_bias=False), x.shape[1:]
        fixed = jax.lax.stop_gradient(variables)

        def iterate(vector, steps):
            return operator_norm(
                lambda v: layer.apply(fixed, v[None])[0], vector, steps
            )[1]

        def start():
            vector = jax.random.normal(self.make_rng("params"), shape)
            return iterate(vector, self.initial_steps)

        vector = self.variable("batch_stats", "vector", start)
        if vector.value.shape != shape:
            raise ValueError(
                "SpectralNorm: the layer was made for inputs of shape "
                f"{vector.value.shape}, got {x.shape}"
            )
        if train and not self.is_initializing():
            vector.value = iterate(vector.value, self.steps)
        y = layer.apply(variables, vector.value[None])[0]
        norm = jnp.vdot(jax.lax.stop_gradient(unit(y, self.epsilon)), y)
        return jnp.where(norm == 0, 1, norm)
