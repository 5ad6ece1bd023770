"""The benchmark of detection: both do the same, and it says what it found."""

import sys

import numpy as np
import pytest

from dl_core.errors import UserError
from launch import benchmark_detection, benchmark_detection_torch
from launch.benchmark_detection import Alignment, Suppression

SUPPRESSION = Suppression(0.5, 20, lists=2, boxes=60)
ALIGNMENT = Alignment(maps=2, boxes=5, size=(9, 7), channels=3, grid=3)


def test_both_keep_the_same_boxes():
    ours, theirs = benchmark_detection.suppressions(SUPPRESSION).values()
    found = zip(*map(np.asarray, ours()), strict=True)
    kept = [numbers[stay].tolist() for numbers, stay in found]
    rows = theirs()
    assert kept == [rows[rows[:, 0] == i, 2].tolist() for i in range(2)]
    assert all(1 < len(numbers) <= 20 for numbers in kept)


def test_both_align_alike():
    ours, theirs = benchmark_detection.alignments(ALIGNMENT).values()
    expected = np.moveaxis(theirs(), 1, -1).reshape(2, 5, 3, 3, 3)
    np.testing.assert_allclose(ours(), expected, atol=1e-5)


def test_everything_is_told_with_its_ratio(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_detection, "SUPPRESSIONS", (SUPPRESSION,))
    monkeypatch.setattr(benchmark_detection, "ALIGNMENT", ALIGNMENT)
    monkeypatch.setattr(benchmark_detection, "IMAGES", 20)
    # Its own test takes SSD's steps.
    steps = (lambda: 1.0, lambda: 1.0)
    monkeypatch.setattr(benchmark_detection_torch, "steps", lambda: steps)
    benchmark_detection.run(repeats=2)
    text = capsys.readouterr().out
    ratios = [line for line in text.splitlines() if " over " in line]
    told = [line.split("'s time over ")[0].strip() for line in ratios]
    assert told == ["ONNX Runtime", "ONNX Runtime", "pycocotools", "torch"]
    for line in ratios:
        middle, low, _, high = (word.strip("()") for word in line.split()[-4:])
        assert 0 < float(low) <= float(middle) <= float(high)
    assert "threads" in text


@pytest.mark.parametrize("library", ["onnxruntime", "torch"])
def test_without_a_library_it_says_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"pip install -e .\[test\]"):
        benchmark_detection.run(repeats=1)
