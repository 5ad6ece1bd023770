"""The network of SSD: maps of several strides, and on each a convolution for all boxes.

Liu et al., "SSD: single shot multibox detector", ECCV 2016, section 2.1: small objects
are found on fine maps, large ones on coarse maps, each by default boxes of its size,
and a 3×3 convolution predicts for each box what is in it and where it really is.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dl_core.config import config, static
from dl_core.models.detection.trunk import Backbone, Trunk, shapes
from dl_core.nn.conv import Conv
from dl_core.ops.anchors import ssd_default_boxes


@config
class Boxes:
    """The default boxes, and the maps that they are on."""

    strides: tuple[int, ...] = static(
        (4, 8, 16), "Pixels of the image per position of each map."
    )
    sizes: tuple[float, ...] = static(
        (10.0, 25.0, 48.0, 64.0), "Pixels; of each map's boxes, and one more."
    )
    ratios: tuple[float, ...] = static((2.0,), "Of sides, beside 1, of boxes.")

    def make(self, size: tuple[int, int]) -> Float[np.ndarray, "boxes 4"]:
        """Returns the default boxes of an image, xyxy.

        Args:
          size: height and width of the image, pixels.
        """
        levels = len(self.strides)
        return ssd_default_boxes(
            shapes(size, self.strides),
            self.strides,
            self.sizes,
            [self.ratios] * levels,
        )


class SSD(nn.Module):
    """Images to the logits and the codes of every default box."""

    trunk: Trunk
    boxes: Boxes
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> tuple[Float[Array, "batch boxes logits"], Float[Array, "batch boxes 4"]]:
        """Returns logits, that of the background first, and codes of positions.

        The boxes are in the order of `Boxes.make`.
        """
        strides, lowering = self.boxes.strides, self.trunk.lowering
        maps = Backbone(self.trunk, coarsest=max(strides))(images, train=train)
        each = self.classes + 1 + 4
        cell = 2 + 2 * len(self.boxes.ratios)
        found = []
        for stride in strides:
            head = Conv(cell * each, 3, lowering=lowering, name=f"head_{stride}")
            found.append(head(maps[stride]).reshape(len(images), -1, each))
        logits, codes = jnp.split(jnp.concatenate(found, 1), [each - 4], axis=-1)
        return logits, codes
