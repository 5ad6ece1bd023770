"""R-CNN goes on in any of its stages."""

import pytest
import tiny

from dl_core.config import replace
from dl_core.train import loop
from launch import registry


@pytest.fixture(scope="module")
def experiment():
    return registry.load("detection.rcnn")


@pytest.mark.slow
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
