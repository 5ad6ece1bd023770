"""OverFeat's network: a classifier of a window, slid over images of any size.

Sermanet et al., "OverFeat: integrated recognition, localization and detection using
convolutional networks", ICLR 2014, sections 3.3 and 3.5. Every convolution and pooling
is unpadded, and the fully connected layers are convolutions over the whole of what they
see of a window. So on a larger image the network gives a map, each place of which is
exactly what it says of the window there, and windows share what they have in common.

The strides of all layers multiply to 12 pixels, those without the last pooling to 4.
For a window at every 4 pixels the last pooling, 3×3, is done at each of its nine
offsets, the rest of the network on each of the nine pooled maps, and the nine results
are interleaved:

    features = network.apply(variables, images, method="features")
    logits = slide(lambda pooled: network.apply(variables, pooled, method="classify"),
                   features, fine=True)
    logits[:, i, j]  # of the window whose upper left pixel is (4 i, 4 j)

A head for boxes is slid over the same features.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.config import config, static
from dl_core.nn.conv import Conv
from dl_core.ops.boxes import iou
from dl_core.ops.pooling import max_pool

POOL = 3
"""Side, stride and number of offsets of the last pooling."""
FINE = 4
"""Pixels from window to window where the last pooling has all its offsets."""
COARSE = FINE * POOL
"""Pixels from window to window where it has one."""
_BEYOND = 16
"""Pixels that a window is larger than its pooled map: the convolutions' edges."""

_he = nn.initializers.he_normal()


@config
class WindowNetwork:
    """The size of the network."""

    width: int = static(16, "Channels of the first of three layers.", at_least=1)
    hidden: int = static(128, "Units of a head's hidden layer.", at_least=1)
    places: int = static(
        2, "Side of the last pooled map of a window, which a head sees.", at_least=1
    )

    @property
    def window(self) -> int:
        """Returns the side of a window, in pixels."""
        return COARSE * self.places + _BEYOND


@config
class Scales:
    """The scales of an image."""

    counts: tuple[int, ...] = static(
        (1, 2, 3, 6), "Numbers of scales that are tried.", at_least=1
    )
    smallest: float = static(0.8, "Where their range begins.", above=0)
    largest: float = static(1.6, "Where it ends.", above=0)

    def factors(self, count: int) -> tuple[float, ...]:
        """Returns so many scales: the middles of equal parts of the range's octaves."""
        octaves = math.log2(self.largest / self.smallest)
        parts = [(number + 0.5) / count for number in range(count)]
        return tuple(self.smallest * 2 ** (octaves * part) for part in parts)


class Head(nn.Module):
    """Two fully connected layers, as convolutions."""

    model: WindowNetwork
    outputs: int
    last_init: nn.initializers.Initializer = nn.linear.default_kernel_init

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns outputs"]:
        """Returns the outputs for each window of `places` by `places`."""
        side = self.model.places
        x = Conv(self.model.hidden, side, padding="valid", kernel_init=_he)(pooled)
        return Conv(self.outputs, 1, kernel_init=self.last_init)(nn.relu(x))


