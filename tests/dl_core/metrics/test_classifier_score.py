"""The classifier score against torchmetrics' arithmetic and scipy.stats."""

import types

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torchmetrics.image.inception import InceptionScore

from dl_core.metrics.classifier_score import classifier_score


def draw(seed, n, classes, scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=(n, classes))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    splits=st.integers(2, 5),
    each=st.integers(2, 20),
    classes=st.integers(2, 12),
)
def test_as_torchmetrics_has_it(seed, splits, each, classes):
    logits = draw(seed, splits * each, classes)
    # It shuffles before it splits; the same order is given to ours.
    torch.manual_seed(seed)
    order = torch.randperm(len(logits)).numpy()
    torch.manual_seed(seed)
    # Without the network that a whole one would load.
    theirs = types.SimpleNamespace(features=[torch.from_numpy(logits)], splits=splits)
    mean, deviation = map(float, InceptionScore.compute(theirs))
    found = classifier_score(logits[order], splits)
    assert found.mean() == pytest.approx(mean, rel=1e-6)
    assert found.std(ddof=1) == pytest.approx(deviation, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("splits", [1, 3])
def test_as_scipy_has_it_in_uneven_splits(splits):
    logits = draw(0, 11, 5)
    found = classifier_score(logits, splits)
    for score, part in zip(found, np.array_split(logits, splits), strict=True):
        given_image = softmax(part, axis=1)
        divergences = scipy.stats.entropy(given_image, given_image.mean(0), axis=1)
        assert score == pytest.approx(np.exp(divergences.mean()), rel=1e-10)


def test_from_one_to_the_number_of_classes():
    sure = 1e4 * np.eye(7)
    assert classifier_score(np.tile(sure, (3, 1))) == pytest.approx([7])
    assert classifier_score(np.tile(sure[:1], (9, 1))) == pytest.approx([1])
    assert classifier_score(np.zeros((9, 7))) == pytest.approx([1])


def test_more_splits_than_images():
    with pytest.raises(ValueError, match=r"5 splits of logits \(4, 3\)"):
        classifier_score(np.zeros((4, 3)), 5)
