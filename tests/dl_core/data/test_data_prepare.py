"""Preparing: from official files, by download, at once by two, after a kill."""

import collections
import gzip
import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dl_core.data import default_data_dir, load, network, prepared
from dl_core.data.folders import CHECKSUMS, find, fingerprint
from dl_core.data.prepare import prepare
from dl_core.errors import UserError
from dl_core.files import locked

_MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@pytest.fixture
def no_network(monkeypatch):
    """Fails the test that asks the network."""

    def ask(url):
        raise AssertionError(f"the network was asked for {url}")

    monkeypatch.setattr(network, "why_unreachable", ask)


def _start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.data", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_mnist_is_the_official_mnist(split, prefix, mnist_dir, read_official):
    images = read_official(f"{prefix}-images-idx3-ubyte", 16, (784,))
    labels = read_official(f"{prefix}-labels-idx1-ubyte", 8)
    arrays = load("mnist", split, mnist_dir)

    def count(images, labels):  # TFDS shuffles, by keys of its own
        return collections.Counter(
            image.tobytes() + bytes([label])
            for image, label in zip(images, labels, strict=True)
        )

    assert count(arrays["image"], arrays["label"]) == count(images, labels)
    assert "tensorflow" not in sys.modules


def test_nothing_half_done_is_left(mnist_dir):
    assert not (mnist_dir / "downloads/mnist/extracted").exists()
    assert not list(mnist_dir.rglob("incomplete.*"))
    recorded = json.loads((mnist_dir / "mnist/3.0.1" / CHECKSUMS).read_text())["files"]
    files = {path.name for path in (mnist_dir / "mnist/3.0.1").iterdir()}
    assert set(recorded) == files - {CHECKSUMS}


def test_a_prepared_data_set_is_found_at_once(subset_dir, monkeypatch):
    module = sys.modules["dl_core.data.prepare"]
    monkeypatch.setattr(module, "make_builder", None)
    lines = []
    start = time.monotonic()
    folder = prepare("mnist_subset", subset_dir, log=lines.append)
    assert time.monotonic() - start < 0.5
    assert folder == subset_dir / "mnist_subset/1.0.0"
    assert "already" in lines[0]


@pytest.mark.parametrize("position", [0, 5_000, -1])
def test_a_wrong_byte_in_an_official_file_is_refused(
    position, official_mnist, tmp_path
):
    files = tmp_path / "files"
    files.mkdir()
    for name in _MNIST_FILES:
        shutil.copyfile(official_mnist / name, files / name)
    bad = files / "train-labels-idx1-ubyte.gz"
    data = bytearray(bad.read_bytes())
    data[position] ^= 1
    bad.write_bytes(data)
    with pytest.raises(UserError) as error:
        prepare("mnist", tmp_path / "root", manual_dir=files, offline=True)
    text = str(error.value)
    assert str(bad) in text
    assert text.count("28881 bytes") == 2
    assert "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c" in text
    assert text.count("sha256") == 2
    assert find("mnist", tmp_path / "root") is None


def test_missing_and_offline_says_what_where_and_how(tmp_path, no_network):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        prepare("mnist", tmp_path, offline=True)
    assert time.monotonic() - start < 10
    text = str(error.value)
    for part in (
        f"'mnist' is missing: {tmp_path}/mnist/3.0.1 does not exist",
        "the network was not tried",
        "python -m launch.data prepare mnist",
        f"copy the folder mnist into {tmp_path}",
        "--manual_dir",
        "train-images-idx3-ubyte.gz: 9,912,422 bytes, sha256 440fcabf73cc546fa21475e8",
        "mnist_subset",
    ):
        assert part in text
    assert all(name in text for name in _MNIST_FILES)
    assert "\n" not in text


def test_offline_by_the_environment(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("DL_CORE_OFFLINE", "1")
    with pytest.raises(UserError, match="the network was not tried"):
        prepare("mnist", tmp_path)


def test_a_file_missing_in_the_folder_is_named(tmp_path, no_network, official_mnist):
    files = tmp_path / "files"
    files.mkdir()
    for name in set(_MNIST_FILES) - {"t10k-labels-idx1-ubyte.gz"}:
        (files / name).symlink_to(official_mnist / name)
    with pytest.raises(UserError) as error:
        prepare("mnist", tmp_path / "root", manual_dir=files, offline=True)
    assert f"t10k-labels-idx1-ubyte.gz is not in {files}" in str(error.value)


def test_no_network_is_found_out_in_seconds(server, make_numbers, tmp_path):
    address, _ = server
    closed = address.rpartition(":")[0] + ":9"
    name = make_numbers(f"{closed}/numbers.txt.gz", b"")
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"the network was tried: .*could not be reached"
    ):
        prepare(name, tmp_path)
    assert time.monotonic() - start < 10


