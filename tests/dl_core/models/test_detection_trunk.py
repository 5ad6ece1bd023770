"""The trunk's maps at any size, and what a pyramid of them sees."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.models.detection import ssd
from dl_core.models.detection.trunk import (
    STRIDES,
    Backbone,
    Pyramid,
    Trunk,
    prior_bias,
    shapes,
)

TRUNK = Trunk(width=4, features=8)
SIZE = (37, 50)


class Both(nn.Module):
    strides: tuple[int, ...]

    @nn.compact
    def __call__(self, images):
        maps = Backbone(TRUNK)(images, train=True)
        return maps, Pyramid(TRUNK.features)(maps, self.strides)


@pytest.fixture(scope="module")
def network():
    strides = (8, 16, 32, 64, 128)
    images = jax.random.normal(jax.random.key(0), (2, *SIZE, 3))
    apply, variables = jax.jit(
        lambda x: Both(strides).init_with_output(jax.random.key(1), x)
    )(images)
    return strides, images, variables, apply


def test_maps_have_a_position_for_every_begun_stride(network):
    strides, _, _, (maps, pyramid) = network
    assert [m.shape[1:3] for m in maps.values()] == shapes(SIZE, STRIDES)
    assert [m.shape[-1] for m in maps.values()] == [8, 16, 32, 32]
    assert [m.shape[1:3] for m in pyramid.values()] == shapes(SIZE, strides)
    assert {m.shape[-1] for m in pyramid.values()} == {8}


def test_images_do_not_touch_each_other(network):
    strides, images, variables, _ = network

    def fine(images):
        return Both(strides).apply(variables, images)[1][8]

    changed = jax.jit(lambda x: fine(x) - fine(x.at[1].add(1.0)))(images)
    assert np.abs(changed[0]).max() == 0
    assert np.abs(changed[1]).max() > 0


def test_a_pyramid_says_which_stride_it_cannot_make(network):
    *_, (maps, _) = network
    with pytest.raises(ValueError, match="no stride 2 from"):
        Pyramid(8).init(jax.random.key(0), maps, (2, 4))
    with pytest.raises(ValueError, match="no stride 128 from"):
        Pyramid(8).init(jax.random.key(0), maps, (32, 128))


def test_a_sigmoid_begins_with_its_prior():
    bias = prior_bias(0.01)(jax.random.key(0), (3,), jnp.float32)
    np.testing.assert_allclose(nn.sigmoid(bias), 0.01, rtol=1e-5)


def test_ssd_says_something_of_every_default_box():
    boxes = ssd.Boxes(ratios=(2.0, 3.0))
    network = ssd.SSD(TRUNK, boxes, classes=5)
    images = jnp.zeros((2, *SIZE, 3))
    logits, codes = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=False)[0], images
    )
    count = len(boxes.make(SIZE))
    assert logits.shape == (2, count, 6)
    assert codes.shape == (2, count, 4)
