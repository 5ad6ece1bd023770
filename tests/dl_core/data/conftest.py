"""Data sets for the tests: the embedded one, the official MNIST, small made ones."""

import functools
import gzip
import hashlib
import http.server
import importlib
import itertools
import os
import pathlib
import threading

import numpy as np
import pytest

from dl_core.data import prepare

_REPOSITORY = pathlib.Path(__file__).parents[3]
_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def official_mnist():
    """The folder of the four official MNIST files."""
    shared = os.environ.get("DL_CORE_SHARED_DATA", _REPOSITORY.parent / "shared/data")
    folder = pathlib.Path(shared) / "mnist"
    if not folder.is_dir():
        pytest.skip(
            "NOT TESTED AGAINST THE OFFICIAL MNIST: its files are not in "
            f"{folder}; set DL_CORE_SHARED_DATA to the folder that holds mnist/"
        )
    return folder


@pytest.fixture(scope="session")
def read_official(official_mnist):
    """Reads an official file: `read("train-images-idx3-ubyte", 16, (28, 28, 1))`."""

    def read(name, header, shape=()):
        data = gzip.decompress((official_mnist / f"{name}.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=header).reshape(-1, *shape)

    return read


@pytest.fixture(scope="session")
def subset_dir(tmp_path_factory):
    """A root in which `mnist_subset` is prepared; not to be changed."""
    root = tmp_path_factory.mktemp("subset")
    prepare("mnist_subset", root, log=lambda line: None)
    return root


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory, official_mnist):
    """A root in which the official `mnist` is prepared from its official files."""
    root = tmp_path_factory.mktemp("mnist")
    prepare("mnist", root, manual_dir=official_mnist, offline=True)
    return root


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine: `(address, folder it serves)`."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=folder)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()
    httpd.server_close()


_BUILDER = """
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf


class {name}(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({features}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        path = dl_manager.download_and_extract({url!r}) if {url!r} else None
        return {{"train": self._generate_examples(path)}}

    def _generate_examples(self, path):
{body}
"""


@pytest.fixture
def make_data_set(tmp_path, monkeypatch):
    """Writes a TFDS builder as a package of its own, registers it, returns its name.

    `body` is the body of `_generate_examples(self, path)`; `content` is what TFDS
    registers the size and checksum of for `url`.
    """

    def make(body, features, url="", content=b""):
        name = f"Made{next(_NUMBERS)}"
        package = tmp_path / "packages" / name.lower()
        package.mkdir(parents=True)
        lines = "\n".join(" " * 8 + line for line in body.splitlines())
        code = _BUILDER.format(name=name, features=features, url=url, body=lines)
        (package / "__init__.py").write_text(code)
        if url:
            checksum = hashlib.sha256(content).hexdigest()
            file = url.rpartition("/")[2]
            line = "\t".join([url, str(len(content)), checksum, file])
            (package / "checksums.tsv").write_text(line + "\n")
        monkeypatch.syspath_prepend(package.parent)
        importlib.import_module(package.name)
        return name.lower()

    return make


NUMBERS_BODY = """\
with tf.io.gfile.GFile(path) as file:
    for row, line in enumerate(file):
        yield row, {"image": np.full((2, 3, 3), int(line), np.uint8), "number": row}
"""
NUMBERS_FEATURES = """{
    "image": tfds.features.Image(shape=(2, 3, 3)), "number": tf.int64
}"""


@pytest.fixture
def make_numbers(make_data_set):
    """Makes a data set of one downloaded file, a number a line, an image a number."""

    def make(url, content):
        return make_data_set(NUMBERS_BODY, NUMBERS_FEATURES, url, content)

    return make
