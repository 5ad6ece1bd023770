"""Boxes of fixed places, sizes and shapes, from which a detector measures its own.

All are made on the host, once, as (x_min, y_min, x_max, y_max) in pixels of the image,
float32: constants of the compiled program. Cells come row by row, and the boxes of
a cell come together, so a head's output (height, width, boxes * codes) is reshaped to
(height * width * boxes, codes) to stand beside them. A cell's boxes are centred in its
middle, (i + 1/2) strides, as in SSD and in the first paper on Faster R-CNN's pyramid
(torchvision's are centred on its corner, and rounded to whole pixels).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Shape = tuple[int, int]


def grid(
    shape: Shape, stride: float, sizes: Sequence[float], ratios: Sequence[float]
) -> Float[np.ndarray, "boxes 4"]:
    """Returns boxes of each size and ratio on each cell (Faster R-CNN).

    Ren et al., "Faster R-CNN", NeurIPS 2015: a box of size s and ratio r has the area
    s² and is r times as high as wide. A cell's are ordered by ratio, then by size.

    Args:
      shape: cells along height and width.
      stride: pixels of the image from a cell to the next.
      sizes: sides of the square boxes, in pixels.
      ratios: height to width.
    """
    ratios, sizes = np.asarray(ratios, float), np.asarray(sizes, float)
    widths = (sizes / np.sqrt(ratios)[:, None]).ravel()
    heights = (sizes * np.sqrt(ratios)[:, None]).ravel()
    return _on_cells(shape, stride, widths, heights)


def pyramid(
    shapes: Sequence[Shape],
    strides: Sequence[float],
    *,
    scale: float = 4.0,
    octaves: int = 3,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> Float[np.ndarray, "boxes 4"]:
    """Returns the boxes of a feature pyramid, level after level.

    The defaults are RetinaNet's (Lin et al., "Focal loss for dense object detection",
    ICCV 2017): sizes of 4 strides, times 2^0, 2^⅓ and 2^⅔, in three ratios. Those of
    the region proposals of Lin et al., "Feature pyramid networks", CVPR 2017, have
    scale=8 and octaves=1.

    Args:
      shapes: cells along height and width of each level.
      strides: pixels of the image from a cell of each level to the next.
      scale: the smallest size, in strides.
      octaves: sizes from that to its double, the double left out.
      ratios: height to width.
    """
    steps = [scale * 2 ** (k / octaves) for k in range(octaves)]
    levels = [
        grid(shape, stride, [step * stride for step in steps], ratios)
        for shape, stride in zip(shapes, strides, strict=True)
    ]
    return np.concatenate(levels)


SSD300_SHAPES = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))


def ssd_default_boxes(
    shapes: Sequence[Shape] = SSD300_SHAPES,
    strides: Sequence[float] = (8, 16, 32, 64, 100, 300),
    sizes: Sequence[float] = (30, 60, 111, 162, 213, 264, 315),
    ratios: Sequence[Sequence[float]] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
) -> Float[np.ndarray, "boxes 4"]:
    """Returns SSD's default boxes; without arguments the 8,732 of SSD300 for VOC.

    Liu et al., "SSD: single shot multibox detector", ECCV 2016, in the settings of the
    authors' configuration. A cell of level k has a square of sizes[k], one of
    √(sizes[k] sizes[k + 1]), and for each ratio a wide and a high box of the area
    sizes[k]². Boxes may leave the image, as in that configuration.

    Args:
      shapes: cells along height and width of each level.
      strides: pixels of the image from a cell of each level to the next.
      sizes: of the levels in pixels, and one more.
      ratios: of each level, beside 1.

    Raises:
      ValueError: where `sizes` is not one longer than the levels.
    """
    if len(sizes) != len(shapes) + 1:
        raise ValueError(f"{len(shapes)} levels need as many sizes + 1, not {sizes}.")
    levels = []
    for k, (shape, stride, others) in enumerate(
        zip(shapes, strides, ratios, strict=True)
    ):
        roots = np.sqrt([1.0, *(x for r in others for x in (r, 1 / r))])
        widths, heights = sizes[k] * roots, sizes[k] / roots
        between = np.sqrt(sizes[k] * sizes[k + 1])
        widths, heights = np.insert(widths, 1, between), np.insert(heights, 1, between)
        levels.append(_on_cells(shape, stride, widths, heights))
    return np.concatenate(levels)


def _on_cells(shape, stride, widths, heights):
    """Returns boxes of these widths and heights on each cell: (cells * boxes, 4)."""
    y, x = ((np.arange(n) + 0.5) * stride for n in shape)
    centers = np.stack(np.meshgrid(x, y), axis=-1)[:, :, None]
    halves = np.stack([widths, heights], axis=-1) / 2
    boxes = np.concatenate([centers - halves, centers + halves], axis=-1)
    return boxes.reshape(-1, 4).astype(np.float32)
