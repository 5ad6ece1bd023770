"""R-CNN goes on in any of its stages, and learns eight images by heart."""

import pytest
import tiny

from dl_core.config import replace
from dl_core.train import loop
from dl_core.train.run_directory import read_rows
from launch import registry


@pytest.fixture(scope="module")
def experiment():
    return registry.load("detection.rcnn")


def test_each_stage_is_resumed_to_the_same_bits(experiment, tmp_path, data_dir):
    config = replace(
        experiment.preset("smoke"), {"steps": 2, "data.evaluated": 2, "svm.steps": 3}
    )
    run, whole = ({tmp_path / name: config} for name in ("run", "whole"))
    tiny.train(experiment, whole, data_dir=data_dir)
    for _ in range(2):
        (outcome,) = tiny.train(experiment, run, tiny.After(3), data_dir=data_dir)
    assert outcome.status == loop.STOPPED
    (outcome,) = tiny.train(experiment, run, data_dir=data_dir)
    assert outcome.status == loop.DONE
    tiny.assert_same_bits(experiment, tmp_path / "run", tmp_path / "whole", config)


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(experiment, tmp_path, data_dir):
    """Up to what no proposal covers: the recall of the proposals is the bound."""
    changes = {
        "data.examples": 8,
        "data.evaluated": 2,
        "data.augment": "none",
        "steps": 200,
        "svm.steps": 3,
        "svm.fit_every": 1,
        "boxes.steps": 1,
        "proposals.most": 800,
        "proposals.overlap": 0.9,
    }
    config = replace(experiment.config_class(), changes)
    tiny.train(experiment, {tmp_path / "run": config}, data_dir=data_dir)
    row = read_rows(tmp_path / "run/metrics.jsonl")[-1]
    assert row["train/ap50"] >= 0.9 * max(row["train/recall"])
