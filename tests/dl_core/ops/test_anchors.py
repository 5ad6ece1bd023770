"""Anchors against the published counts and numbers, and the formula in plain loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.ops import anchors
from dl_core.ops.boxes import to_centers


def test_ssd300_has_8732_default_boxes():
    shapes = anchors.SSD300_SHAPES
    counts = [h * w * n for (h, w), n in zip(shapes, (4, 6, 6, 6, 4, 4), strict=True)]
    boxes = anchors.ssd_default_boxes()
    assert len(boxes) == sum(counts) == 8_732
    assert boxes.dtype == np.float32


def test_ssd300_boxes_are_those_of_the_authors_configuration():
    # From prior_box_layer.cpp and ssd_pascal.py: min_size, max_size, aspect_ratios.
    settings = [
        (8, 38, 30, 60, (2,)),
        (16, 19, 60, 111, (2, 3)),
        (32, 10, 111, 162, (2, 3)),
        (64, 5, 162, 213, (2, 3)),
        (100, 3, 213, 264, (2,)),
        (300, 1, 264, 315, (2,)),
    ]
    expected = []
    for step, cells, smallest, largest, ratios in settings:
        for row in range(cells):
            for column in range(cells):
                x, y = (column + 0.5) * step, (row + 0.5) * step
                sizes = [(smallest,) * 2, (math.sqrt(smallest * largest),) * 2]
                for ratio in ratios:
                    for r in (ratio, 1 / ratio):
                        root = math.sqrt(r)
                        sizes.append((smallest * root, smallest / root))
                for w, h in sizes:
                    expected.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    np.testing.assert_allclose(anchors.ssd_default_boxes(), expected, atol=1e-4)


def test_ssd_needs_one_size_more_than_levels():
    with pytest.raises(ValueError, match=r"2 levels.*\(8, 16\)"):
        anchors.ssd_default_boxes(((4, 4), (2, 2)), (8, 16), (8, 16), ((2,), (2,)))


def test_retinanet_has_nine_boxes_a_cell_of_the_published_areas():
    boxes = anchors.pyramid([(2, 3), (1, 2)], [8, 16])
    assert boxes.shape == (9 * (6 + 2), 4)
    centers = np.asarray(to_centers(jnp.asarray(boxes)))
    sides = np.sqrt(centers[:, 2] * centers[:, 3]).reshape(-1, 3, 3)
    octaves = 2 ** np.array([0, 1 / 3, 2 / 3])
    np.testing.assert_allclose(sides[:6], np.tile(32 * octaves, (6, 3, 1)), rtol=1e-5)
    np.testing.assert_allclose(sides[6:], np.tile(64 * octaves, (2, 3, 1)), rtol=1e-5)
    ratios = (centers[:, 3] / centers[:, 2]).reshape(-1, 3, 3)
    np.testing.assert_allclose(ratios[0], [[0.5] * 3, [1] * 3, [2] * 3], rtol=1e-5)


def test_feature_pyramids_proposals_have_sizes_from_32_to_512():
    shapes = [(1, 1)] * 5
    boxes = anchors.pyramid(shapes, [4, 8, 16, 32, 64], scale=8, octaves=1)
    centers = np.asarray(to_centers(jnp.asarray(boxes))).reshape(5, 3, 4)
    sides = np.sqrt(centers[:, :, 2] * centers[:, :, 3])
    sizes = np.array([32, 64, 128, 256, 512.0])[:, None]
    np.testing.assert_allclose(sides, np.tile(sizes, 3), rtol=1e-5)


def test_boxes_are_centred_on_cells_row_by_row():
    boxes = anchors.grid((2, 3), 10, (4, 8), (1,))
    centers = np.asarray(to_centers(jnp.asarray(boxes))).reshape(2, 3, 2, 4)
    np.testing.assert_allclose(centers[0, :, 0, 0], [5, 15, 25])
    np.testing.assert_allclose(centers[:, 0, 0, 1], [5, 15])
    np.testing.assert_allclose(centers[1, 2], [[25, 15, 4, 4], [25, 15, 8, 8]])


def test_torchvisions_cell_anchors():
    # AnchorGenerator.generate_anchors((32, 64), (0.5, 1, 2)), which rounds, at (0, 0).
    rounded = [
        [-23, -11, 23, 11],
        [-45, -23, 45, 23],
        [-16, -16, 16, 16],
        [-32, -32, 32, 32],
        [-11, -23, 11, 23],
        [-23, -45, 23, 45],
    ]
    boxes = anchors.grid((1, 1), 0, (32, 64), (0.5, 1, 2))
    np.testing.assert_array_equal(np.round(boxes), rounded)
