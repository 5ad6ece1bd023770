"""Piano rolls: the chorales that ship, padding, and files that are something else."""

import hashlib

import numpy as np
import pytest
from scipy.io import savemat

from dl_core.data import load, prepare
from dl_core.data.music import CHORALES, KEYS, padded, read
from dl_core.errors import UserError

_SIZES = {"train": 229, "validation": 76, "test": 77}
_FRAMES = {"train": 13_807, "validation": 4_602, "test": 4_725}
_NOTES = {"train": 53_824, "validation": 17_811, "test": 18_367}
_FILE = "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"


@pytest.fixture(scope="module")
def chorales_dir(tmp_path_factory):
    """A root in which `jsb_chorales` is prepared; not to be changed."""
    root = tmp_path_factory.mktemp("chorales")
    prepare("jsb_chorales", root, offline=True, log=lambda line: None)
    return root


def test_the_file_is_the_authors():
    digest = hashlib.sha256(CHORALES.read_bytes()).hexdigest()
    assert digest == _FILE


@pytest.mark.parametrize("split", list(_SIZES))
def test_chorales_are_in_four_parts(split):
    pieces = read()[split]
    assert len(pieces) == _SIZES[split]
    assert sum(map(len, pieces)) == _FRAMES[split]
    assert sum(int(piece.sum()) for piece in pieces) == _NOTES[split]
    for piece in pieces:
        assert piece.shape[1] == KEYS
        assert piece.dtype == np.uint8
        assert set(np.unique(piece)) == {0, 1}
        assert piece.sum(1).max() <= 4


@pytest.mark.parametrize("split", list(_SIZES))
def test_the_data_set_is_the_file(split, chorales_dir):
    arrays, pieces = load("jsb_chorales", split, chorales_dir), read()[split]
    assert len(arrays["roll"]) == len(pieces)
    for roll, length, piece in zip(
        arrays["roll"], arrays["length"], pieces, strict=True
    ):
        np.testing.assert_array_equal(roll[:length], piece)
        assert not roll[length:].any()


def test_the_prepared_folder_carries_the_licence(chorales_dir):
    text = (chorales_dir / "jsb_chorales/1.0.0/LICENSE").read_text()
    assert text.strip() == (CHORALES.parent / "LICENSE").read_text().strip()
    for part in ("MIT License", "CMU Locus Lab", "Boulanger-Lewandowski", "Bach"):
        assert part in text


def test_padding_follows_the_pieces():
    pieces = [np.ones((frames, KEYS), np.uint8) for frames in (3, 5, 2)]
    arrays = padded(pieces)
    np.testing.assert_array_equal(arrays["length"], [3, 5, 2])
    assert arrays["roll"].shape == (3, 5, KEYS)
    np.testing.assert_array_equal(arrays["roll"].sum((1, 2)), [264, 440, 176])
    np.testing.assert_array_equal(arrays["roll"][2, 2:], 0)
    assert padded(pieces, 9)["roll"].shape == (3, 9, KEYS)


def cells(*pieces):
    """Returns a row of cells, as the files hold them."""
    row = np.empty((1, len(pieces)), object)
    for number, piece in enumerate(pieces):
        row[0, number] = piece
    return row


def written(path, **changes):
    """Writes a file in the form of the four collections."""
    roll = np.eye(KEYS)[:4]
    names = ("traindata", "validdata", "testdata")
    content = {name: cells(roll, roll[:2]) for name in names} | changes
    savemat(path, {name: x for name, x in content.items() if x is not None})
    return str(path)


def test_another_collection_is_read_from_a_path(tmp_path):
    splits = read(written(tmp_path / "some.mat"))
    assert list(splits) == ["train", "validation", "test"]
    for pieces in splits.values():
        assert [piece.shape for piece in pieces] == [(4, KEYS), (2, KEYS)]
        np.testing.assert_array_equal(pieces[0], np.eye(KEYS)[:4])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"testdata": None}, "testdata"),
        ({"testdata": cells(np.eye(87))}, r"shape \(87, 87\)"),
        ({"testdata": cells(np.ones((1, KEYS)))}, r"shape \(1, 88\)"),
        ({"testdata": cells(np.eye(KEYS) * 60)}, "from 0.0 to 60.0"),
    ],
)
def test_other_files_are_refused_in_one_sentence(changes, sentence, tmp_path):
    path = written(tmp_path / "other.mat", **changes)
    with pytest.raises(UserError, match=sentence) as error:
        read(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_text_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(str(tmp_path / "none.mat"))
    text = tmp_path / "text.mat"
    text.write_text("not a file of MATLAB, but longer than its header is: " * 9)
    with pytest.raises(UserError, match=r"no \.mat file of piano rolls"):
        read(str(text))
