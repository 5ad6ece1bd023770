"""Pairs of images: edges against scikit-image, crops, and a user's mistakes told."""

import io
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import feature

from dl_core.data.blood_cells import photographs
from dl_core.data.pairs import (
    PairsConfig,
    canny,
    edges_to_photographs,
    grid_of_crops,
    jitter,
    load_pairs,
    reduced,
    side_by_side,
    to_unit,
)
from dl_core.errors import UserError


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    sigma=st.floats(0.3, 3),
    low=st.floats(0, 0.6),
    more=st.floats(0, 0.5),
    levels=st.sampled_from([2, 5, 256]),
    seed=st.integers(0, 2**16),
)
def test_edges_are_scikit_images(height, width, sigma, low, more, levels, seed):
    image = np.random.default_rng(seed).integers(levels, size=(height, width))
    image = image / (levels - 1)
    theirs = feature.canny(image, sigma, low, low + more, mode="nearest")
    np.testing.assert_array_equal(canny(image, sigma, low, low + more), theirs)


def test_edges_of_photographs_are_scikit_images():
    targets = reduced(photographs("test")[:12], 2)
    inputs = edges_to_photographs(targets)["input"]
    assert set(np.unique(inputs)) == {0, 255}
    for image, edges in zip(targets, inputs[..., 0], strict=True):
        grey = np.asarray(Image.fromarray(image).convert("L")) / 255
        theirs = feature.canny(grey, 1, 0.1, 0.2, mode="nearest")
        # Pillow's grey values are rounded.
        assert np.mean((edges == 0) != theirs) < 0.01
    assert 0.05 < np.mean(inputs == 0) < 0.2


def test_reduced_is_pillows():
    images = photographs("test")[:3]
    for image, ours in zip(images, reduced(images, 3), strict=True):
        theirs = np.asarray(Image.fromarray(image[:240, :318]).reduce(3), int)
        assert np.abs(theirs - ours).max() <= 1


def test_crops_for_tests_are_centred_and_cover_each_pixel_once():
    images = np.arange(2 * 11 * 14 * 1, dtype=np.int64).reshape(2, 11, 14, 1) % 256
    images = images.astype(np.uint8)
    crops = grid_of_crops(images, 4)
    assert crops.shape == (2 * 2 * 3, 4, 4, 1)
    np.testing.assert_array_equal(crops[0], images[0, 1:5, 1:5])
    np.testing.assert_array_equal(crops[1], images[0, 1:5, 5:9])
    np.testing.assert_array_equal(crops[3], images[0, 5:9, 1:5])
    np.testing.assert_array_equal(crops[-1], images[1, 5:9, 9:13])


def test_jitter_moves_both_images_alike():
    y, x = np.indices((10, 12)).astype(np.uint8)
    pairs = {
        "input": jnp.asarray(np.stack([[y], [x]], -1).repeat(64, 0)),
        "target": jnp.asarray((10 * y + x)[None, ..., None].repeat(64, 0)),
    }
    made = jax.jit(jitter, static_argnums=2)(jax.random.key(0), pairs, 8)
    rows, columns = np.moveaxis(np.asarray(made["input"]), -1, 0).astype(int)
    np.testing.assert_array_equal(made["target"][..., 0], 10 * rows + columns)
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    steps = np.diff(columns, axis=2)
    assert (steps == steps[:, :1, :1]).all()
    assert set(np.unique(steps)) == {-1, 1}
    tops, lefts = rows.min((1, 2)), columns.min((1, 2))
    assert set(tops) == {0, 1, 2}
    assert set(lefts) == {0, 1, 2, 3, 4}
    assert 16 < (steps[:, 0, 0] == 1).sum() < 48


def test_bytes_become_numbers_from_minus_one_to_one():
    ours = to_unit(jnp.array([0, 255, 51], jnp.uint8))
    np.testing.assert_allclose(ours, [-1, 1, -0.6], atol=1e-6)


