"""Every detector learns eight images by heart.

Some of their 145 objects overlap others of their class by up to 0.49, more than the
suppression of some detectors lets stand: hence not quite an AP of 1.
"""

import pytest
import tiny

from dl_core.config import replace
from dl_core.train import loop
from dl_core.train.records import read_rows
from launch import registry

FEW = {"data.examples": 8, "data.evaluated": 2, "data.augment": "none"}


def learned(name, changes, folder, data_dir):
    """Returns what a detector measures on the eight images that it was trained on."""
    experiment = registry.load(name)
    config = replace(experiment.config_class(), FEW | changes)
    (outcome,) = tiny.train(experiment, {folder / "run": config}, data_dir=data_dir)
    assert outcome.status == loop.DONE
    return read_rows(folder / "run/metrics.jsonl")[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("faster_rcnn", 500),
        ("retinanet", 400),
        ("ssd", 800),
        ("yolo", 1_000),
    ],
)
def test_eight_images_are_learned_by_heart(name, steps, tmp_path, data_dir):
    changes = {"steps": steps, "eval_every": steps}
    row = learned(f"detection.{name}", changes, tmp_path, data_dir)
    assert row["train/ap50"] >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fast_rcnn", {"steps": 500, "eval_every": 500}),
        (
            "rcnn",
            {
                "steps": 200,
                "svm.steps": 3,
                "svm.fit_every": 1,
                "boxes.steps": 1,
                "proposals.most": 800,
                "proposals.overlap": 0.9,
            },
        ),
    ],
)
def test_what_selective_search_covers_is_learned(name, changes, tmp_path, data_dir):
    row = learned(f"detection.{name}", changes, tmp_path, data_dir)
    assert row["train/ap50"] >= 0.85 * max(row["train/recall"])
