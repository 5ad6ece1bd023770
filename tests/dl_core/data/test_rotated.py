"""Digits turned at random: against SciPy, and what does not change from run to run."""

import inspect

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.data import load
from dl_core.data.rotated import rotate, rotated
from dl_core.errors import UserError


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    degrees=st.floats(-800, 800) | st.sampled_from((0.0, 90.0, 180.0, 270.0, -90.0)),
    seed=st.integers(0, 2**16),
)
def test_rotation_is_scipys(height, width, channels, degrees, seed):
    shape = (2, height, width, channels)
    images = np.random.default_rng(seed).uniform(-1, 1, shape)
    theirs = scipy.ndimage.rotate(
        images, degrees, (1, 2), order=1, reshape=False, mode="grid-constant"
    )
    ours = rotate(images, np.full(2, degrees))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("quarters", range(-4, 5))
def test_quarter_turns_change_no_pixel(size, quarters):
    images = np.random.default_rng(0).uniform(size=(3, size, size, 1))
    ours = rotate(images, np.full(3, 90.0 * quarters))
    np.testing.assert_array_equal(
        ours, np.rot90(images, quarters, (1, 2)).astype(np.float32)
    )


def test_each_image_has_its_own_angle():
    images = np.random.default_rng(0).uniform(size=(5_000, 3, 3, 1))
    degrees = np.arange(5_000) * 0.37
    ours = rotate(images, degrees)
    assert ours.shape == images.shape
    for i in (0, 1, 4_095, 4_096, 4_999):
        np.testing.assert_array_equal(
            ours[i], rotate(images[i : i + 1], degrees[i : i + 1])[0]
        )


def test_no_images_are_turned_to_none():
    assert rotate(np.zeros((0, 4, 4, 1)), np.zeros(0)).shape == (0, 4, 4, 1)


@pytest.mark.parametrize("shapes", [((2, 4, 4), (2,)), ((2, 4, 4, 1), (3,))])
def test_shapes_that_do_not_fit_are_told(shapes):
    images, degrees = map(np.zeros, shapes)
    with pytest.raises(ValueError, match=r"rotate: .*\(2, 4, 4"):
        inspect.unwrap(rotate)(images, degrees)


def test_the_sets_are_disjoint_images_of_both_splits(data_dir):
    sets = rotated("mnist_subset", data_dir, 30, 20, 13_950)
    assert [len(s["label"]) for s in sets.values()] == [30, 20, 13_950]
    both = np.concatenate(
        [load("mnist_subset", split, data_dir)["image"] for split in ("train", "test")]
    )
    dealt = np.concatenate([s["upright"] for s in sets.values()])
    assert sorted(x.tobytes() for x in dealt) == sorted(x.tobytes() for x in both)


def test_the_images_are_the_upright_ones_turned(data_dir):
    sets = rotated("mnist_subset", data_dir, 300, 20, 20)
    image, upright = (sets["train"][f] for f in ("image", "upright"))
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert 0.9 < image.max() < 1 + 1e-6
    # Turning keeps the distance of the ink from the centre, on the whole.
    y, x = np.indices((28, 28)) - 13.5
    radius = np.hypot(y, x)[..., None]
    spread, before = (
        (x * radius).sum((1, 2, 3)) / x.sum((1, 2, 3)) for x in (image, upright / 255)
    )
    np.testing.assert_allclose(spread, before, rtol=0.02)
    assert np.median(np.abs(image - upright / 255).max((1, 2, 3))) > 0.9


def test_the_angles_are_uniform(monkeypatch, data_dir):
    from dl_core.data import rotated as module

    seen = []
    monkeypatch.setattr(
        module, "rotate", lambda images, degrees: seen.append(degrees) or images
    )
    module._rotated.cache_clear()
    module.rotated("mnist_subset", data_dir, 2_000, 10, 10)
    module._rotated.cache_clear()
    counts, _ = np.histogram(seen[0], bins=8, range=(0, 360))
    assert counts.sum() == 2_020
    assert counts.min() > 200


def test_the_same_is_made_again(data_dir):
    from dl_core.data import rotated as module

    first = module._rotated("mnist_subset", str(data_dir), 50, 10, 10)
    again = module._rotated.__wrapped__("mnist_subset", str(data_dir), 50, 10, 10)
    assert first is not again
    for name, fields in first.items():
        for field, array in fields.items():
            np.testing.assert_array_equal(array, again[name][field])


def test_too_many_are_refused(data_dir):
    with pytest.raises(UserError, match="holds 14,000"):
        rotated("mnist_subset", data_dir, 12_000, 2_000, 1)
