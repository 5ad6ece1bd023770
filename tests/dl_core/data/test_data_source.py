"""Random access: slices, batches, nested and varying fields, threads, processes."""

import concurrent.futures
import functools
import multiprocessing
import operator
import pickle

import numpy as np
import pytest

from dl_core.data import Source, decoded_bytes, load, open_source, prepare
from dl_core.errors import UserError

_SHAPES_BODY = """\
def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

for row in range(5):
    labels = Image.new("P", (3, 2), row)
    labels.putpalette(bytes(3 * [255 - n for n in range(256)]))
    yield row, {
        "image": png(Image.new("RGB", (4 + row, 3), (row, 1, 2))),
        "labels": png(labels),
        "pages": [png(Image.new("L", (2, 2), 10 * row + n)) for n in range(2)],
        "objects": [{"box": [0.0, 0.5, n, 1.0], "kind": n} for n in range(row)],
        "nested": {"text": "é" * row},
        "words": ["a" * row, "b"],
    }
"""
_SHAPES_FEATURES = """{
    "image": tfds.features.Image(),
    "labels": tfds.features.LabeledImage(labels=256, shape=(2, 3, 1)),
    "pages": tfds.features.Sequence(tfds.features.Image(shape=(2, 2, 1))),
    "objects": tfds.features.Sequence(
        {"box": tfds.features.Tensor(shape=(4,), dtype=np.float32), "kind": np.int64}
    ),
    "nested": {"text": tfds.features.Text()},
    "words": tfds.features.Tensor(shape=(2,), dtype=np.object_),
}"""


@pytest.fixture
def shapes(make_data_set, tmp_path):
    """Opens a made data set with fields that vary in shape, nest, and hold images."""
    name = make_data_set(_SHAPES_BODY, _SHAPES_FEATURES)
    prepare(name, tmp_path)
    return lambda transform=None: open_source(
        name, "train", tmp_path, transform=transform
    )


def _crop(example):
    return {
        "image": example["image"][:2, :2],
        "labels": example["labels"],
        "count": len(example["objects"]["kind"]),
        "nested": example["nested"],
        "words": example["words"],
        "pages": example["pages"],
    }


@pytest.fixture(scope="module")
def subset(subset_dir):
    return load("mnist_subset", "train", subset_dir)


def test_reads_at_random(subset_dir, subset):
    source = open_source("mnist_subset", "train", subset_dir)
    assert len(source) == 12_000
    assert source.features["label"].num_classes == 10
    indices = np.random.default_rng(0).integers(0, 12_000, 64)
    batch = source.read(indices)
    assert batch.keys() == {"image", "label"}
    assert batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"], subset["image"][indices])
    np.testing.assert_array_equal(batch["label"], subset["label"][indices])


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train[:90%]", slice(0, 10_800)),
        ("train[90%:]", slice(10_800, None)),
        ("train[100:103]", slice(100, 103)),
    ],
)
def test_slices(split, rows, subset_dir, subset):
    source = open_source("mnist_subset", split, subset_dir)
    expected = {field: array[rows] for field, array in subset.items()}
    assert len(source) == len(expected["label"])
    ends = np.array([0, len(source) - 1])
    for field, values in source.read(ends).items():
        np.testing.assert_array_equal(values, expected[field][ends])


def test_sums_of_splits(subset_dir):
    source = open_source("mnist_subset", "test[:10]+train[:5]", subset_dir)
    parts = [load("mnist_subset", split, subset_dir) for split in ("test", "train")]
    expected = np.concatenate([parts[0]["label"][:10], parts[1]["label"][:5]])
    np.testing.assert_array_equal(source.read(np.arange(15))["label"], expected)


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("tran", r"no split 'tran' \(it has train \(12,000\), .*did you mean 'train'"),
        ("train[:5]+tst", r"no split 'tst' .*did you mean 'test'"),
        ("train[:90", "write it as 'train', 'train\\[:90%\\]'"),
        ("train[99999:]", "incompatible with 12000 examples"),
        ("train[:0]", "holds no example"),
    ],
)
def test_a_split_that_cannot_be_read(split, sentence, subset_dir):
    with pytest.raises(UserError, match=sentence) as error:
        open_source("mnist_subset", split, subset_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("indices", [[-1, 3], [12_000], [0, 99_999]])
def test_positions_outside_the_split(indices, subset_dir):
    source = open_source("mnist_subset", "train", subset_dir)
    with pytest.raises(IndexError, match="examples 0 to 11999"):
        source.read(np.array(indices))


def test_many_threads(subset_dir, subset):
    source = open_source("mnist_subset", "train", subset_dir)
    batches = np.random.default_rng(0).integers(0, 12_000, (64, 32))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for indices, batch in zip(batches, pool.map(source.read, batches), strict=True):
            np.testing.assert_array_equal(batch["image"], subset["image"][indices])


def test_a_worker_process(subset_dir, subset):
    # The transform has to be importable there, which a test's own functions may not be.
    transform = functools.partial(operator.or_, {"added": 7})
    source = open_source("mnist_subset", "train", subset_dir, transform=transform)
    assert repr(pickle.loads(pickle.dumps(source))) == repr(source)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        batch = pool.submit(Source.read, source, np.arange(8)).result(timeout=60)
    np.testing.assert_array_equal(batch["image"], subset["image"][:8])
    np.testing.assert_array_equal(batch["added"], [7] * 8)


def test_a_varying_shape_needs_a_transform(shapes):
    with pytest.raises(UserError, match=r"shape of 'image' varies .* give a transform"):
        shapes().read(np.arange(5))
    with pytest.raises(UserError, match="shape of 'objects/box' varies"):
        shapes(lambda example: {"objects": example["objects"]}).read(np.arange(5))
    with pytest.raises(UserError, match="'none' varies"):
        shapes(lambda example: {"none": None}).read(np.arange(5))


def test_what_a_transform_sees_and_what_is_made_of_it(shapes):
    batch = shapes(_crop).read(np.arange(5))
    rows = np.arange(5)
    np.testing.assert_array_equal(batch["image"][:, 1, 1, 0], rows)
    np.testing.assert_array_equal(batch["count"], rows)
    np.testing.assert_array_equal(batch["labels"][:, 1, 2, 0], rows)
    np.testing.assert_array_equal(batch["pages"][:, 1, 0, 0, 0], 10 * rows + 1)
    assert batch["pages"].shape == (5, 2, 2, 2, 1)
    assert [text.decode() for text in batch["nested/text"]] == ["é" * n for n in rows]
    assert batch["words"].tolist() == [[b"a" * n, b"b"] for n in rows]
    assert not any(array.dtype == object for array in batch.values())


def test_decoded_bytes(subset_dir, shapes):
    source = open_source("mnist_subset", "test", subset_dir)
    assert decoded_bytes(source) == 2_000 * (28 * 28 + 8)
    images = shapes(lambda example: {"image": example["image"]})
    assert decoded_bytes(images) == sum(3 * (4 + row) * 3 for row in range(5))


def test_the_embedded_one_is_prepared_silently(tmp_path, capfd):
    source = open_source("mnist_subset", "test", tmp_path, offline=True)
    assert len(source) == 2_000
    assert capfd.readouterr() == ("", "")


def test_missing_data_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"'mnist' is missing: .* was not tried"):
        open_source("mnist", "train", tmp_path, offline=True)
