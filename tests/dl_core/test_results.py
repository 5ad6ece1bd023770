"""Reading finished runs, and the numbers made from several."""

import json
import math

import numpy as np
import pytest

from dl_core.results import Run, Runs, mean_and_spread


def write_run(folder, seed, rate, values, status="done"):
    folder.mkdir()
    config = {"seed": seed, "optimizer": {"rate": rate}, "sizes": [1, 2]}
    (folder / "config.json").write_text(
        json.dumps({"experiment": "e", "config": config})
    )
    rows = [{"step": s, "stage": "train", "test/a": v} for s, v in enumerate(values)]
    rows.append({"step": 0, "stage": "other", "test/a": -1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    metrics = {"test/a": values[-1]}
    (folder / "DONE").write_text(
        json.dumps({"status": status, "text": "it ended", "metrics": metrics})
    )
    (folder / "artifacts").mkdir()
    for step in (2, 10):
        path = folder / "artifacts" / f"train-{step:08d}.npz"
        np.savez_compressed(path, x=np.full(3, step))
    return Run.read(folder)


@pytest.fixture
def runs(tmp_path):
    return Runs(
        write_run(tmp_path / f"{seed}-{rate}", seed, rate, [seed, rate], status)
        for rate, status in ((0.5, "done"), (2.0, "diverged"))
        for seed in (0, 1)
    )


def test_a_run_is_read(runs):
    run = runs[1]
    assert run.config == {"seed": 1, "optimizer.rate": 0.5, "sizes": [1, 2]}
    steps, values = run.series("test/a", stage="train")
    assert steps.tolist() == [0, 1]
    assert values.tolist() == [1, 0.5]
    assert run.series("test/a")[1].tolist() == [1, 0.5, -1]
    with pytest.raises(KeyError, match="test/b"):
        run.series("test/b")
    assert run.final("test/a") == 0.5
    assert math.isnan(runs[2].final("test/a"))
    artifacts = run.artifacts()
    assert list(artifacts) == [2, 10]
    assert artifacts[10]["x"].tolist() == [10, 10, 10]
    assert run.last_artifacts()["x"].tolist() == [10, 10, 10]


def test_a_run_has_its_share_of_the_time():
    assert Run({}, (), {"seconds": 6.0}).seconds == 6
    assert Run({}, (), {"seconds": 6.0, "trained_together": 3}).seconds == 2


def test_runs_are_chosen_and_grouped(runs):
    assert [r.config["seed"] for r in runs.where(**{"optimizer.rate": 0.5})] == [0, 1]
    assert len(runs.where(sizes=(1, 2))) == 4
    assert runs.values("optimizer.rate") == [0.5, 2.0]
    groups = runs.by("optimizer.rate", "seed")
    assert list(groups) == [(0.5, 0), (0.5, 1), (2.0, 0), (2.0, 1)]
    np.testing.assert_array_equal(runs.final("test/a"), [0.5, 0.5, np.nan, np.nan])


def test_curves_leave_out_what_diverged(runs):
    _, values = runs.curves("test/a")
    assert values.shape == (2, 3)
    steps, values = runs.where(**{"optimizer.rate": 2.0}).curves("test/a")
    assert (len(steps), values.mean(0).size, values.min(0).size) == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 2.0, 3.0], "2.0 ± 1.0"),
        ([95.31, 95.52, 94.9], "95.24 ± 0.32"),
        ([0.09, 0.1, 0.0951], "0.0950 ± 0.0050"),
        ([1000.0, 1240.0], "1120 ± 170"),
        ([0.123456], "0.1235"),
        ([5.0, 5.0], "5"),
        ([1.0, 3.0, math.nan], "2.0 ± 1.4 (1 of 3 diverged)"),
        ([math.nan], "diverged"),
    ],
)
def test_mean_and_spread_are_rounded_alike(values, text):
    assert mean_and_spread(values) == text


def test_mean_and_spread_in_per_cent():
    assert mean_and_spread([0.5, 0.6], scale=100, unit=" %") == "55.0 ± 7.1 %"
