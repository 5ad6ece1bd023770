"""The embedded subset is, pixel for pixel, every fifth image of MNIST."""

import hashlib
import pathlib

import numpy as np
import pytest

import dl_core.data
from dl_core.data import load

_FOLDER = pathlib.Path(dl_core.data.__file__).parent / "mnist_subset"
# SHA-256 of the pixels, then the labels, of every fifth official example.
_TRAIN = "ed219393394e913e179f70a198bc65340ecfc3aed353ce6ed0f08dcc15cb502d"
_TEST = "4eb317e922dd46c27e5146e2d5d07b0504e518f054a31a1dffcf2ff18e680c60"


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_is_every_fifth_official_image(split, prefix, subset_dir, read_official):
    images = read_official(f"{prefix}-images-idx3-ubyte", 16, (28, 28, 1))[::5]
    labels = read_official(f"{prefix}-labels-idx1-ubyte", 8)[::5]
    arrays = load("mnist_subset", split, subset_dir)
    np.testing.assert_array_equal(arrays["image"], images)
    np.testing.assert_array_equal(arrays["label"], labels)


@pytest.mark.parametrize(
    ("split", "count", "digest"),
    [("train", 12_000, _TRAIN), ("test", 2_000, _TEST)],
)
def test_content_is_pinned(split, count, digest, subset_dir):
    arrays = load("mnist_subset", split, subset_dir)
    assert arrays["image"].shape == (count, 28, 28, 1)
    assert set(np.unique(arrays["label"])) == set(range(10))
    content = arrays["image"].tobytes() + arrays["label"].astype(np.uint8).tobytes()
    assert hashlib.sha256(content).hexdigest() == digest


def test_files_are_small_and_reproducible():
    files = sorted(_FOLDER.glob("*.gz"))
    assert len(files) == 4
    assert sum(file.stat().st_size for file in files) < 3e6
    for file in files:
        assert file.read_bytes()[4:8] == bytes(4), "gzip's time stamp is not zero"


def test_prepared_folder_carries_the_licence(subset_dir):
    text = (subset_dir / "mnist_subset/1.0.0/LICENSE").read_text()
    assert text.strip() == (_FOLDER / "LICENSE").read_text().strip()
    for part in ("CC BY-SA 3.0", "LeCun", "Cortes", "Burges", "every fifth"):
        assert part in text
