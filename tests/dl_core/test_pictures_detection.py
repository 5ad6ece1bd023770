"""Figures of detectors: what is marked right, wrong and missed; runs that diverged."""

import collections

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from dl_core import pictures_detection as pictures
from dl_core.metrics.detection_errors import KINDS
from dl_core.results import Run, Runs

NAMES = ("cell", "plate")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def run(seed, *, diverged=False):
    random = np.random.default_rng(seed)
    metrics = {f"test/error_{kind}": random.random() for kind in KINDS}
    curve = np.sort(random.random(101))[::-1]
    # There are no objects of the second class.
    metrics["test/precision"] = [curve.tolist(), [-1.0] * 101]
    status = "diverged" if diverged else "finished"
    metrics = {} if diverged else metrics
    return Run({"seed": seed}, [], {"status": status, "metrics": metrics})


def test_detections_are_marked_right_wrong_and_missed():
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]]], np.float32)
    found = np.array([[[0, 0, 10, 9], [20, 0, 30, 10], [20, 20, 30, 30]]], np.float32)
    seen = {
        "image": np.zeros((1, 32, 48, 3), np.float32),
        "boxes": boxes,
        "labels": np.array([[0, 1, -1]]),
        "difficult": np.zeros((1, 3), bool),
        "found_boxes": found,
        "found_scores": np.array([[0.9, 0.8, 0.4]], np.float32),
        "found_labels": np.array([[0, 0, 1]]),
    }

    def drawn(least_score):
        fig = pictures.detections_beside_truth(seen, NAMES, least_score=least_score)
        patches = [p for ax in fig.axes for p in ax.patches if isinstance(p, Rectangle)]
        return collections.Counter(to_hex(p.get_edgecolor()) for p in patches)

    right, wrong, missed, truth = (to_hex(color) for color in ("C2", "C3", "C1", "C0"))
    assert drawn(0.5) == {truth: 2, right: 1, wrong: 1, missed: 1}
    assert drawn(0.3) == {truth: 2, right: 2, wrong: 1}


@pytest.mark.parametrize("ended", [5, 1, 0])
def test_curves_and_errors_of_runs_some_of_which_diverged(ended):
    runs = Runs(run(seed, diverged=seed >= ended) for seed in range(5))
    for groups in (runs, {"one": runs, "other": runs}):
        left, right = pictures.precision_recall(groups, NAMES).axes
        count = 1 if groups is runs else 2
        assert len(left.lines) == (count if ended else 0)
        assert not right.lines
        (ax,) = pictures.errors(groups).axes
        assert len(ax.lines) == 2 * count * len(KINDS)
    pictures.detections_beside_truth({}, NAMES)
