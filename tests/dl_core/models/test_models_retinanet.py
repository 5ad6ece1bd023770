"""RetinaNet: its anchors' order, the prior, and detections from perfect answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import to_arrays
from dl_core.models.detection import retinanet
from dl_core.models.detection.retinanet import Head, RetinaNet
from dl_core.models.detection.trunk import Trunk

SIZE = (44, 60)
HEAD = Head(strides=(4, 8), scale=2.0, octaves=2, convolutions=1)
ANCHORS = jnp.asarray(HEAD.anchors(SIZE))
BOXES = jnp.array([[3.0, 5, 15, 17], [30, 20, 52, 38], [41, 2, 49, 10], [0, 0, 0, 0]])
LABELS = jnp.array([1, 0, 2, -1])


@pytest.fixture(scope="module")
def answers():
    """Returns parameters and answers of an untrained network on noise."""
    images = jax.random.normal(jax.random.key(1), (2, *SIZE, 3))

    def run(head, images):
        net = RetinaNet(Trunk(width=4, features=8), head, 3)
        variables = net.init(jax.random.key(0), images, train=False)
        return variables["params"], net.apply(variables, images, train=False)

    return jax.jit(run)(to_arrays(HEAD), images)


def test_it_answers_for_every_anchor(answers):
    _, (logits, codes) = answers
    assert len(ANCHORS) == 2 * (11 * 15 + 6 * 8)
    assert logits.shape == (2, len(ANCHORS), 3)
    assert codes.shape == (2, len(ANCHORS), 4)


def test_it_begins_with_the_prior(answers):
    _, (logits, _) = answers
    np.testing.assert_allclose(jax.nn.sigmoid(logits).mean(), 0.01, rtol=0.1)


def test_all_maps_have_the_same_subnets(answers):
    params, _ = answers
    assert params.keys() == {"backbone", "pyramid", "classify", "locate"}


@jax.jit
def wanted():
    return retinanet.assign(to_arrays(HEAD), ANCHORS, BOXES, LABELS, 3)


def test_right_answers_give_the_objects_and_nothing_else():
    learned = wanted()
    logits = jnp.where(learned.classes, 6.0, -6.0)
    found = jax.jit(retinanet.detections, static_argnums=3)(
        logits[None], learned.codes[None], ANCHORS, SIZE
    )
    real = found.labels[0] >= 0
    assert real.sum() == 3
    order = np.argsort(found.labels[0][:3])
    np.testing.assert_allclose(
        found.boxes[0][:3][order], BOXES[jnp.array([1, 0, 2])], atol=1e-3
    )
    np.testing.assert_array_equal(np.sort(found.labels[0][:3]), [0, 1, 2])


def test_every_object_is_learned_by_an_anchor_even_the_unlike():
    learned = jax.jit(
        lambda: retinanet.assign(
            to_arrays(HEAD), ANCHORS, jnp.array([[0.0, 0, 60, 4]]), jnp.array([2]), 3
        )
    )()
    assert learned.objects.any()
    assert (learned.classes.argmax(-1)[learned.objects] == 2).all()
    assert not learned.classes[~learned.objects].any()


def test_padding_has_no_part_in_the_gradient():
    learned = jax.tree.map(lambda x: x[None], wanted())
    codes = jnp.zeros_like(learned.codes)
    gradient = jax.grad(retinanet.location_loss)(codes, learned)
    assert np.isfinite(gradient).all()
    assert not gradient[~learned.objects].any()
    assert gradient[learned.objects].any()
