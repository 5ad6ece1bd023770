"""The kernel distance against torchmetrics and plain leaving-out; its interval, too."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel
from torchmetrics.image.kid import poly_mmd

from dl_core.metrics import kernel
from dl_core.metrics.kernel import kernel_distance


def draw(seed, n, dims, shift=0.0):
    return shift + np.random.default_rng(seed).normal(size=(n, dims))


def plain(x, y):
    """The unbiased estimate, with scikit-learn's kernel."""

    def mean(a, others):
        kernels = polynomial_kernel(a, others, degree=3, coef0=1)
        if a is others:
            return (kernels.sum() - np.trace(kernels)) / (len(a) * (len(a) - 1))
        return kernels.mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(3, 40),
    dims=st.integers(1, 30),
    rows=st.sampled_from([1, 7, 1_024]),
)
def test_as_torchmetrics_has_it(seed, n, dims, rows):
    x, y = draw(seed, n, dims), draw(seed + 1, n, dims, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_ROWS", rows)
        found = kernel_distance(x, y).value
    theirs = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert found == pytest.approx(theirs, rel=1e-6, abs=1e-9)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), m=st.integers(3, 12), n=st.integers(3, 12))
def test_the_interval_is_the_jackknife_of_plain_leaving_out(seed, m, n):
    x, y = draw(seed, m, 3), draw(seed + 1, n, 3, 0.5)
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(plain(x, y), rel=1e-9, abs=1e-12)
    left_x = [plain(np.delete(x, i, 0), y) for i in range(m)]
    left_y = [plain(x, np.delete(y, i, 0)) for i in range(n)]
    variance = (m - 1) * np.var(left_x) + (n - 1) * np.var(left_y)
    assert found.high - found.value == pytest.approx(1.959964 * variance**0.5, rel=1e-6)
    assert found.value - found.low == pytest.approx(1.959964 * variance**0.5, rel=1e-6)


def exact(dims, shift):
    """MMD² of N(0, 1) and N(shift, 1): (x·y / d + 1)³ multiplied out into moments."""
    mean, eye = np.full(dims, shift), np.eye(dims)
    second = np.outer(mean, mean)
    third = np.einsum("i,j,k->ijk", mean, mean, mean)
    third += sum(
        np.einsum(f"i,jk->{order}", mean, eye) for order in ("ijk", "jik", "jki")
    )
    squares = [(moment**2).sum() for moment in (mean, second, third)]
    return 3 * squares[0] / dims + 3 * squares[1] / dims**2 + squares[2] / dims**3


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("dims", "shift"),
    [
        (8, 0.0),
        (8, 0.3),
        pytest.param(32, 0.1, marks=_SLOW),
        pytest.param(1, 2.0, marks=_SLOW),
    ],
)
def test_how_often_the_interval_holds_the_truth(dims, shift):
    """About 95 % of the time, and more often where the sets hardly differ."""
    truth = exact(dims, shift)
    results = [
        kernel_distance(draw(2 * i, 200, dims), draw(2 * i + 1, 200, dims, shift))
        for i in range(300)
    ]
    values, low, high = np.transpose(results)
    assert np.mean((low <= truth) & (truth <= high)) > 0.93
    assert shift == 0 or np.mean((low <= truth) & (truth <= high)) < 0.995
    # Unbiased, and the jackknife's variance is once to twice the true one.
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(len(values))
    ratio = np.mean(((high - values) / 1.96) ** 2) / values.var()
    assert 0.8 < ratio < 2.3


def test_the_same_number_each_time():
    x, y = draw(0, 50, 4), draw(1, 60, 4)
    assert kernel_distance(x, y) == kernel_distance(x, y)


def test_sets_that_do_not_fit():
    bare = inspect.unwrap(kernel_distance)
    with pytest.raises(ValueError, match=r"\(9, 3\) and \(9, 2\)"):
        bare(np.ones((9, 3)), np.ones((9, 2)))
    with pytest.raises(ValueError, match="three rows or more"):
        kernel_distance(np.ones((2, 3)), np.ones((9, 3)))
