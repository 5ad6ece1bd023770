"""Augmentation of images with boxes, as the papers of SSD and YOLO have it.

Geometry is one affine matrix an image, for `stretch` and for `move_objects`; colours
are changed apart. Everything is for one image: vmap it for a batch.

Liu et al., "SSD: single shot multibox detector", ECCV 2016, sections 2.2 and 3.6:
patches by overlap, zooming out, colours. Redmon et al., "You only look once: unified,
real-time object detection", CVPR 2016, section 2.2: scaling, translation, exposure and
saturation.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from dl_core.ops.augment import affine
from dl_core.ops.augment.affine import Matrix, Size
from dl_core.ops.augment.annotations import move_boxes, move_points
from dl_core.ops.augment.color import adjust_brightness, adjust_contrast
from dl_core.ops.boxes import pairwise_iou

OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Least IoU with some object, one of which a patch may be asked to have."""
_PATCHES = 50
"""How many are drawn to find one that has it, as in the authors' code."""

Rows = Mapping[str, Array]


def random_patch(
    key: Key[Array, ""],
    boxes: Float[Array, "boxes 4"],
    valid: Bool[Array, " boxes"],
    size: Size,
    *,
    area: tuple[ArrayLike, ArrayLike] = (0.1, 1.0),
    ratio: tuple[ArrayLike, ArrayLike] = (0.5, 2.0),
) -> tuple[Float[Array, " 4"], Float[Array, ""]]:
    """Returns a part of an image to train on.

    With equal probability it is the whole image, a patch that any object may overlap as
    it likes, or one whose IoU with some object is at least one of `OVERLAPS`. A patch
    holds the centre of an object. Where none of those drawn is such a patch, which is
    so without objects, it is the whole image.

    Args:
      key: the randomness.
      boxes: xyxy in pixels.
      valid: which of them are objects.
      size: height and width of the image.
      area: range of the patch's share of the image's area, uniform.
      ratio: range of its width over its height, in units of the image's own, uniform
        in the logarithm.

    Returns:
      The patch, xyxy in pixels, and the IoU asked for: 0 for any, 1 for the whole.
    """
    to_choice, to_area, to_ratio, to_place = jax.random.split(key, 4)
    limits = jnp.array([size[1], size[0]], jnp.float32)
    choices = jnp.array((0.0, *OVERLAPS, 1.0))
    asked = choices[jax.random.randint(to_choice, (), 0, len(choices))]
    areas = jax.random.uniform(to_area, (_PATCHES,))
    areas = area[0] + (area[1] - area[0]) * areas
    ratios = jax.random.uniform(to_ratio, (_PATCHES,))
    # No wider nor higher than the image, whatever the area.
    low = jnp.maximum(jnp.log(ratio[0]), jnp.log(areas))
    high = jnp.minimum(jnp.log(ratio[1]), -jnp.log(areas))
    ratios = jnp.exp(low + (high - low) * ratios)
    sides = jnp.stack([jnp.sqrt(areas * ratios), jnp.sqrt(areas / ratios)], 1)
    sides = jnp.minimum(sides, 1) * limits
    places = jax.random.uniform(to_place, (_PATCHES, 2)) * (limits - sides)
    patches = jnp.concatenate([places, places + sides], 1)
    overlaps = ((pairwise_iou(patches, boxes) >= asked) & valid).any(1)
    fits = overlaps & (_holds(patches, boxes) & valid).any(1)
    whole = jnp.concatenate([jnp.zeros(2), limits])
    some = (asked < 1) & fits.any()
    return jnp.where(some, patches[jnp.argmax(fits)], whole), asked


def zoom_out(
    key: Key[Array, ""],
    size: Size,
    *,
    probability: ArrayLike = 0.5,
    largest: ArrayLike = 4.0,
) -> Matrix:
    """Returns the map that puts an image at a random place of a larger canvas.

    The canvas is then shown at the image's size, so objects become smaller.

    Args:
      key: the randomness.
      size: height and width of the image.
      probability: of doing so at all.
      largest: side of the canvas, in sides of the image: uniform from 1 to this.
    """
    to_whether, to_side, to_place = jax.random.split(key, 3)
    side = 1 + (largest - 1) * jax.random.uniform(to_side)
    side = jnp.where(jax.random.uniform(to_whether) < probability, side, 1.0)
    x, y = jax.random.uniform(to_place, (2,), minval=-0.5, maxval=0.5) * (1 - 1 / side)
    return affine.compose(
        affine.scaling(1 / side, 1 / side, size),
        affine.translation(x * size[1], y * size[0]),
    )


def move_objects(
    example: Rows, matrix: Matrix, size: Size, *, min_size: ArrayLike = 1.0
) -> dict[str, Array]:
    """Returns an example's rows of boxes moved, clipped, and padded anew.

    An object counts as long as its centre is in the image; the rows of those that do
    not are padding, at the end.

    Args:
      example: `boxes` (boxes, 4), `labels` (-1 is padding) and `difficult` (boxes,);
        perhaps `proposals` (proposals, 4) and `proposal_mask`, which stay in place and
        count as long as they are in the image at all. Other fields stay as they are.
      matrix: from the input's points to the output's.
      size: height and width of the output, in pixels.
      min_size: pixels that both sides of what is left of an object must have.
    """
    boxes, labels = example["boxes"], example["labels"]
    moved, counts = move_boxes(boxes, matrix, size, min_size=min_size)
    centers = move_points((boxes[:, :2] + boxes[:, 2:]) / 2, matrix)
    counts &= (labels >= 0) & ((centers >= 0) & (centers < jnp.array(size[::-1]))).all(
        1
    )
    first = jnp.argsort(~counts, stable=True)
    found = {
        "boxes": jnp.where(counts[:, None], moved, 0)[first],
        "labels": jnp.where(counts, labels, -1)[first],
        "difficult": (counts & example["difficult"])[first],
    }
    if "proposals" in example:
        moved, counts = move_boxes(
            example["proposals"], matrix, size, min_size=min_size
        )
        counts &= example["proposal_mask"]
        found["proposals"] = jnp.where(counts[:, None], moved, 0)
        found["proposal_mask"] = counts
    return {**example, **found}


