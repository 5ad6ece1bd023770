"""SSD's matching and mining by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dl_core.config import replace
from experiments.detection import ssd as experiment

CONFIG = replace(experiment.Config(), experiment.PRESETS["smoke"])


def test_codes_lead_matched_boxes_to_their_objects():
    boxes = jnp.array([[2.0, 3, 9, 9], [20, 8, 44, 30], [0, 0, 0, 0]])
    labels = jnp.array([2, 1, -1], jnp.int32)
    wanted, codes = jax.jit(experiment.assign)(CONFIG, boxes, labels)
    assert np.isfinite(codes).all()
    assert set(np.unique(wanted)) == {0, 2, 3}
    decoded = experiment.CODER.decode(codes, experiment.default_boxes(CONFIG))
    for box, label in zip(boxes[:2], labels, strict=False):
        mine = decoded[wanted == label + 1]
        np.testing.assert_allclose(mine, np.tile(box, (len(mine), 1)), atol=1e-3)


def test_the_loss_counts_three_hard_negatives_for_each_object():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 40, 4)).astype(np.float32)
    codes, targets = random.normal(size=(2, 2, 40, 4)).astype(np.float32)
    wanted = np.zeros((2, 40), np.int32)
    wanted[0, :3], wanted[1, 5] = (1, 2, 3), 2
    found = jax.jit(experiment.multibox_loss)(CONFIG, logits, codes, wanted, targets)
    each = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, wanted))
    confidence = sum(
        row[w > 0].sum() + np.sort(row[w == 0])[::-1][: 3 * (w > 0).sum()].sum()
        for row, w in zip(each, wanted, strict=True)
    )
    apart = np.abs(codes - targets)[wanted > 0]
    location = np.where(apart < 1, apart**2 / 2, apart - 0.5).sum()
    np.testing.assert_allclose(found["confidence"], confidence / 4, rtol=1e-5)
    np.testing.assert_allclose(found["location"], location / 4, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], (confidence + location) / 4, rtol=1e-5)
