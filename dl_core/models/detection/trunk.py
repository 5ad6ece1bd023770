"""The trunk of all detectors: a residual network, and a feature pyramid upon it.

He et al., "Deep residual learning for image recognition", CVPR 2016: a stem and four
stages of basic blocks, each halving the sides. Lin et al., "Feature pyramid networks
for object detection", CVPR 2017: coarse maps are enlarged and added to finer ones, so
that each has the same channels and all see far.

Batches of a few images are too small for batch normalisation, which detectors therefore
freeze as pretrained; from scratch, group normalisation (Wu & He, ECCV 2018) takes its
place. A map of stride s of an image of height h and width w is of ceil(h/s) by
ceil(w/s) positions.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dl_core.config import config, static
from dl_core.nn.conv import Conv
from dl_core.ops.conv_lowerings import Lowering

STRIDES = (4, 8, 16, 32)
"""Pixels of the image per position of the backbone's maps."""
_GROUP = 8
"""Channels that are normalised together."""

Maps = Mapping[int, Float[Array, "batch _ _ _"]]
"""Maps of features by stride."""


@config
class Trunk:
    """The backbone, and the pyramid where a detector has one."""

    width: int = static(
        16, "Channels after the stem; stages have 2, 4, 8, 8 times as many.", at_least=1
    )
    depth: int = static(1, "Residual blocks in a stage.", at_least=1)
    features: int = static(64, "Channels of each map of the pyramid.", at_least=1)
    lowering: Lowering = static("auto", "How convolutions are computed.")

    def widths(self) -> dict[int, int]:
        """Returns the channels of the backbone's maps by stride."""
        factors = zip(STRIDES, (2, 4, 8, 8), strict=True)
        return {stride: self.width * factor for stride, factor in factors}


class Backbone(nn.Module):
    """Images to maps of features of strides 4, 8, 16 and 32."""

    trunk: Trunk
    activation: Callable[[Array], Array] = nn.relu
    coarsest: int = STRIDES[-1]
    """The stride of the last map."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> dict[int, Float[Array, "batch _ _ _"]]:
        """Returns the maps by stride.

        Args:
          images: normalised.
          train: has no effect on this network; detectors pass it to whatever trunk.
        """
        del train
        more = {"lowering": self.trunk.lowering}
        x = self.activation(ConvNorm(self.trunk.width, stride=2, **more)(images))
        maps = {}
        for stride, width in self.trunk.widths().items():
            if stride > self.coarsest:
                break
            for block in range(self.trunk.depth):
                step = 2 if block == 0 else 1
                x = Residual(width, step, self.activation, **more)(x)
            maps[stride] = x
        return maps


class ConvNorm(nn.Module):
    """A convolution without a bias, normalised in groups of channels."""

    features: int
    size: int = 3
    stride: int = 1
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch h2 w2 features"]:
        """Returns the normalised features; no rectifier."""
        x = Conv(
            self.features,
            self.size,
            stride=self.stride,
            # Torch's padding: at stride 2 "same" depends on the side being even.
            padding=self.size // 2,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            lowering=self.lowering,
        )(x)
        groups = math.gcd(self.features, max(self.features // _GROUP, 1))
        return nn.GroupNorm(groups, epsilon=1e-5)(x)


class Residual(nn.Module):
    """The basic block: two 3×3 convolutions beside a way past them."""

    features: int
    stride: int = 1
    activation: Callable[[Array], Array] = nn.relu
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch h2 w2 features"]:
        """Returns the features after the activation."""
        more = {"lowering": self.lowering}
        y = self.activation(ConvNorm(self.features, stride=self.stride, **more)(x))
        y = ConvNorm(self.features, **more)(y)
        if y.shape != x.shape:
            x = ConvNorm(self.features, 1, self.stride, **more)(x)
        return self.activation(x + y)


class Pyramid(nn.Module):
    """Maps of a backbone to maps of equal channels, each with the coarser ones in it.

    Strides beyond the backbone's coarsest are made from it by 3×3 convolutions of
    stride 2 (Lin et al., "Focal loss for dense object detection", ICCV 2017).
    """

    features: int
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, maps: Maps, strides: Sequence[int]
    ) -> dict[int, Float[Array, "batch _ _ features"]]:
        """Returns maps of the given strides.

        Args:
          maps: the backbone's, by stride; each stride is twice the one before.
          strides: those wanted, from fine to coarse.

        Raises:
          ValueError: if a stride is finer than all of the backbone's, or not among
            them nor a double of the one before it.
        """
        coarsest = max(maps)
        for before, stride in itertools.pairwise((None, *strides)):
            if stride not in maps and (stride < coarsest or stride != 2 * before):
                raise ValueError(f"Pyramid: no stride {stride} from {sorted(maps)}")

        def conv(size, **more):
            return Conv(self.features, size, lowering=self.lowering, **more)

        pyramid, above = {}, None
        for stride in sorted((s for s in maps if s >= strides[0]), reverse=True):
            x = conv(1, name=f"lateral_{stride}")(maps[stride])
            above = x if above is None else x + doubled(above, x.shape[1:3])
            if stride in strides:
                pyramid[stride] = conv(3, name=f"smooth_{stride}")(above)
        for before, stride in itertools.pairwise(strides):
            if stride not in maps:
                x = nn.relu(pyramid[before]) if before not in maps else pyramid[before]
                extra = conv(3, stride=2, padding=1, name=f"extra_{stride}")
                pyramid[stride] = extra(x)
        return {stride: pyramid[stride] for stride in strides}


def doubled(
    x: Float[Array, "batch h w c"], shape: tuple[int, int]
) -> Float[Array, "batch h2 w2 c"]:
    """Returns a map with every position twice in each direction, cut to a shape."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : shape[0], : shape[1]]


def prior_bias(probability: ArrayLike) -> nn.initializers.Initializer:
    """Returns the bias under which a sigmoid begins by giving that probability.

    From Lin et al., ICCV 2017, section 4.1: without it the many background boxes
    dominate, and upset, the first steps.
    """
    return nn.initializers.constant(-jnp.log((1 - probability) / probability))


def shapes(size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the (height, width) of the maps of an image, by stride.

    Args:
      size: height and width of the image, pixels.
      strides: of the maps.
    """
    return [tuple(-(-side // stride) for side in size) for stride in strides]
