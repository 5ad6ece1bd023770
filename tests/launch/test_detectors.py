"""Detectors against time: what is drawn and told of them, and what is refused."""

import json
import types

import matplotlib.pyplot as plt
import processes
import pytest

from launch import detectors, registry
from launch.detectors import Measured

FOUND = [
    Measured("ssd", (0.8, 0.9), 0.0, 20.0),
    Measured("rcnn", (0.5, float("nan")), 300.0, 100.0),
    Measured("yolo", (float("nan"),) * 2, 0.0, 10.0),
]


def test_all_six_have_the_sweep_and_detect():
    assert len(detectors.detectors()) == 6
    for name in detectors.detectors():
        assert detectors.SWEEP in registry.outline(name).sweeps
        assert name in registry.names()


def test_the_slowest_comes_first_with_its_search_and_its_spread():
    head, first, second, third = detectors.table(FOUND)
    assert "AP50" in head
    assert first.split()[0] == "R-CNN"
    assert "diverged" in first
    assert "400.0" in first
    assert first.split()[-1] == "300.0"
    assert "85.0 ± 7.1" in second
    assert second.split()[-1] == "-"
    assert "diverged" in third


def test_the_figure_shows_every_seed_that_did_not_diverge(monkeypatch, tmp_path):
    flags = {"workdir": str(tmp_path), "publish": False, "preset": None}
    flags |= {"images": 1, "repeats": 1}
    monkeypatch.setattr(detectors, "FLAGS", types.SimpleNamespace(**flags))
    figure = detectors.draw(FOUND)
    (ax,) = figure.axes
    shown = [
        x for line in ax.lines if line.get_marker() == "o" for x in line.get_ydata()
    ]
    assert sorted(shown) == [50, 80, 90]
    assert {text.get_text() for text in ax.texts} == {"SSD", "R-CNN"}
    plt.close(figure)
    paths = detectors.write(FOUND)
    assert [path.suffix for path in paths] == [".png", ".svg", ".json"]
    written = json.loads(paths[2].read_text())
    assert [each["name"] for each in written["detectors"]] == ["ssd", "rcnn", "yolo"]


@pytest.mark.parametrize("preset", [[], ["--preset=smoke"]])
def test_a_missing_sweep_is_told_with_its_command(tmp_path, preset):
    result = processes.fork("launch.detectors", f"--workdir={tmp_path}", *preset).wait()
    assert result.code == 2
    command = "python -m launch.sweep --experiment=detection.rcnn --sweep=seeds"
    assert " ".join([command, *preset]) in result.stderr
    assert len(result.stderr.splitlines()) == 1