def test_a_server_that_answers_no(server, make_numbers, tmp_path):
    name = make_numbers(f"{server[0]}/nothing.txt.gz", b"")
    with pytest.raises(
        UserError, match=r"the network was tried: 127\.0\.0\.1 answ.* 404"
    ):
        prepare(name, tmp_path)


def test_a_host_that_never_answers(monkeypatch):
    monkeypatch.setattr(network, "DEADLINE", 0.1)
    monkeypatch.setattr(network, "_ask", lambda url: time.sleep(5))
    start = time.monotonic()
    assert network.why_unreachable("http://host/file") == "host did not answer in 0.1 s"
    assert time.monotonic() - start < 2


def test_a_download_with_a_wrong_checksum_is_refused(server, make_numbers, tmp_path):
    address, folder = server
    (folder / "numbers.txt.gz").write_bytes(gzip.compress(b"1\n", mtime=0))
    content = gzip.compress(b"2\n", mtime=0)
    name = make_numbers(f"{address}/numbers.txt.gz", content)
    with pytest.raises(UserError, match="wrong checksum") as error:
        prepare(name, tmp_path / "root")
    assert "\n" not in str(error.value)
    assert find(name, tmp_path / "root") is None


def test_files_of_one_name_in_two_data_sets_are_not_mixed(make_numbers, tmp_path):
    # tensorflow/datasets#2267: the second would get the first one's bytes.
    for number in (3, 4):
        files = tmp_path / str(number)
        files.mkdir()
        content = gzip.compress(f"{number}\n".encode(), mtime=0)
        (files / "numbers.txt.gz").write_bytes(content)
        name = make_numbers(f"http://host{number}/numbers.txt.gz", content)
        prepare(name, tmp_path / "root", manual_dir=files, offline=True)
        assert load(name, "train", tmp_path / "root")["image"].max() == number


def test_two_at_once(tmp_path):
    both = [_start("prepare", "mnist_subset", f"--data_dir={tmp_path}") for _ in "ab"]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    texts = sorted((out for out, _ in outputs), key=lambda text: "already" in text)
    assert "preparing mnist_subset:1.0.0" in texts[0]
    assert "preparing mnist_subset" not in texts[1]
    assert "is prepared already" in texts[1]
    assert len(load("mnist_subset", "test", tmp_path)["label"]) == 2_000


def test_waits_for_the_lock_and_says_so(make_data_set, tmp_path):
    name = make_data_set("yield 0, {'x': 1}", "{'x': np.int64}")
    waiting = threading.Event()
    lines = []

    def log(line):
        lines.append(line)
        if "waiting for another process" in line:
            waiting.set()

    thread = threading.Thread(
        target=prepare, args=(name, tmp_path), kwargs={"log": log}
    )
    with locked(tmp_path / "downloads" / name):
        thread.start()
        assert waiting.wait(20)
        assert find(name, tmp_path) is None
    thread.join(20)
    assert find(name, tmp_path) is not None
    assert [line.split()[0] for line in lines] == ["waiting", "preparing", "prepared"]


def test_a_killed_preparation_does_no_harm(tmp_path):
    process = _start("prepare", "mnist_subset", f"--data_dir={tmp_path}")
    deadline = time.monotonic() + 30
    pattern = "mnist_subset/incomplete.*/*"
    while not list(tmp_path.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.glob(pattern)), "it was not killed midway"
    assert find("mnist_subset", tmp_path) is None
    # As the extractor and the downloader leave them.
    (tmp_path / "downloads/mnist_subset/extracted/GZIP.x").mkdir(parents=True)
    (tmp_path / "downloads/mnist_subset/x.gz.tmp.0").mkdir()

    prepare("mnist_subset", tmp_path)
    assert sorted(path.name for path in tmp_path.glob("mnist_subset/*")) == ["1.0.0"]
    left = [path.name for path in (tmp_path / "downloads/mnist_subset").iterdir()]
    assert left == [".lock"]
    assert len(load("mnist_subset", "test", tmp_path)["label"]) == 2_000


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mnst", "no data set 'mnst' in TFDS; did you mean 'mnist'"),
        ("MNIST_subset", "did you mean 'mnist_subset'"),
        (
            "voc/2017",
            r"no configuration '2017' \(it has 2007, 2012\); did you mean '20",
        ),
        ("mnist/small", "has no configurations"),
        ("mnist:9.9.9", "no version 9.9.9"),
        ("no name", "is not a data set's name"),
        ("imagenet2012", "fetched by hand .* --manual_dir"),
    ],
)
def test_a_name_that_cannot_be_prepared(name, sentence, tmp_path, no_network):
    with pytest.raises(UserError, match=sentence) as error:
        prepare(name, tmp_path)
    assert "\n" not in str(error.value)


