"""Box coders: the papers' formulas written out, and decoding undoes encoding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.ops.box_coders import SSD, YOLO, FasterRCNN

CODERS = [FasterRCNN(), FasterRCNN((10.0, 10.0, 5.0, 5.0)), SSD(), YOLO((90, 120))]
BOX = jnp.array([20.0, 30.0, 60.0, 50.0])  # Centre (40, 40), 40 × 20.
ANCHOR = jnp.array([20.0, 20.0, 40.0, 60.0])  # Centre (30, 40), 20 × 40.


def random_boxes(seed, count=50):
    random = np.random.default_rng(seed)
    low, size = random.uniform(0, 80, (count, 2)), random.uniform(2, 40, (count, 2))
    return jnp.asarray(np.concatenate([low, low + size], 1), jnp.float32)


@pytest.mark.parametrize("coder", CODERS, ids=repr)
def test_decoding_undoes_encoding(coder):
    boxes, anchors = random_boxes(0), random_boxes(1)
    back = coder.decode(coder.encode(boxes, anchors), anchors)
    np.testing.assert_allclose(back, boxes, atol=1e-3)


def test_codes_are_those_of_the_papers():
    log = math.log(2)
    np.testing.assert_allclose(
        FasterRCNN().encode(BOX, ANCHOR), [0.5, 0, log, -log], atol=1e-6
    )
    weighted = FasterRCNN((10.0, 10.0, 5.0, 5.0)).encode(BOX, ANCHOR)
    np.testing.assert_allclose(weighted, [5, 0, 5 * log, -5 * log], atol=1e-5)
    np.testing.assert_allclose(SSD().encode(BOX, ANCHOR), weighted, atol=1e-5)
    cell = jnp.array([30.0, 30.0, 50.0, 50.0])
    roots = [0.5, 0.5, math.sqrt(40 / 160), math.sqrt(20 / 80)]
    np.testing.assert_allclose(YOLO((80, 160)).encode(BOX, cell), roots, atol=1e-6)
    plain = YOLO((80, 160), roots=False).encode(BOX, cell)
    np.testing.assert_allclose(plain, [0.5, 0.5, 0.25, 0.25], atol=1e-6)


def test_a_code_out_of_bounds_gives_no_box_without_bound():
    wild = jnp.array([0.0, 0.0, 100.0, 3.0])
    x_min, y_min, x_max, y_max = FasterRCNN().decode(wild, ANCHOR)
    assert x_max - x_min == pytest.approx(20 * 1000 / 16, rel=1e-5)
    assert y_max - y_min == pytest.approx(40 * math.exp(3), rel=1e-5)


@pytest.mark.parametrize("coder", CODERS, ids=repr)
def test_padding_gives_finite_codes_and_gradients(coder):
    padding = jnp.zeros((1, 4))

    def total(boxes):
        return jnp.sum(coder.encode(boxes, ANCHOR[None]) ** 2)

    value, gradient = jax.value_and_grad(total)(padding)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    assert jnp.isfinite(coder.encode(BOX[None], padding)).all()
    assert jnp.isfinite(coder.decode(jnp.ones((1, 4)), padding)).all()
