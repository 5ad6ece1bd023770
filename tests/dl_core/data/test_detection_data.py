"""Batches for detectors: all images, boxes that follow them, pictures of a user's."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dl_core.config import RunConfig, config, nested
from dl_core.data.detection import (
    DetectionData,
    classes,
    detection_data,
    normalize,
    read_image,
    to_input,
)
from dl_core.data.detection_augment import augment
from dl_core.errors import UserError
from dl_core.ops.proposals import ProposalConfig

_SIZE = {"height": 24, "width": 32}
_COUNTS = {"train": (205, 2_804), "validation": (87, 1_137), "test": (72, 945)}
_FIELDS = {"image", "boxes", "labels", "difficult", "scale", "example"}


@config
class _Config(RunConfig):
    data: DetectionData = nested(DetectionData)


def _settings(**changes):
    return _Config(batch_size=8, data=DetectionData(**{**_SIZE, **changes}))


_compiled = functools.cache(jax.jit)


def _step(config, batches, seed=0):
    inputs = {name: x[0] for name, x in batches.train_inputs(seed, 0, 1).items()}
    key = jax.random.key(seed)
    return _compiled(batches.assemble)(config, batches.resident, inputs, key)


@pytest.fixture(scope="module")
def plain(data_dir):
    return detection_data(_settings(augment="none"), data_dir)


def test_all_images_and_boxes_are_there(plain):
    sets = {"train": plain.train, **plain.evaluation}
    assert sets.keys() == _COUNTS.keys()
    for name, (images, boxes) in _COUNTS.items():
        resident = sets[name].resident
        assert resident["image"].shape == (images, 24, 32, 3)
        assert resident["image"].dtype == np.uint8
        assert (resident["labels"] >= 0).sum() == boxes
    assert sum(boxes for _, boxes in _COUNTS.values()) == 4_886


def test_a_batch_has_all_fields_in_the_units_they_say(plain):
    batch = _step(_settings(augment="none"), plain.train)
    assert set(batch) == _FIELDS
    assert batch["image"].dtype == jnp.float32
    assert -2 <= batch["image"].min() < batch["image"].max() <= 2
    np.testing.assert_array_equal(batch["scale"], np.full((8, 2), 20))
    original = np.asarray(batch["boxes"]) * 20
    np.testing.assert_allclose(original, np.round(original), atol=1e-3)
    assert (np.asarray(batch["boxes"])[np.asarray(batch["labels"]) < 0] == 0).all()
    chosen = np.asarray(batch["example"])
    resident = plain.train.resident
    np.testing.assert_array_equal(batch["boxes"], resident["boxes"][chosen])
    np.testing.assert_allclose(
        batch["image"], (resident["image"][chosen] / 255 - 0.5) / 0.25, atol=1e-5
    )


def test_the_images_shown_are_the_first_of_the_test_set(plain):
    assert set(plain.shown) == _FIELDS
    test = plain.evaluation["test"].resident
    np.testing.assert_array_equal(plain.shown["boxes"], test["boxes"][:6])
    np.testing.assert_array_equal(plain.shown["image"], normalize(test["image"][:6]))


def test_few_examples_are_also_evaluated_on_as_they_are(data_dir):
    config = _settings(examples=5, evaluated=3)
    data = detection_data(config, data_dir)
    sizes = {name: batches.size for name, batches in data.evaluation.items()}
    assert sizes == {"train": 5, "validation": 3, "test": 3}
    assert data.train.size == 5
    (inputs,) = data.evaluation["train"].eval_inputs()
    batch = jax.jit(data.evaluation["train"].assemble)(
        config, data.train.resident, inputs, jax.random.key(0)
    )
    np.testing.assert_array_equal(batch["mask"], [1] * 5 + [0] * 3)
    with pytest.raises(UserError, match=r"300 images .* of 205"):
        detection_data(_settings(examples=300), data_dir)


def _rectangle(box):
    x_min, y_min, x_max, y_max = box
    image = np.zeros((48, 64, 3), np.uint8)
    image[y_min:y_max, x_min:x_max] = 255
    return {
        "image": jnp.asarray(image),
        "boxes": jnp.array([box, (0, 0, 0, 0)], jnp.float32),
        "labels": jnp.array([2, -1]),
        "difficult": jnp.array([True, False]),
        "proposals": jnp.array([box, box], jnp.float32),
        "proposal_mask": jnp.array([True, False]),
    }


@pytest.mark.parametrize("how", ["flip", "ssd", "yolo"])
def test_boxes_go_where_their_objects_go(how):
    settings = DetectionData(augment=how, distort=0.0, saturation=1.0, exposure=1.0)
    example = _rectangle((18, 12, 42, 30))
    moved = jax.jit(jax.vmap(lambda key: augment(settings, example, key)))(
        jax.random.split(jax.random.key(0), 60)
    )
    moved = {name: np.asarray(x) for name, x in moved.items()}
    seen = moved["labels"][:, 0] >= 0
    assert seen.mean() > 0.8
    for image, (box, other), real, proposal in zip(
        moved["image"], moved["boxes"], seen, moved["proposals"][:, 0], strict=True
    ):
        assert (other == 0).all()
        if not real:
            assert (box == 0).all()
            continue
        np.testing.assert_allclose(proposal, box, atol=1e-4)
        # What is outside has the mean colour, and the object is brighter by far.
        rows, columns = np.nonzero(image[..., 0] > 140)
        extent = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_allclose(box, extent, atol=1.6)
    np.testing.assert_array_equal(moved["difficult"][:, 0], seen)
    assert not moved["proposal_mask"][:, 1].any()
    assert len(np.unique(moved["boxes"][:, 0, 0].round())) > (1 if how == "flip" else 9)


def test_training_images_vary_with_the_key_alone(data_dir):
    config = _settings(augment="ssd", examples=8)
    data = detection_data(config, data_dir)
    one, same = (_step(config, data.train) for _ in range(2))
    other = _step(config, data.train, seed=1)
    np.testing.assert_array_equal(one["image"], same["image"])
    order = np.argsort(one["example"]), np.argsort(other["example"])
    assert (np.asarray(one["image"])[order[0]] != other["image"][order[1]]).any()


def test_proposals_come_with_the_images(data_dir, tmp_path):
    config = _settings(examples=8, evaluated=8, flip=1.0)
    few = ProposalConfig(most=20)
    data = detection_data(config, data_dir, proposals=few)
    batch = _step(config, data.train)
    assert batch["proposals"].shape == (8, 20, 4)
    resident = data.train.resident
    chosen = np.asarray(batch["example"])
    mirrored = resident["proposals"][chosen][..., [2, 1, 0, 3]]
    mirrored = mirrored * [-1, 1, -1, 1] + [32, 0, 32, 0]
    mask = resident["proposal_mask"][chosen]
    np.testing.assert_array_equal(batch["proposal_mask"], mask)
    np.testing.assert_allclose(np.asarray(batch["proposals"])[mask], mirrored[mask])
    assert {"proposals", "proposal_mask"} < set(data.shown)


def test_scenes_of_digits_are_a_data_set_too(data_dir):
    config = _settings(name="digit_scenes", evaluated=16)
    data = detection_data(config, data_dir)
    inputs = {name: x[0] for name, x in data.train.train_inputs(0, 0, 1).items()}
    batch = jax.eval_shape(
        data.train.assemble, config, data.train.resident, inputs, jax.random.key(0)
    )
    assert set(batch) == set(data.shown) == _FIELDS
    assert batch["image"].shape == (8, 24, 32, 3)
    assert (data.shown["labels"] >= 0).any(1).all()
    assert len(list(data.evaluation["test"].eval_inputs())) == 2
    assert len(classes(config.data)) == 10
    with pytest.raises(UserError, match="digit_scenes"):
        detection_data(_settings(name="digit_scenes", examples=8), data_dir)


def test_a_picture_becomes_an_input(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    picture = read_image(tmp_path / "picture.png")
    np.testing.assert_array_equal(picture, pixels)
    image, scale = to_input(picture, DetectionData(**_SIZE))
    assert image.shape == (24, 32, 3)
    np.testing.assert_array_equal(scale, [3, 2])
    np.testing.assert_allclose(
        image.mean(), (pixels.mean() / 255 - 0.5) / 0.25, atol=0.02
    )


def test_what_cannot_be_read_is_told_in_a_sentence(tmp_path, data_dir):
    with pytest.raises(UserError, match="there is no image"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as an image"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(UserError, match="has no boxes"):
        detection_data(_settings(name="mnist_subset", validation="test"), data_dir)
    with pytest.raises(UserError, match="has no boxes"):
        classes(DetectionData(name="mnist_subset"), data_dir)
    with pytest.raises(UserError, match=r"data\.path"):
        classes(DetectionData(name="voc_folder"), os.fspath(tmp_path))
