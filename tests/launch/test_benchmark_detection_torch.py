"""SSD in torch trains as ours does."""

import numpy as np

from dl_core.config import replace
from experiments.detection import ssd
from launch import benchmark_detection_torch


def test_both_have_the_same_losses_step_by_step():
    config = replace(ssd.Config(), ssd.PRESETS["smoke"] | {"trunk.width": 8})
    random = np.random.default_rng(0)
    # Far apart: where two objects had the same best box, torch's matching is another.
    boxes = np.array([[2, 3, 9, 9], [20, 8, 44, 30], [48, 30, 60, 43], [0, 0, 0, 0]])
    labels = np.array([2, 1, 0, -1])
    batch = {
        "image": random.normal(size=(2, 48, 64, 3)),
        "boxes": np.stack([boxes, np.roll(boxes, 1, 0)]),
        "labels": np.stack([labels, np.roll(labels, 1)]),
    }
    kinds = {"image": np.float32, "boxes": np.float32, "labels": np.int32}
    batch = {name: array.astype(kinds[name]) for name, array in batch.items()}
    ours, theirs = benchmark_detection_torch.steps(config, batch)
    losses = np.array([(ours(), theirs()) for _ in range(4)])
    assert losses[-1, 0] < losses[0, 0]
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-3)
