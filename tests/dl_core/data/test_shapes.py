"""The shapes task: what its sequences and targets show, measured from them."""

import numpy as np
import pytest

from dl_core.data import shapes
from dl_core.data.shapes import NOISE, Shapes


@pytest.mark.parametrize("pairs", ["type", "place"])
def test_a_sequence_shows_four_shapes_apart_and_its_target_equal_pairs(pairs):
    splits = shapes.read(Shapes(pairs=pairs, train=60, test=40))
    assert [len(splits[name]["inputs"]) for name in ("train", "test")] == [60, 40]
    for x, y in zip(*splits["train"].values(), strict=True):
        assert min(x.min(), y.min()) >= -NOISE
        assert max(x.max(), y.max()) <= 25 + NOISE
        places = runs(y > 2 * NOISE)
        assert places == runs(x > 2 * NOISE) or y.min() < 3
        if len(places) != 4:
            continue  # A shape lower than the noise, or a box between positions.
        tops = np.array([y[a:b].max() for a, b in places])
        boxes = np.array([np.ptp(y[a:b]) <= 2 * NOISE for a, b in places])
        if pairs == "type" and boxes.sum() == 2:
            # A narrow triangle's top may lie between positions; a box's does not.
            assert np.ptp(tops[boxes]) <= 2 * NOISE
        if pairs == "place":
            for pair in (slice(0, 2), slice(2, 4)):
                if boxes[pair].all():
                    assert np.ptp(tops[pair]) <= 2 * NOISE


def runs(there):
    """Returns where each run of True begins and ends."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there, [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def test_shapes_by_hand():
    drawn = shapes.draw(
        np.array([[3.0, 9, 15, 20]]),
        np.array([[4.0, 8, 2, 6]]),
        np.array([[4.0, 4, 3, 5]]),
        length=24,
    )[0]
    np.testing.assert_allclose(drawn[0, :8], [0, 1, 3, 4, 3, 1, 0, 0])
    np.testing.assert_allclose(drawn[1, 6:13], [0, 2, 6, 8, 6, 2, 0])
    np.testing.assert_allclose(drawn[2, 13:18], [0, 2, 2, 2, 0])
    np.testing.assert_allclose(drawn[3, 17:24], [0, 6, 6, 6, 6, 6, 0])
    assert not shapes.touching(drawn[None])[0]
    moved = drawn.copy()
    moved[3] = np.roll(drawn[3], -2)
    assert shapes.touching(moved[None])[0]


def test_pairs_and_means_by_hand():
    places, heights = np.array([[10.0, 80, 30, 60]]), np.array([[2.0, 8, 4, 20]])
    by_type = shapes.pairs_of("type", places)
    assert by_type.tolist() == [[True, True, False, False]]
    assert shapes.mean_heights(heights, by_type).tolist() == [[5, 5, 12, 12]]
    by_place = shapes.pairs_of("place", places)
    assert by_place.tolist() == [[True, False, True, False]]
    assert shapes.mean_heights(heights, by_place).tolist() == [[3, 14, 3, 14]]


def test_both_pairs_must_differ():
    heights = np.array([[2.0, 8, 4, 20], [2, 8, 4, 5], [2, 3, 4, 20]])
    pairs = shapes.pairs_of("type", heights)
    assert shapes.different("type", heights, pairs).tolist() == [True, False, False]
    pairs = np.array([[True, True, False, False]] * 3)
    kept = shapes.different("place", heights, pairs)
    assert kept.tolist() == [True, False, True]
