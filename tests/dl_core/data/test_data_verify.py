"""Verifying finds a changed byte, and a record that cannot be read."""

import shutil

import pytest

from dl_core.data import verify
from dl_core.data.folders import CHECKSUMS
from dl_core.errors import UserError

_SHARD = "mnist_subset-train.array_record-00000-of-00001"


@pytest.fixture
def copy(subset_dir, tmp_path):
    """A copy of the prepared subset, to be damaged."""
    target = tmp_path / "mnist_subset/1.0.0"
    return shutil.copytree(subset_dir / "mnist_subset/1.0.0", target)


def _flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_a_whole_data_set(subset_dir):
    lines = []
    verify("mnist_subset", subset_dir, lines.append)
    assert [line.split(":")[0] for line in lines[1:]] == ["train", "test"]
    assert "5 files" in lines[0]
    assert "all 12,000 records" in lines[1]


def test_a_flipped_byte_is_found(copy, tmp_path):
    _flip(copy / _SHARD, (copy / _SHARD).stat().st_size - 1)
    with pytest.raises(UserError, match=f"{_SHARD} is damaged"):
        verify("mnist_subset", tmp_path, print)


def test_a_record_that_cannot_be_read_is_named(copy, tmp_path):
    (copy / CHECKSUMS).unlink()
    _flip(copy / _SHARD, (copy / _SHARD).stat().st_size // 2)
    lines = []
    with pytest.raises(UserError, match=r"record \d+ of train in .* cannot be read"):
        verify("mnist_subset", tmp_path, lines.append)
    assert "no checksums were recorded" in lines[0]


def test_an_image_that_cannot_be_decoded_is_named(make_data_set, tmp_path):
    from dl_core.data import prepare

    body = """\
for row in range(3):
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    yield row, {"image": file.getvalue() if row != 1 else b"no image"}
"""
    name = make_data_set(body, "{'image': tfds.features.Image(shape=(4, 4, 1))}")
    prepare(name, tmp_path)
    with pytest.raises(UserError, match=r"record 1 of train .*UnidentifiedImageError"):
        verify(name, tmp_path)


def test_what_is_not_prepared(tmp_path):
    with pytest.raises(UserError, match="'mnist_subset' is not prepared in"):
        verify("mnist_subset", tmp_path)
