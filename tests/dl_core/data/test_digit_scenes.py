"""Boxes of scenes hold just the pixels of their digits, whose splits are apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.data.batches import Generated
from dl_core.data.digit_scenes import (
    SceneBatches,
    SceneConfig,
    draw_objects,
    extent,
    generate,
    read_digits,
)

_SCENE = SceneConfig(
    height=50, width=70, least=1, most=3, smallest=12.0, largest=30.0, clutter=4
)


@pytest.fixture(scope="module")
def digits(data_dir):
    return read_digits("validation", data_dir)


@pytest.fixture(scope="module")
def scenes(digits):
    draw = jax.jit(lambda key: generate(_SCENE, key, digits, 64))
    return {name: np.asarray(x) for name, x in draw(jax.random.key(0)).items()}


@pytest.fixture(scope="module")
def planes(digits):
    """The canvas of each digit of `scenes`, and the digits' labels."""
    image, label = jnp.asarray(digits["image"]), jnp.asarray(digits["label"])
    draw = jax.jit(jax.vmap(lambda key: draw_objects(_SCENE, key, image, label)))
    return tuple(np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 64)))


def test_boxes_are_the_extents_of_the_digits(scenes, planes):
    seen = 0
    for boxes, canvases in zip(scenes["boxes"], planes[0], strict=True):
        for box, canvas in zip(boxes, canvases, strict=True):
            rows, columns = np.nonzero(canvas)
            if not len(rows):
                assert (box == 0).all()
                continue
            seen += 1
            expected = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_array_equal(box, expected)
    assert 64 < seen < 3 * 64


def test_labels_follow_and_padding_is_last(scenes, planes):
    labels = scenes["labels"]
    np.testing.assert_array_equal(labels, planes[1])
    real = labels >= 0
    assert set(real.sum(1)) == {1, 2, 3}
    assert (np.diff(real.astype(int), axis=1) <= 0).all()
    assert ((scenes["boxes"] != 0).any(-1) == real).all()
    assert set(labels[real]) == set(range(10))


def test_sizes_are_in_range_and_scenes_show_their_digits(scenes, planes):
    boxes = scenes["boxes"][scenes["labels"] >= 0]
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    # A digit fills 20 of the 28 pixels of its image, and an edge is interpolated.
    assert sides.min() > 12 * 18 / 28
    assert sides.max() < 30 * 20 / 28 + 3
    assert scenes["image"].shape == (64, 50, 70, 1)
    assert scenes["image"].dtype == np.uint8
    assert (scenes["image"][..., 0] >= planes[0].max(1)).all()
    assert (scenes["image"][..., 0] > planes[0].max(1)).any()  # The clutter.


def test_few_digits_cover_each_other(scenes):
    touching = 0
    for boxes, labels in zip(scenes["boxes"], scenes["labels"], strict=True):
        real = boxes[labels >= 0]
        for i, a in enumerate(real):
            for b in real[:i]:
                low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
                touching += (high > low).all()
    assert touching < 10


def test_a_black_canvas_has_no_extent():
    assert (np.asarray(extent(jnp.zeros((4, 5), jnp.uint8))) == 0).all()
    dot = jnp.zeros((4, 5), jnp.uint8).at[3, 1].set(1)
    np.testing.assert_array_equal(extent(dot), [1, 3, 2, 4])


def test_no_digit_is_in_two_splits(data_dir):
    found = [read_digits(split, data_dir) for split in ("train", "validation", "test")]
    images = [{image.tobytes() for image in digits["image"]} for digits in found]
    assert not images[0] & images[1]
    assert not (images[0] | images[1]) & images[2]
    assert [len(digits["label"]) for digits in found] == [10_800, 1_200, 2_000]


def _make(config, digits, key):
    return generate(_SCENE, key, digits, 8)


def test_batches_are_drawn_anew_and_evaluation_is_fixed(digits):
    batches = SceneBatches(digits, _make, 8, eval_batches=2)
    assert isinstance(batches, Generated)
    assemble = jax.jit(batches.assemble)
    step = {name: x[0] for name, x in batches.train_inputs(0, 5, 1).items()}
    one, two = (
        assemble(None, batches.resident, step, jax.random.key(i)) for i in (0, 1)
    )
    assert (np.asarray(one["image"]) != np.asarray(two["image"])).any()
    first, second = batches.eval_inputs()
    fixed = [
        assemble(None, batches.resident, inputs, jax.random.key(i))
        for i, inputs in enumerate((first, first, second))
    ]
    np.testing.assert_array_equal(fixed[0]["image"], fixed[1]["image"])
    assert (np.asarray(fixed[0]["image"]) != np.asarray(fixed[2]["image"])).any()
    np.testing.assert_array_equal(fixed[0]["mask"], np.ones(8))
