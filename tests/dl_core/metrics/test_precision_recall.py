"""Precision, recall and diversity against scikit-learn's neighbours and scipy."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from sklearn.neighbors import NearestNeighbors

from dl_core.metrics import distances
from dl_core.metrics.distances import diversity, mean_distance, squared_distances
from dl_core.metrics.precision_recall import precision_recall


def inside(points, centres, k):
    neighbours = NearestNeighbors(n_neighbors=k).fit(centres)
    radii = neighbours.kneighbors()[0][:, -1]  # A point is not its own neighbour here.
    return np.mean([np.any(row <= radii) for row in cdist(points, centres)])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.tuples(st.integers(6, 60), st.integers(6, 60)),
    dims=st.integers(1, 12),
    k=st.integers(1, 5),
    far=st.sampled_from([0.0, 1e4]),
    rows=st.sampled_from([1, 7, 1_024]),
)
def test_as_scikit_learn_and_scipy_have_it(seed, sizes, dims, k, far, rows):
    random = np.random.default_rng(seed)
    real = far + random.normal(size=(sizes[0], dims))
    generated = far + 0.3 + 0.8 * random.normal(size=(sizes[1], dims))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "_ROWS", rows)
        found = precision_recall(real, generated, k)
        spread = mean_distance(real)
        squares = np.concatenate(list(squared_distances(real, generated)))
    assert found.precision == pytest.approx(inside(generated, real, k))
    assert found.recall == pytest.approx(inside(real, generated, k))
    assert spread == pytest.approx(pdist(real).mean(), rel=1e-6)
    np.testing.assert_allclose(
        squares, cdist(real, generated, "sqeuclidean"), rtol=1e-6, atol=1e-9
    )


def test_a_part_of_the_real_images_is_precise_and_recalls_little():
    random = np.random.default_rng(0)
    real = np.concatenate([random.normal(size=(50, 2)) + 100 * i for i in range(4)])
    generated = real[:50] + 0.01 * random.normal(size=(50, 2))
    found = precision_recall(real, generated)
    assert found.precision == 1
    assert 0.2 <= found.recall <= 0.25
    swapped = precision_recall(generated, real)
    assert swapped == found[::-1]


def test_diversity_of_half_the_spread_and_of_one_point():
    real = np.random.default_rng(1).normal(size=(40, 3))
    assert diversity(real, 7 + real / 2) == pytest.approx(0.5, rel=1e-9)
    assert diversity(real, np.repeat(real[:1], 40, axis=0)) == pytest.approx(
        0, abs=1e-6
    )
    assert np.isnan(diversity(np.ones((4, 3)), real))


def test_sets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"k = 3 .* \(3, 2\) and \(9, 2\)"):
        precision_recall(np.ones((3, 2)), np.ones((9, 2)))
    with pytest.raises(ValueError, match=r"\(9, 3\) and \(9, 2\)"):
        list(inspect.unwrap(squared_distances)(np.ones((9, 3)), np.ones((9, 2))))
    with pytest.raises(ValueError, match="1 rows"):
        mean_distance(np.ones((1, 2)))
