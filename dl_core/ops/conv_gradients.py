"""The backward pass of a convolution by hand, as the textbook formulas have it.

For y(o) = Σ_k x(s·o + d·k − p) w(k) and a loss with the gradient g = ∂L/∂y,

    ∂L/∂x  is the convolution, at stride 1, of g with the kernel turned round in every
           spatial dimension: g is spread out by the stride, s − 1 zeros between its
           entries, and padded with zeros as far as the window reaches;
    ∂L/∂w  is the correlation of x with g: g, spread out by the stride, slides over the
           padded x at steps of the dilation, one step a tap, summed over the batch.

The pooling layers' are in `dl_core.ops.pooling`. Dumoulin & Visin, "A guide to
convolution arithmetic for deep learning", 2016, chapter 4; Goodfellow, Bengio &
Courville, "Deep learning", 2016, section 9.5.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.ops.conv import conv


def conv_input_gradient(
    cotangent: Float[Array, "batch *outputs out"],
    kernel: Float[Array, "*window in out"],
    spatial: Sequence[int],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Float[Array, "batch *spatial in"]:
    """Returns the gradient with respect to the input, by the flipped filter.

    Args:
      cotangent: the gradient with respect to the output.
      kernel: the kernel.
      spatial: the spatial dimensions of the input.
      stride: of the convolution, in every dimension.
      padding: zeros that it adds on every side.
      dilation: of its window.

    Raises:
      ValueError: if the shapes do not belong to one convolution.
    """
    rank = kernel.ndim - 2
    _require_outputs(cotangent, kernel, spatial, stride, padding, dilation)
    spread = insert_zeros(cotangent, stride)
    flipped = jnp.flip(kernel, range(rank)).swapaxes(-1, -2)
    reaches = [dilation * (k - 1) for k in kernel.shape[:-2]]
    # Positions at the end that no window reached, where the stride does not fit.
    rests = [
        n + 2 * padding - reach - size
        for n, reach, size in zip(spatial, reaches, spread.shape[1:-1], strict=True)
    ]
    pads = [(reach, reach + rest) for reach, rest in zip(reaches, rests, strict=True)]
    padded = conv(spread, flipped, padding=pads, dilation=dilation)
    inside = (slice(padding, padding + n) for n in spatial)
    return padded[(slice(None), *inside)]


def conv_kernel_gradient(
    x: Float[Array, "batch *spatial in"],
    cotangent: Float[Array, "batch *outputs out"],
    window: Sequence[int],
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Float[Array, "*window in out"]:
    """Returns the gradient with respect to the kernel, by correlation.

    Args:
      x: the input of the convolution.
      cotangent: the gradient with respect to its output.
      window: taps of the kernel in each dimension.
      stride: of the convolution, in every dimension.
      padding: zeros that it adds on every side.
      dilation: of its window.

    Raises:
      ValueError: if the shapes do not belong to one convolution.
    """
    kernel = jnp.empty((*window, x.shape[-1], cotangent.shape[-1]))
    _require_outputs(cotangent, kernel, x.shape[1:-1], stride, padding, dilation)
    # The channels take the place of the batch, and the batch that of the channels.
    images = x.swapaxes(0, -1)
    slid = jnp.moveaxis(insert_zeros(cotangent, stride), 0, -2)
    steps = conv(images, slid, stride=dilation, padding=padding)
    taps = (slice(k) for k in window)
    return jnp.moveaxis(steps[(slice(None), *taps)], 0, -2)


def insert_zeros(
    x: Float[Array, "batch *spatial channels"], stride: int
) -> Float[Array, "batch *spread channels"]:
    """Returns `x` with `stride - 1` zeros between neighbours in every dimension."""
    sizes = [(n - 1) * stride + 1 for n in x.shape[1:-1]]
    places = (slice(None), *(slice(None, None, stride) for _ in sizes))
    return jnp.zeros((len(x), *sizes, x.shape[-1]), x.dtype).at[places].set(x)


def _require_outputs(
    cotangent: Array,
    kernel: Array,
    spatial: Sequence[int],
    stride: int,
    padding: int,
    dilation: int,
) -> None:
    outputs = tuple(
        (n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for n, k in zip(spatial, kernel.shape[:-2], strict=True)
    )
    if cotangent.shape[1:] != (*outputs, kernel.shape[-1]):
        raise ValueError(
            f"the input of size {tuple(spatial)} and the kernel {kernel.shape}, stride "
            f"{stride}, padding {padding}, dilation {dilation}, give outputs of shape "
            f"(batch, {', '.join(map(str, outputs))}, {kernel.shape[-1]}), the "
            f"gradient has {cotangent.shape}"
        )