def test_pairs_of_blood_cells():
    train = load_pairs(PairsConfig(), train=True)
    test = load_pairs(PairsConfig(), train=False)
    assert train["input"].shape == (205, 120, 160, 1)
    assert train["target"].shape == (205, 120, 160, 3)
    assert test["input"].shape == (144, 64, 64, 1)
    assert test["target"].shape == (144, 64, 64, 3)
    whole = reduced(photographs("test"), 2)
    np.testing.assert_array_equal(test["target"][1], whole[0, 28:92, 80:144])


def test_a_crop_larger_than_the_photographs_is_told():
    with pytest.raises(UserError, match=r"data.size=128: .* 120×160 pixels"):
        load_pairs(PairsConfig(size=128), train=True)


# Images side by side.


def encoded(left, right, size=(12, 8), kind="PNG"):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[:, : size[0] // 2], image[:, size[0] // 2 :] = left, right
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """A folder of pairs: train is a folder of three, val is a zip file of two."""
    (tmp_path / "train").mkdir()
    for number in range(3):
        content = encoded(10 * number, 200 + number)
        (tmp_path / f"train/{number}.png").write_bytes(content)
    (tmp_path / "train/notes.txt").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        archive.writestr("maps/b.jpg", encoded(90, 30, kind="JPEG"))
        archive.writestr("maps/a.jpg", encoded(60, 120, kind="JPEG"))
    return tmp_path


def test_left_and_right_of_a_folder_and_of_a_zip_file(folder):
    train = side_by_side(str(folder), "train", 4)
    assert train["input"].shape == train["target"].shape == (3, 4, 4, 3)
    assert train["input"][:, 0, 0, 0].tolist() == [0, 10, 20]
    assert train["target"][:, -1, -1, 2].tolist() == [200, 201, 202]
    val = side_by_side(str(folder), "val", 4, reverse=True)
    # JPEG changes values a little, and mixes both halves where they meet.
    np.testing.assert_allclose(val["input"][:, 0, 3, 0], [120, 30], atol=1)
    np.testing.assert_allclose(val["target"][:, 0, 0, 0], [60, 90], atol=1)


def test_training_images_are_larger_than_what_is_seen(folder):
    chosen = PairsConfig(name="side_by_side", path=str(folder), size=64)
    assert load_pairs(chosen, train=True)["input"].shape == (3, 72, 72, 3)
    assert load_pairs(chosen, train=False)["input"].shape == (2, 64, 64, 3)


def spoil(folder, how):
    train = folder / "train"
    match how:
        case "no folder":
            shutil.rmtree(folder)
        case "no split":
            shutil.rmtree(train)
        case "no images":
            shutil.rmtree(train)
            train.mkdir()
        case "odd":
            for file in train.glob("*.png"):
                file.write_bytes(encoded(1, 2, (11, 8)))
        case "sizes":
            (train / "1.png").write_bytes(encoded(1, 2, (16, 8)))
        case "text":
            (train / "1.png").write_text("not an image")
        case "cut":
            content = (train / "1.png").read_bytes()
            (train / "1.png").write_bytes(content[:60])
        case "zip":
            shutil.rmtree(train)
            (folder / "train.zip").write_text("not a zip file")
        case "empty zip":
            shutil.rmtree(train)
            zipfile.ZipFile(folder / "train.zip", "w").close()


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("no folder", "--config.data.path={folder}: there is no such folder"),
        ("no split", "neither {folder}/train nor {folder}/train.zip"),
        ("no images", "{folder}/train holds no images (.jpg, .jpeg, .png)"),
        ("odd", "{folder}/train/0.png: two images side by side have an even width"),
        ("sizes", "{folder}/train/1.png: all images must have one size, this has 16×8"),
        ("text", "{folder}/train/1.png cannot be read as an image"),
        ("cut", "{folder}/train/1.png cannot be read as an image"),
        ("zip", "{folder}/train.zip is not a whole zip file"),
        ("empty zip", "{folder}/train.zip holds no images"),
    ],
)
def test_what_is_wrong_with_the_files_is_told(folder, how, text):
    spoil(folder, how)
    with pytest.raises(UserError) as error:
        side_by_side(str(folder), "train", 4)
    assert text.format(folder=folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_path_is_told():
    chosen = PairsConfig(name="side_by_side")
    with pytest.raises(
        UserError, match=r"data.path: .*folder that holds train and val"
    ):
        load_pairs(chosen, train=True)
