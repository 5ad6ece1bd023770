"""Convolution over the groups p4 and p4m: quarter turns, and reflections with them.

Cohen & Welling, "Group equivariant convolutional networks", ICML 2016. A feature map
has an axis with one entry for each element of the group beside translations, and each
layer correlates it with transformed copies of its filters: to turn the input is to turn
the output and to permute its group axis.

Elements are numbered 4·m + r: reflect left to right if m is 1, then turn by r quarters
counter-clockwise. p4 has the elements 0 to 3, p4m all eight. Everything becomes one
ordinary convolution with the expanded kernel (`dl_core.ops.conv.conv`).

Equivariance is exact if the windows lie symmetrically on the input: with n positions in
each dimension, kernel k, dilation d, stride s and p added at each end, if s divides
n + 2p − d·(k − 1) − 1. Stride 1 always does; padding "same" with a stride does if s
divides n − 1 (29 positions and stride 2, not 28).
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dl_core.ops.conv import conv
from dl_core.ops.conv_lowerings import Lowering

Group = Literal["p4", "p4m"]
Padding = Literal["valid", "same", "circular"] | int

ORDER = {"p4": 4, "p4m": 8}
"""The number of elements of each group, translations left out."""


def _products() -> np.ndarray:
    """Returns the number of the product g·h at [g, h]."""
    m, r = np.divmod(np.arange(8), 4)
    # A reflection after a turn is the opposite turn after the reflection.
    turns = r[:, None] + np.where(m[:, None] == 1, -r, r)
    return 4 * (m[:, None] ^ m) + turns % 4


PRODUCT = _products()
"""The table of the group p4m, whose first four rows and columns are those of p4."""
INVERSE = np.argmin(PRODUCT, axis=1)
"""The number of the inverse of each element: with it the product is 0, the identity."""


def transform(
    x: Float[Array, "batch height width *group features"], element: int
) -> Float[Array, "batch rows columns *group features"]:
    """Applies an element of the group: L_g f(x, h) = f(g⁻¹x, g⁻¹h), section 4.4.

    Args:
      x: images, or feature maps with a group axis of 4 or 8 before the features.
      element: the number of the element.

    Returns:
      The transformed images or feature maps; height and width change places where the
      turn is by one or three quarters.

    Raises:
      ValueError: if the group axis is not one, or the group has no such element.
    """
    if x.ndim not in (4, 5):
        raise ValueError(
            "transform: expected images (batch, height, width, channels) or feature "
            f"maps (batch, height, width, group, features), got {x.shape}"
        )
    order = 8 if x.ndim == 4 else _order("transform", x, x.shape[3])
    if not 0 <= element < order:
        raise ValueError(
            f"transform: there is no element {element} among the {order} that can be "
            f"applied to {x.shape}"
        )
    if x.ndim == 5:
        x = x[:, :, :, PRODUCT[INVERSE[element], :order]]
    return _turn(x, element, axes=(1, 2))


def lift_kernel(
    kernel: Float[Array, "*window in out"], group: Group
) -> Float[Array, "*window in group out"]:
    """Returns a copy of the kernel transformed by each element: ψ(g⁻¹y), equation 10.

    Raises:
      ValueError: if the kernel is not square.
    """
    _check_square("lift_kernel", kernel, 4)
    return jnp.stack([_turn(kernel, g) for g in range(ORDER[group])], axis=-2)


def group_kernel(
    kernel: Float[Array, "*window group_in in out"],
) -> Float[Array, "*window group_in in group out"]:
    """Returns a copy transformed by each element: ψ(g⁻¹h), equation 11.

    Raises:
      ValueError: if the kernel is not square, or its third axis not 4 or 8.
    """
    _check_square("group_kernel", kernel, 5)
    order = _order("group_kernel", kernel, kernel.shape[2])
    copies = [_turn(kernel, g)[:, :, PRODUCT[INVERSE[g], :order]] for g in range(order)]
    return jnp.stack(copies, axis=-2)


def lifting_conv(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "*window in out"],
    group: Group,
    *,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
    lowering: Lowering = "auto",
) -> Float[Array, "batch rows columns group out"]:
    """Correlates an image with every transformed copy of the kernel (equation 10).

    Args:
      x: the image.
      kernel: square windows; with padding "same" or "circular" of odd size.
      group: "p4" or "p4m".
      stride: as for `conv`; see above which strides keep the equivariance.
      padding: as for `conv`.
      dilation: as for `conv`.
      lowering: as for `conv`.

    Returns:
      A feature map on the group.

    Raises:
      ValueError: if the shapes do not fit each other, or the kernel is not square.
    """
    _check_centred("lifting_conv", kernel, padding)
    bank = lift_kernel(kernel, group)
    y = conv(
        x,
        bank.reshape(*bank.shape[:3], -1),
        stride=stride,
        padding=padding,
        dilation=dilation,
        lowering=lowering,
    )
    return y.reshape(*y.shape[:3], *bank.shape[3:])


def group_conv(
    x: Float[Array, "batch height width group in"],
    kernel: Float[Array, "*window group in out"],
    *,
    stride: int = 1,
    padding: Padding = "valid",
    dilation: int = 1,
    lowering: Lowering = "auto",
) -> Float[Array, "batch rows columns group out"]:
    """Correlates a feature map on the group with a kernel on it (equation 11).

    Args:
      x: the feature map; the size of its group axis says which group it is.
      kernel: square windows for each element; with padding "same" or "circular" of odd
        size.
      stride: as for `conv`; see above which strides keep the equivariance.
      padding: as for `conv`.
      dilation: as for `conv`.
      lowering: as for `conv`.

    Returns:
      A feature map on the same group.

    Raises:
      ValueError: if the shapes do not fit each other, or the kernel is not square.
    """
    _check_centred("group_conv", kernel, padding)
    bank = group_kernel(kernel)
    if x.ndim != 5 or x.shape[3:] != kernel.shape[2:4]:
        raise ValueError(
            f"group_conv: the kernel {kernel.shape} takes feature maps (batch, height, "
            f"width, {kernel.shape[2]}, {kernel.shape[3]}), got {x.shape}"
        )
    size, order, features = kernel.shape[0], *bank.shape[-2:]
    y = conv(
        x.reshape(*x.shape[:3], -1),
        bank.reshape(size, size, -1, order * features),
        stride=stride,
        padding=padding,
        dilation=dilation,
        lowering=lowering,
    )
    return y.reshape(*y.shape[:3], order, features)


def group_pool(
    x: Float[Array, "batch height width group features"],
    *,
    reduce: Literal["max", "mean"] = "max",
) -> Float[Array, "batch height width features"]:
    """Pools over the group: an image that turns with the input (section 6.3).

    Raises:
      ValueError: if there is no group axis of 4 or 8 before the features.
    """
    _check_feature_map("group_pool", x)
    return x.max(axis=3) if reduce == "max" else x.mean(axis=3)


def mirror_pool(
    x: Float[Array, "batch height width 8 features"],
    *,
    reduce: Literal["max", "mean"] = "max",
) -> Float[Array, "batch height width 4 features"]:
    """Pools over each turn and its reflection: from p4m to a feature map on p4.

    This is pooling over the cosets g·{1, reflection} (section 6.3). What it returns
    turns as any feature map on p4; to reflect the input reflects it and takes the turn
    r to −r.

    Raises:
      ValueError: if there is no group axis of 8 before the features.
    """
    _check_feature_map("mirror_pool", x)
    if x.shape[3] != 8:
        raise ValueError(f"mirror_pool: expected a group axis of 8, got {x.shape}")
    pairs = x.reshape(*x.shape[:3], 2, 4, x.shape[4])
    return pairs.max(axis=3) if reduce == "max" else pairs.mean(axis=3)


def _turn(x: Array, element: int, axes: tuple[int, int] = (0, 1)) -> Array:
    reflected, quarters = divmod(element, 4)
    if reflected:
        x = jnp.flip(x, axes[1])
    return jnp.rot90(x, quarters, axes)


def _order(name: str, x: Array, size: int) -> int:
    if size not in (4, 8):
        raise ValueError(
            f"{name}: expected a group axis of 4 (p4) or 8 (p4m), got {size} in "
            f"{x.shape}"
        )
    return size


def _check_feature_map(name: str, x: Array) -> None:
    if x.ndim != 5:
        raise ValueError(
            f"{name}: expected feature maps (batch, height, width, group, features), "
            f"got {x.shape}"
        )
    _order(name, x, x.shape[3])


def _check_square(name: str, kernel: Array, rank: int) -> None:
    if kernel.ndim != rank or kernel.shape[0] != kernel.shape[1]:
        axes = "(size, size, in, out)" if rank == 4 else "(size, size, group, in, out)"
        raise ValueError(f"{name}: expected a kernel {axes}, got {kernel.shape}")


def _check_centred(name: str, kernel: Array, padding: Padding) -> None:
    if padding in ("same", "circular") and kernel.shape[0] % 2 == 0:
        raise ValueError(
            f"{name}: padding {padding!r} is equivariant only if the kernel is odd, "
            f"got {kernel.shape}"
        )