class WindowClassifier(nn.Module):
    """Three convolution layers, the last pooling, and a head for the classes."""

    model: WindowNetwork
    classes: int

    def setup(self):
        """Names the layers."""
        self.layers = [
            Conv(self.model.width * factor, size, padding="valid", kernel_init=_he)
            for size, factor in ((5, 1), (3, 2), (3, 4))
        ]
        self.head = Head(self.model, self.classes)

    def features(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        """Returns what the last pooling sees: a place every 4 pixels, none negative."""
        first, second, third = self.layers
        x = max_pool(nn.relu(first(images)), 2)
        x = max_pool(nn.relu(second(x)), 2)
        return nn.relu(third(x))

    def classify(
        self, pooled: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch rows columns classes"]:
        """Returns the logits of each window, from the pooled features."""
        return self.head(pooled)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns classes"]:
        """Returns the logits of a window every 12 pixels: 1×1 for a window alone."""
        return self.classify(max_pool(self.features(images), POOL))


def slide(
    head: Callable[[Array], Array],
    features: Float[Array, "batch height width channels"],
    *,
    fine: bool,
) -> Float[Array, "batch rows columns outputs"]:
    """Returns what a head says of the windows of images.

    Args:
      head: of pooled maps (n, h, w, channels), traced; returns (n, rows, columns,
        outputs), a place for each of its windows on them.
      features: as the last pooling sees them.
      fine: whether that is done at all nine offsets.
    """
    if not fine:
        return head(max_pool(features, POOL))
    # As many pooled windows at each offset; those that see the padding are cut off.
    height, width = (-(size - POOL + 1) % POOL for size in features.shape[1:3])
    padded = jnp.pad(features, ((0, 0), (0, height), (0, width), (0, 0)))
    maps = _interleave(head(_separate(max_pool(padded, POOL, stride=1))))
    return maps[:, : maps.shape[1] - height, : maps.shape[2] - width]


def _separate(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "nine_batches rows columns channels"]:
    """Returns every third place, from each of the nine first ones."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // POOL, POOL, width // POOL, POOL, channels)
    x = x.transpose(2, 4, 0, 1, 3, 5)
    return x.reshape(-1, height // POOL, width // POOL, channels)


def _interleave(
    x: Float[Array, "nine_batches rows columns channels"],
) -> Float[Array, "batch height width channels"]:
    """Returns the places in order: the other way round from `_separate`."""
    _, rows, columns, channels = x.shape
    x = x.reshape(POOL, POOL, -1, rows, columns, channels)
    x = x.transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(-1, rows * POOL, columns * POOL, channels)


class Places(NamedTuple):
    """What is said of the windows of images at one scale."""

    probabilities: Float[Array, "batch rows columns classes"]
    boxes: Float[Array, "batch rows columns 4"]
    windows: Float[Array, "rows columns 4"]
    """As the boxes (xyxy) in pixels of the images before they were resized."""

    def thinned(self) -> "Places":
        """Returns the places of a coarse map, which are among those of a fine one."""
        probabilities, boxes = (x[:, ::POOL, ::POOL] for x in self[:2])
        return Places(probabilities, boxes, self.windows[::POOL, ::POOL])


def survey(
    say: Callable[[Array], tuple[Array, Array]],
    images: Float[Array, "batch height width channels"],
    side: int,
    scale: float,
) -> Places:
    """Returns what is said of each window of images at a scale, at the fine stride.

    The images are surrounded by black, as far as coarse windows are apart, so that no
    object at their edges is beyond the last window.

    Args:
      say: of larger images, traced; returns the logits of each window's class, the last
        of which is the background, and its box in sides of the window.
      images: as they are; they are resized to whole pixels.
      side: of a window.
      scale: what images are enlarged by.
    """
    batch, height, width, channels = images.shape
    size = round(scale * height), round(scale * width)
    x = jax.image.resize(images, (batch, *size, channels), "linear")
    border = [(COARSE, max(COARSE, side - length - COARSE)) for length in size]
    logits, boxes = say(jnp.pad(x, ((0, 0), *border, (0, 0))))
    rows, columns = logits.shape[1:3]
    low = jnp.stack(jnp.meshgrid(jnp.arange(columns), jnp.arange(rows)), axis=-1)
    low = (low * FINE - COARSE).astype(jnp.float32)
    pixel = jnp.array([width / size[1], height / size[0]] * 2, jnp.float32)
    return Places(
        jax.nn.softmax(logits)[..., :-1],
        (jnp.tile(low, 2) + side * boxes) * pixel,
        jnp.concatenate([low, low + side], axis=-1) * pixel,
    )


def decide(
    scales: Sequence[Places], agreeing: float = 0.5
) -> tuple[Int[Array, " batch"], Float[Array, "batch 4"], Float[Array, "batch 4"]]:
    """Returns the one class found in each image, and where.

    A class's score is its highest probability at a scale, averaged over the scales.

    Args:
      scales: what is said of the windows at each.
      agreeing: the least IoU of boxes that are merged with that of the best place.

    Returns:
      The class, the box of the place at which it is the most probable, and the mean of
      all boxes that agree with that one, weighted by the class's probability there.
    """
    best = [each.probabilities.max((1, 2)) for each in scales]
    found = jnp.mean(jnp.stack(best), axis=0).argmax(-1)
    batch, classes = best[0].shape
    boxes = jnp.concatenate([s.boxes.reshape(batch, -1, 4) for s in scales], 1)
    scores = [s.probabilities.reshape(batch, -1, classes) for s in scales]
    scores = jnp.concatenate(scores, axis=1)
    scores = jnp.take_along_axis(scores, found[:, None, None], axis=2)
    first = jnp.take_along_axis(boxes, scores.argmax(1)[..., None], axis=1)
    weights = scores * (iou(first, boxes) >= agreeing)[..., None]
    whole = jnp.maximum(weights.sum(1), jnp.finfo(weights.dtype).tiny)
    return found, first[:, 0], jnp.sum(weights * boxes, axis=1) / whole