def test_a_builder_whose_package_is_missing(make_data_set, tmp_path):
    name = make_data_set("import no_such_package\nyield 0, {}", "{'x': np.int64}")
    with pytest.raises(UserError, match="needs the Python package 'no_such_package'"):
        prepare(name, tmp_path)


def test_places_that_cannot_be_used(tmp_path, subset_dir):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be prepared in .*TFDS_DATA_DIR"):
        prepare("mnist_subset", tmp_path / "file")
    with pytest.raises(UserError, match=r"official files .* does not exist"):
        prepare("mnist_subset", tmp_path, manual_dir=tmp_path / "none")
    (tmp_path / "mnist_subset/1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a whole data set: remove it"):
        prepare("mnist_subset", tmp_path)


def _copy(subset_dir, root):
    return shutil.copytree(
        subset_dir / "mnist_subset/1.0.0", root / "mnist_subset/1.0.0"
    )


def test_a_copied_folder_is_prepared(subset_dir, tmp_path):
    _copy(subset_dir, tmp_path)
    arrays = load("mnist_subset", "test", tmp_path)
    expected = load("mnist_subset", "test", subset_dir)
    np.testing.assert_array_equal(arrays["image"], expected["image"])


def test_a_copy_that_was_cut_short_is_named(subset_dir, tmp_path):
    folder = _copy(subset_dir, tmp_path)
    shard = folder / "mnist_subset-test.array_record-00000-of-00001"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 1)
    sentence = rf"{shard.name} has {size - 1} bytes, where {size}"
    with pytest.raises(UserError, match=sentence):
        load("mnist_subset", "test", tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        load("mnist_subset", "test", tmp_path)


def test_a_folder_in_another_format_is_named(subset_dir, tmp_path):
    info = _copy(subset_dir, tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord", 1))
    with pytest.raises(UserError, match="is prepared as tfrecord"):
        prepare("mnist_subset", tmp_path)


def test_checksums_are_added_to_a_folder_without(subset_dir, tmp_path):
    folder = _copy(subset_dir, tmp_path)
    expected = (folder / CHECKSUMS).read_text()
    (folder / CHECKSUMS).unlink()
    prepare("mnist_subset", tmp_path)
    assert (folder / CHECKSUMS).read_text() == expected


def test_fingerprint_tells_contents_apart(subset_dir, tmp_path):
    folder = _copy(subset_dir, tmp_path)
    before = fingerprint(folder)
    assert before == fingerprint(subset_dir / "mnist_subset/1.0.0")
    checksums = folder / CHECKSUMS
    checksums.write_text(checksums.read_text().replace('"sha256": "', '"sha256": "0'))
    assert fingerprint(folder) != before


def test_find_takes_the_newest_version_and_the_default_config(tmp_path):
    for path in ("a/2.9.0", "a/2.10.0", "b/x/1.0.0", "b/y/1.0.0", "a/incomplete.3.0.0"):
        (tmp_path / path).mkdir(parents=True)
        info = {"fileFormat": "array_record", "splits": []}
        (tmp_path / path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "b/.config").mkdir()
    default = {"default_config_name": "y"}
    (tmp_path / "b/.config/metadata.json").write_text(json.dumps(default))
    assert find("a", tmp_path) == tmp_path / "a/2.10.0"
    assert find("a:2.9.0", tmp_path) == tmp_path / "a/2.9.0"
    assert find("a:2.8.0", tmp_path) is None
    assert find("b", tmp_path) == tmp_path / "b/y/1.0.0"
    assert find("b/x", tmp_path) == tmp_path / "b/x/1.0.0"
    assert find("c", tmp_path) is None


def test_prepared_lists_what_there_is(subset_dir, tmp_path):
    (data,) = prepared(subset_dir)
    assert data[:3] == ("mnist_subset", "1.0.0", {"train": 12_000, "test": 2_000})
    folder = subset_dir / "mnist_subset/1.0.0"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert data.bytes == sum(sizes.values()) - sizes[CHECKSUMS]
    assert prepared(tmp_path) == []


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir().name == "tensorflow_datasets"
