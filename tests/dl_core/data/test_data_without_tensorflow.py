"""TFDS builders that use TensorFlow's files, types and image encoding, without it."""

import gzip
import importlib.util
import sys

import numpy as np
import pytest

from dl_core.data import load, prepare
from dl_core.data.images import decode_image
from dl_core.data.without_tensorflow import without_tensorflow
from dl_core.errors import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None,
    reason="TensorFlow is installed, so nothing takes its place",
)
_NUMBERS = gzip.compress(b"7\n0\n255\n", mtime=0)


def test_downloads_extracts_and_encodes(server, make_numbers, tmp_path, capfd):
    address, folder = server
    (folder / "numbers.txt.gz").write_bytes(_NUMBERS)
    name = make_numbers(f"{address}/numbers.txt.gz", _NUMBERS)
    prepare(name, tmp_path / "root")
    arrays = load(name, "train", tmp_path / "root")
    np.testing.assert_array_equal(arrays["number"], [0, 1, 2])
    np.testing.assert_array_equal(arrays["image"][:, 1, 2, 0], [7, 0, 255])
    assert "tensorflow" not in sys.modules
    out, error = capfd.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["preparing", "prepared"]
    assert error == ""


def test_is_undone(make_data_set):
    name = make_data_set("yield 0, {'x': 0}", "{'x': np.int64}")
    module = sys.modules[name]
    real = module.tf
    with without_tensorflow(name):
        assert module.tf.int64 is np.int64
        assert module.tf is not real
    assert module.tf is real


def test_a_builder_that_computes_with_tensorflow_says_so(make_data_set, tmp_path):
    name = make_data_set("yield 0, {'x': tf.image.rgb_to_hsv(0)}", "{'x': np.int64}")
    with pytest.raises(UserError, match=r"computes with TensorFlow \(tf\.image\)") as e:
        prepare(name, tmp_path)
    assert name in str(e.value)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.rglob("incomplete.*"))


def test_files_are_read_as_tensorflow_reads_them(tmp_path):
    from tensorflow_datasets.core.download import extractor

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes("é\r\nü\rz\n".encode())
    (tmp_path / "a.txt").write_bytes(b"")
    with without_tensorflow("any"):
        gfile = extractor.tf.io.gfile
        with gfile.GFile(tmp_path / "b" / "x.txt") as file:
            assert list(file) == ["é\r\n", "ü\rz\n"]
        with gfile.GFile(str(tmp_path / "b" / "x.txt"), "rb") as file:
            assert file.read(2) == "é".encode()
        assert sorted(gfile.listdir(tmp_path)) == ["a.txt", "b"]
        assert gfile.glob(f"{tmp_path}/*.txt") == [str(tmp_path / "a.txt")]
        assert gfile.isdir(tmp_path / "b")
        gfile.copy(tmp_path / "b" / "x.txt", tmp_path / "y.txt")
        assert gfile.exists(tmp_path / "y.txt")
        with pytest.raises(FileExistsError, match="exists already"):
            gfile.copy(tmp_path / "a.txt", tmp_path / "y.txt")


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(1, np.uint8), (3, np.uint8), (4, np.uint8), (1, np.uint16), (1, np.float32)],
)
def test_encoded_arrays_come_back(channels, dtype):
    import tensorflow_datasets as tfds

    shape = (8, 9, channels)
    pixels = (1e4 * np.random.default_rng(0).random(shape)).astype(dtype)
    feature = tfds.features.Image(shape=shape, dtype=dtype)
    with without_tensorflow("any"):
        data = feature.encode_example(pixels)
    decoded = decode_image(data, channels, np.dtype(dtype))
    np.testing.assert_array_equal(decoded, pixels)


def test_jpeg_and_wrong_types():
    import tensorflow_datasets as tfds

    feature = tfds.features.Image(shape=(16, 16, 3), encoding_format="jpeg")
    with without_tensorflow("any"):
        data = feature.encode_example(np.full((16, 16, 3), 99, np.uint8))
        with pytest.raises(ValueError, match="dtype should be"):
            feature.encode_example(np.zeros((16, 16, 3), np.float32))
        with pytest.raises(ValueError, match="incompatible"):
            feature.encode_example(np.zeros((16, 15, 3), np.uint8))
    assert data[:2] == b"\xff\xd8"
    np.testing.assert_allclose(decode_image(data, 3), 99, atol=2)
