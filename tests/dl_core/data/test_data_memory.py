"""A split in memory: decoded once, mapped afterwards, whole or absent."""

import concurrent.futures
import shutil

import numpy as np
import pytest

from dl_core.data import load, memory, open_source, prepare
from dl_core.errors import UserError


@pytest.fixture
def root(subset_dir, tmp_path):
    """A root with the prepared subset and no cache."""
    target = tmp_path / "mnist_subset"
    shutil.copytree(subset_dir / "mnist_subset", target)
    return tmp_path


def _never(source):
    raise AssertionError("decoded again")


def test_is_decoded_once_and_mapped(root, monkeypatch):
    first = load("mnist_subset", "test[:100]", root)
    monkeypatch.setattr(memory, "decode", _never)
    again = load("mnist_subset", "test[:100]", root)
    expected = open_source("mnist_subset", "test[:100]", root).read(np.arange(100))
    for arrays in (first, again):
        assert arrays.keys() == expected.keys()
        for field, array in arrays.items():
            assert isinstance(array, np.memmap)
            np.testing.assert_array_equal(array, expected[field])
    (cache,) = (root / "dl_core_cache/mnist_subset/1.0.0").glob("[!.]*")
    assert cache.name.startswith("test_100-")


def test_splits_do_not_share_a_cache(root):
    lengths = [
        len(load("mnist_subset", split, root)["label"])
        for split in ("test[:7]", "test[7:]", "test[:7%]")
    ]
    assert lengths == [7, 1_993, 140]


def test_a_cache_of_other_content_is_not_used(root, monkeypatch):
    load("mnist_subset", "test[:5]", root)
    checksums = root / "mnist_subset/1.0.0/dl_core_files.json"
    checksums.write_text(checksums.read_text().replace('"sha256": "', '"sha256": "0'))
    monkeypatch.setattr(memory, "decode", _never)
    with pytest.raises(AssertionError, match="decoded again"):
        load("mnist_subset", "test[:5]", root)


def test_a_transform_is_applied_and_not_cached(root):
    def flip(example):
        return {"image": example["image"][::-1], "outer": {"inner": example["label"]}}

    arrays = load("mnist_subset", "test[:20]", root, transform=flip)
    assert not (root / "dl_core_cache").exists()
    plain = load("mnist_subset", "test[:20]", root)
    np.testing.assert_array_equal(arrays["image"], plain["image"][:, ::-1])
    np.testing.assert_array_equal(arrays["outer/inner"], plain["label"])


def test_a_root_that_cannot_be_written(root):
    (root / "dl_core_cache").write_text("in the way")
    arrays = load("mnist_subset", "test[:20]", root)
    assert not isinstance(arrays["image"], np.memmap)
    assert arrays["image"].shape == (20, 28, 28, 1)


def test_a_write_that_fails_leaves_nothing(root, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        arrays = load("mnist_subset", "test[:20]", root)
    assert len(arrays["label"]) == 20
    assert [path.name for path in (root / "dl_core_cache").rglob("*test*")] == []
    assert isinstance(load("mnist_subset", "test[:20]", root)["label"], np.memmap)


def test_what_a_killed_process_left_is_replaced(root):
    load("mnist_subset", "test[:20]", root)
    (cache,) = (root / "dl_core_cache/mnist_subset/1.0.0").glob("test*")
    cache.rename(cache.with_name(f".{cache.name}"))
    (cache.with_name(f".{cache.name}") / "label.npy").write_bytes(b"half")
    assert len(load("mnist_subset", "test[:20]", root)["label"]) == 20
    assert not cache.with_name(f".{cache.name}").exists()


def test_many_at_once(root):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, "mnist_subset", "test[:300]", root) for _ in "abcd"]
        first, *others = [future.result() for future in loads]
    for other in others:
        np.testing.assert_array_equal(other["image"], first["image"])


def test_fields_across_chunks(make_data_set, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK", 2)
    name = make_data_set(
        "for n in range(5):\n    yield n, {'a/b': 'x' * n, 'c': {'d': [n]}}",
        "{'a/b': tfds.features.Text(), 'c': {'d': tfds.features.Tensor("
        "shape=(1,), dtype=np.float32)}}",
    )
    prepare(name, tmp_path)
    for _ in range(2):
        arrays = load(name, "train", tmp_path)
        assert arrays.keys() == {"a/b", "c/d"}
        assert arrays["a/b"].tolist() == [b"x" * n for n in range(5)]
        np.testing.assert_array_equal(arrays["c/d"], np.arange(5.0)[:, None])


def test_a_shape_that_varies_across_chunks(make_data_set, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK", 2)
    name = make_data_set(
        "for n in range(4):\n    yield n, {'x': [0] * (1 + n // 2)}",
        "{'x': tfds.features.Sequence(np.int64)}",
    )
    prepare(name, tmp_path)
    with pytest.raises(UserError, match="shape of 'x' varies"):
        load(name, "train", tmp_path)
    assert not list((tmp_path / "dl_core_cache").rglob("*.npy"))
