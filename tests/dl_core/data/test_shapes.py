"""The shapes task: what its sequences and targets show, measured from them."""

import numpy as np
import pytest

from dl_core.data import shapes
from dl_core.data.shapes import NOISE, Shapes


@pytest.mark.parametrize("pairs", ["type", "place"])
def test_a_target_shows_the_shapes_of_its_input_with_each_pair_of_equal_heights(
    pairs, monkeypatch
):
    chosen = Shapes(pairs=pairs, train=200, test=40)
    noisy = shapes.read(chosen)
    assert [len(noisy[name]["inputs"]) for name in ("train", "test")] == [200, 40]
    # Without the noise, which is drawn all the same.
    monkeypatch.setattr(shapes, "NOISE", 0.0)
    splits = shapes.read.__wrapped__(chosen)
    for name, clean in splits["train"].items():
        noise = noisy["train"][name] - clean
        assert abs(noise).max() <= NOISE + 1e-5
        assert noise.var() == pytest.approx(shapes.LEAST_ERROR, rel=0.05)
    for x, y in zip(*splits["train"].values(), strict=True):
        places = runs(x > 0)
        assert len(places) == 4
        assert runs(y > 0) == places
        before, after = (np.array([z[a:b].max() for a, b in places]) for z in (x, y))
        boxes = [np.ptp(x[a:b]) == 0 for a, b in places]
        assert sum(boxes) == 2
        first = np.array(boxes) if pairs == "type" else np.arange(4) < 2
        for pair in (first, ~first):
            np.testing.assert_allclose(after[pair], before[pair].mean(), rtol=1e-5)


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
