"""YOLO's tricks: what is taken away, how it is counted, and that eight images fit."""

import json

import numpy as np
import pytest
import tiny

from dl_core.config import flatten, leaves, replace, to_dict
from dl_core.results import Run, Runs
from dl_core.train import loop
from experiments.detection import yolo as experiment
from launch import registry


def run(value, **changes):
    config = flatten(to_dict(replace(experiment.Config(), changes)))
    return Run(config, [], {"status": "done", "metrics": {"test/ap50": value}})


def test_each_trick_changes_the_default_alone():
    default = leaves(experiment.Config())
    for name, point in experiment.TRICKS.items():
        assert all(default[path].value != value for path, value in point.items()), name
        replace(experiment.Config(), point).model.check()
    assert len(experiment.SWEEPS["tricks"]) == 5 * (1 + len(experiment.TRICKS))


def test_changes_are_from_the_mean_of_the_default():
    runs = Runs(
        [
            run(0.5, seed=0),
            run(0.7, seed=1),
            *(run(0.4, seed=seed, **{"model.priors": ()}) for seed in (0, 1)),
            run(0.9, **experiment.TRICKS["one predictor, not two"]),
        ]
    )
    assert len(experiment.with_all(runs)) == 2
    changes = experiment.changes(runs)
    assert set(changes) == {"without priors (v2)", "one predictor, not two"}
    np.testing.assert_allclose(changes["without priors (v2)"], [-0.2, -0.2])
    np.testing.assert_allclose(changes["one predictor, not two"], [0.3])
    assert experiment._names(runs) == ("RBC", "WBC", "Platelets")


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(tmp_path, data_dir):
    config = replace(
        experiment.Config(),
        {
            "steps": 1_000,
            "eval_every": 1_000,
            "checkpoint_every": 1_000,
            "data.examples": 8,
            "data.evaluated": 8,
            "data.augment": "none",
        },
    )
    (outcome,) = tiny.train(
        registry.load("detection.yolo"), {tmp_path / "run": config}, data_dir=data_dir
    )
    assert outcome.status == loop.DONE
    metrics = json.loads((tmp_path / "run/DONE").read_text())["metrics"]
    assert metrics["train/ap50"] >= 0.99
