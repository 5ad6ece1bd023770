"""The embedded photographs of blood cells are the official ones at half their size."""

import hashlib
import io
import pathlib
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import dl_core.data
from dl_core.data import load, prepare
from dl_core.data.blood_cells import LABELS, photographs, read

_FOLDER = pathlib.Path(dl_core.data.__file__).parent / "bccd_small"
_SIZES = {"train": 205, "validation": 87, "test": 72}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_WITHOUT_AREA = {"BloodImage_00338", "BloodImage_00343"}
# SHA-256 of the boxes, then the labels, split by split.
_CELLS = "97a0223e37597ddc952236a7e917c46741bd92f628af2ca5df1b5d931fda63ce"


@pytest.fixture(scope="module")
def cells_dir(tmp_path_factory):
    """A root in which `bccd_small` is prepared; not to be changed."""
    root = tmp_path_factory.mktemp("cells")
    prepare("bccd_small", root, offline=True, log=lambda line: None)
    return root


@pytest.fixture(scope="module")
def sets(cells_dir):
    return {split: load("bccd_small", split, cells_dir) for split in _SIZES}


@pytest.fixture(scope="module")
def official(official_mnist):
    """The folder of the official photographs, XML files and lists."""
    folder = official_mnist.parent / "bccd/BCCD"
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED AGAINST THE OFFICIAL BCCD: there is no {folder}")
    return folder


def test_splits_shapes_and_types(sets):
    for split, count in _SIZES.items():
        arrays = sets[split]
        assert arrays["image"].shape == (count, 240, 320, 3)
        assert arrays["image"].dtype == np.uint8
        assert arrays["boxes"].shape == (count, 30, 4)
        assert arrays["boxes"].dtype == np.float32
        assert arrays["labels"].shape == (count, 30)
        assert arrays["labels"].dtype == np.int64
    names = np.concatenate([arrays["name"] for arrays in sets.values()])
    assert len(set(names)) == 364


def test_boxes_lie_in_the_photographs_and_padding_follows(sets):
    counts = np.zeros(3, int)
    for arrays in sets.values():
        boxes, labels = arrays["boxes"], arrays["labels"]
        real = labels >= 0
        assert (np.diff(real.astype(int), axis=1) <= 0).all()
        assert (boxes[~real] == 0).all()
        assert (labels[~real] == -1).all()
        corners = boxes[real]
        assert (corners[:, 2:] > corners[:, :2]).all()
        assert corners.min() >= 0
        assert (corners <= np.array([320, 240, 320, 240])).all()
        counts += np.bincount(labels[real], minlength=3)
    assert dict(zip(LABELS, counts, strict=True)) == {
        "RBC": 4_153,  # Two of 4,155 have no area.
        "WBC": 372,
        "Platelets": 361,
    }


def test_cells_are_pinned(sets):
    content = b"".join(
        sets[split][field].tobytes()
        for split in _SIZES
        for field in ("boxes", "labels")
    )
    assert hashlib.sha256(content).hexdigest() == _CELLS


def test_white_cells_are_where_the_boxes_say(sets):
    """The stained nucleus makes what is inside a white cell's box bluer than red."""
    image, boxes, labels = (sets["test"][f] for f in ("image", "boxes", "labels"))
    bluer = {0: [], 1: []}
    for photograph, corners, kinds in zip(image, boxes, labels, strict=True):
        for (x0, y0, x1, y1), kind in zip(corners.astype(int), kinds, strict=True):
            if kind in bluer:
                inside = photograph[y0:y1, x0:x1].astype(float).mean((0, 1))
                bluer[kind].append(inside[2] - inside[0])
    assert np.mean(np.array(bluer[1]) > 0) > 0.9
    assert np.mean(np.array(bluer[0]) < 0) > 0.8


@pytest.mark.parametrize(
    ("split", "file"), [("train", "train"), ("validation", "val"), ("test", "test")]
)
def test_is_the_official_set_at_half_its_size(split, file, official, sets):
    names = (official / f"ImageSets/Main/{file}.txt").read_text().split()
    arrays = sets[split]
    assert [name.decode() for name in arrays["name"]] == names
    dropped = set()
    for row, name in enumerate(names):
        found = []
        for thing in ElementTree.parse(official / f"Annotations/{name}.xml").iter(
            "object"
        ):
            corners = [int(thing.find("bndbox").find(k).text) for k in _CORNERS]
            if corners[0] == corners[2] or corners[1] == corners[3]:
                dropped.add(name)
            else:
                found.append((LABELS.index(thing.find("name").text), *corners))
        labels, boxes = arrays["labels"][row], arrays["boxes"][row]
        ours = np.column_stack([labels, 2 * boxes])[labels >= 0]
        np.testing.assert_array_equal(ours, found)
    assert dropped == _WITHOUT_AREA & set(names)
    for row in range(0, len(names), 20):
        theirs = Image.open(official / f"JPEGImages/{names[row]}.jpg")
        theirs = np.asarray(theirs.reduce(2), float)
        assert np.abs(theirs - arrays["image"][row]).mean() < 4


def test_the_files_are_read_alike_without_tfds(sets):
    np.testing.assert_array_equal(photographs("test"), sets["test"]["image"])
    for row, photograph in enumerate(read("test")):
        count = len(photograph.labels)
        np.testing.assert_array_equal(
            sets["test"]["boxes"][row, :count], photograph.boxes
        )
        np.testing.assert_array_equal(
            sets["test"]["labels"][row, :count], photograph.labels
        )
        assert sets["test"]["name"][row].decode() == photograph.name


def test_files_are_small_and_reproducible():
    assert sum(file.stat().st_size for file in _FOLDER.glob("*.*")) < 5e6
    with zipfile.ZipFile(_FOLDER / "images.zip") as archive:
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            image = Image.open(io.BytesIO(archive.read(info)))
            assert image.format == "JPEG"
            assert image.size == (320, 240)


def test_prepared_folder_carries_the_licence(cells_dir):
    text = (cells_dir / "bccd_small/1.0.0/LICENSE").read_text()
    assert text.strip() == (_FOLDER / "LICENSE").read_text().strip()
    for part in ("MIT License", "shenggan", "BloodImage_00338", "320x240"):
        assert part in text
    info = (cells_dir / "bccd_small/1.0.0/dataset_info.json").read_text()
    assert all(name in info for name in _WITHOUT_AREA)
