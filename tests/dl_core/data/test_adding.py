"""The adding problem: what is marked, and where."""

import jax
import numpy as np
import pytest

from dl_core.data.adding import VARIANCE, adding_problem


def test_the_target_is_the_sum_of_two_marked_numbers():
    batch = adding_problem(jax.random.key(0), 500, 7)
    numbers, marks = np.moveaxis(np.asarray(batch["inputs"]), 2, 0)
    assert set(np.unique(marks)) == {0, 1}
    assert (marks.sum(1) == 2).all()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    marked = np.sort(numbers * marks)[:, -2:]
    np.testing.assert_allclose(batch["targets"], marked.sum(1), rtol=1e-6)


def test_each_pair_of_steps_is_marked_as_often():
    marks = np.asarray(adding_problem(jax.random.key(1), 20_000, 5)["inputs"])[..., 1]
    together = marks.T @ marks / len(marks)
    np.testing.assert_allclose(together[np.triu_indices(5, 1)], 0.1, atol=0.01)


def test_answering_the_mean_has_the_error_of_the_variance():
    targets = np.asarray(adding_problem(jax.random.key(2), 50_000, 10)["targets"])
    assert ((targets - 1) ** 2).mean() == pytest.approx(VARIANCE, rel=0.02)


def test_a_single_step_is_refused():
    with pytest.raises(ValueError, match="1 steps"):
        adding_problem(jax.random.key(0), 2, 1)