def stretch(
    image: Float[Array, "height width channels"],
    matrix: Matrix,
    *,
    fill: ArrayLike = 0.0,
) -> Float[Array, "height width channels"]:
    """Returns an image moved by an affine map that neither turns nor shears.

    It is `warp` with a constant border, as two products with matrices of weights: what
    comes before or after is not computed again for every pixel that a gather reads,
    which it is where XLA fuses them.

    Args:
      image: with any number of channels.
      matrix: from the input's points to the output's. What it turns is ignored.
      fill: what lies outside: one number, or one for each channel.
    """
    planes = jnp.moveaxis(image - fill, -1, 0)
    height, width = image.shape[:2]
    down = linear_weights(matrix[1, 1], matrix[1, 2], height, height)
    across = linear_weights(matrix[0, 0], matrix[0, 2], width, width)
    # Else accelerators multiply with few digits.
    moved = jnp.matmul(down, planes, precision="highest")
    moved = jnp.matmul(moved, across.T, precision="highest")
    return jnp.moveaxis(moved, 0, -1) + fill


def linear_weights(
    factor: ArrayLike, shift: ArrayLike, old: int, new: int
) -> Float[Array, "new old"]:
    """Returns how much of each pixel of a row is in each of the row scaled and moved.

    Args:
      factor: by which the row is scaled; below 0 it is mirrored.
      shift: where its beginning comes to lie, in pixels.
      old: pixels of the row.
      new: pixels of the result. Nothing is beyond the row's ends.
    """
    source = (jnp.arange(new) + 0.5 - shift) / factor - 0.5
    return jnp.maximum(1 - jnp.abs(source[:, None] - jnp.arange(old)), 0)


def adjust_hsv(
    image: Float[Array, "height width 3"],
    *,
    hue: ArrayLike = 0.0,
    saturation: ArrayLike = 1.0,
    value: ArrayLike = 1.0,
) -> Float[Array, "height width 3"]:
    """Returns an image with its colours changed in HSV.

    Args:
      image: red, green and blue, from 0 to 1.
      hue: turns that are added.
      saturation: its factor; the result is at most 1.
      value: its factor; likewise.
    """
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    most = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = most - jnp.minimum(jnp.minimum(red, green), blue)
    some = jnp.where(chroma > 0, chroma, 1)  # Grey has no hue: any will do.
    sixths = jnp.where(
        red == most,
        (green - blue) / some,
        jnp.where(green == most, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    # A channel falls by the chroma and comes back, a third of a turn after the last.
    phase = (sixths + 6 * hue)[..., None] + jnp.array([5.0, 3.0, 1.0])
    phase -= 6 * jnp.floor(phase / 6)
    share = jnp.clip(jnp.minimum(phase, 4 - phase), 0, 1)
    chroma = jnp.minimum(chroma * saturation, most)
    return jnp.clip((most[..., None] - chroma[..., None] * share) * value, 0, 1)


def distort(
    key: Key[Array, ""],
    image: Float[Array, "height width 3"],
    *,
    strength: ArrayLike = 1.0,
    probability: ArrayLike = 0.5,
) -> Float[Array, "height width 3"]:
    """Returns an image with its colours changed, as SSD's authors do.

    Brightness by up to 1/8, contrast and saturation (of HSV) by up to a half, hue by up
    to a twentieth of the circle, in this order, each or not.

    Args:
      key: the randomness.
      image: red, green and blue, from 0 to 1.
      strength: multiplies all four limits.
      probability: of each.
    """
    to_amount, to_whether = jax.random.split(key)
    amounts = jax.random.uniform(to_amount, (4,), minval=-1) * strength
    amounts *= jax.random.uniform(to_whether, (4,)) < probability
    image = adjust_brightness(image, 1 + amounts[0] / 8)
    image = adjust_contrast(image, 1 + amounts[1] / 2)
    saturation = jnp.maximum(1 + amounts[2] / 2, 0)
    return adjust_hsv(image, saturation=saturation, hue=amounts[3] / 20)


def expose(
    key: Key[Array, ""],
    image: Float[Array, "height width 3"],
    *,
    saturation: ArrayLike = 1.5,
    exposure: ArrayLike = 1.5,
) -> Float[Array, "height width 3"]:
    """Returns an image with its saturation and value (of HSV) multiplied, as in YOLO.

    Args:
      key: the randomness.
      image: red, green and blue, from 0 to 1.
      saturation: the factor is between one over this and this, its logarithm uniform.
      exposure: likewise, of the value.
    """
    drawn = jax.random.uniform(key, (2,), minval=-1)
    factors = jnp.exp(drawn * jnp.log(jnp.stack([saturation, exposure])))
    return adjust_hsv(image, saturation=factors[0], value=factors[1])


def _holds(
    patches: Float[Array, "patches 4"], boxes: Float[Array, "boxes 4"]
) -> Bool[Array, "patches boxes"]:
    """Returns whether the centre of each of the boxes is in each of the patches."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centers >= patches[:, None, :2]) & (centers < patches[:, None, 2:])
    return inside.all(-1)
