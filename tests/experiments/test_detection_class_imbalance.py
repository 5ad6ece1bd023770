"""Which anchors count under each of the losses, and the sums of figure 4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace, to_arrays
from dl_core.models.detection.retinanet import Wanted
from dl_core.ops.boxes import pairwise_iou
from experiments.detection import class_imbalance as experiment

CONFIG = replace(experiment.Config(), experiment.PRESETS["smoke"])


@pytest.fixture(scope="module")
def case():
    """Returns losses of two images' anchors, and what they learn; one has no object."""
    anchors = len(experiment.anchors(CONFIG))
    random = np.random.default_rng(0)
    role = random.choice(3, (2, anchors), p=(0.9, 0.05, 0.05))
    role[1, role[1] == 1] = 0
    wanted = Wanted(
        classes=jnp.zeros((2, anchors, 3), bool),
        codes=jnp.zeros((2, anchors, 4)),
        objects=jnp.asarray(role == 1),
        counted=jnp.asarray(role < 2),
    )
    return jnp.asarray(random.random((2, anchors)), jnp.float32), wanted


def counting(case, **changes):
    config = to_arrays(replace(CONFIG, changes))
    return np.asarray(jax.jit(experiment.counting)(config, *case))


def test_all_are_those_that_are_not_ignored(case):
    np.testing.assert_array_equal(counting(case), case[1].counted)


def test_three_backgrounds_count_for_each_object(case):
    losses, wanted = (jax.tree.map(np.asarray, part) for part in case)
    chosen = counting(case, **{"loss.counts": "3:1"})
    assert chosen[wanted.objects].all()
    assert not chosen[~wanted.counted].any()
    assert not chosen[1].any()
    background = (wanted.counted & ~wanted.objects)[0]
    assert (chosen[0] & background).sum() == 3 * wanted.objects[0].sum()
    assert losses[0][chosen[0] & background].min() >= (
        losses[0][background & ~chosen[0]].max()
    )


def test_ohem_takes_the_hardest_that_are_apart(case):
    losses, wanted = (jax.tree.map(np.asarray, part) for part in case)
    chosen = counting(case, **{"loss.counts": "ohem", "loss.hardest": 16})
    np.testing.assert_array_equal(chosen.sum(1), 16)
    assert not chosen[~wanted.counted].any()
    for image in range(2):
        boxes = experiment.anchors(CONFIG)[chosen[image]]
        overlaps = np.asarray(jax.jit(pairwise_iou)(boxes, boxes))
        assert (overlaps[~np.eye(16, dtype=bool)] <= 0.5).all()
        assert chosen[image, np.where(wanted.counted[image], losses[image], 0).argmax()]


def test_the_part_of_the_easiest():
    losses = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    chosen = losses < 0.7
    found = jax.jit(experiment.part_of_the_easiest)(losses, chosen)
    ordered = np.sort(losses[chosen])
    count = len(ordered)
    sums = np.concatenate([[0], np.cumsum(ordered)]) / ordered.sum()
    expected = np.interp(experiment.SHARES * count, np.arange(count + 1), sums)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_nothing_the_easiest_have_no_part():
    found = experiment.part_of_the_easiest(jnp.ones((2, 3)), jnp.zeros((2, 3), bool))
    np.testing.assert_array_equal(found, 0)


def test_each_setting_is_swept_and_drawn_alone():
    points = experiment.SWEEPS["losses"]
    assert len(points) == 5 * len(experiment.SETTINGS)
    colors = experiment._colors()
    assert list(colors) == list(experiment.SETTINGS)
