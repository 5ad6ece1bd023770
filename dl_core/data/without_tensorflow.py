"""Official TFDS builders download, extract and generate with no TensorFlow installed.

TFDS 4.9.9 and 4.9.10 read without TensorFlow, but still prepare with it
(tensorflow/datasets#11058). Most builders use it for three things only: files
(`tf.io.gfile` in the builder's module, and in the extractor of archives), the names of
types (`tf.int64`), and the encoding of images that are given as arrays. Here these are
done by Python, NumPy and Pillow.
"""

import contextlib
import glob
import importlib.util
import io
import os
import pathlib
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dl_core.errors import UserError

_Path = str | os.PathLike

_patching = threading.RLock()


@contextlib.contextmanager
def without_tensorflow(name: str) -> Iterator[None]:
    """Lets the TFDS builder of a data set work; does nothing if TensorFlow is there.

    Enter it once the builder's module is imported. The change is global, so threads
    take turns; it is undone on leaving, but for the extractor of archives.

    Args:
      name: the data set, for the error.

    Raises:
      UserError: from whatever of TensorFlow the builder uses beyond the above.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import lazy_imports_utils

    stand_in = _tensorflow(name)
    missing = lazy_imports_utils.tensorflow
    with _patching, contextlib.ExitStack() as undo:
        # Not undone: where a preparation fails, the extractor's threads work on.
        extractor.tf = stand_in
        users = [
            module
            for key, module in list(sys.modules.items())
            if not key.startswith("tensorflow_datasets.core.")
            and getattr(module, "__dict__", {}).get("tf") is missing
        ]
        for module in users:
            _replace(undo, module, "tf", stand_in)
        _replace(undo, image_feature._ImageEncoder, "_encode_image", _encode_image)
        yield


def _replace(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


class _Part(types.SimpleNamespace):
    """A module of the stand-in; what it lacks needs the real TensorFlow."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(
            f"the TFDS builder of {self.data_set!r} computes with TensorFlow "
            f"({self.path}.{name}), which is not installed: install it (pip install "
            "tensorflow), or prepare the data set where it is and copy its folder"
        )


def _tensorflow(data_set: str) -> _Part:
    def part(path: str, **content: Any) -> _Part:
        return _Part(data_set=data_set, path=path, **content)

    gfile = part(
        "tf.io.gfile",
        GFile=_open,
        Open=_open,
        exists=os.path.exists,
        isdir=os.path.isdir,
        listdir=os.listdir,
        glob=_glob,
        walk=os.walk,
        mkdir=os.mkdir,
        makedirs=lambda path: pathlib.Path(path).mkdir(parents=True, exist_ok=True),
        copy=_copy,
        remove=os.remove,
        rmtree=shutil.rmtree,
    )
    compat = part("tf.compat", as_text=_as_text, as_str=_as_text, as_bytes=_as_bytes)
    numbers = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
    numbers += ("float16", "float32", "float64")
    types_ = {kind: getattr(np, kind) for kind in numbers}
    types_ |= {"bool": np.bool_, "string": np.object_}
    return part("tf", io=part("tf.io", gfile=gfile), compat=compat, **types_)


def _open(name: _Path, mode: str = "r") -> io.IOBase:
    if "b" in mode:
        return open(name, mode)  # noqa: PTH123
    # As in TensorFlow: UTF-8, and only "\n" ends a line.
    return open(name, mode, encoding="utf-8", newline="\n")  # noqa: PTH123


def _glob(patterns: _Path | list) -> list[str]:
    if isinstance(patterns, str | os.PathLike):
        patterns = [patterns]
    return [path for one in patterns for path in sorted(glob.glob(os.fspath(one)))]  # noqa: PTH207


def _copy(source: _Path, target: _Path, overwrite: bool = False) -> None:
    if pathlib.Path(target).exists() and not overwrite:
        raise FileExistsError(f"{target} exists already")
    shutil.copyfile(source, target)


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _encode_image(encoder: Any, image: np.ndarray) -> bytes:
    """Takes the place of `_ImageEncoder._encode_image`, with the same checks."""
    from tensorflow_datasets.core.features import image_feature

    image_feature._validate_np_array(image, encoder.shape, encoder.np_dtype)
    if image.shape[-1] == 1:
        image = image[..., 0]
    elif image.dtype != np.uint8 or image.shape[-1] == 2:
        raise UserError(
            f"an image of shape {image.shape} and type {image.dtype} cannot be encoded "
            "without TensorFlow: install it (pip install tensorflow)"
        )
    # TensorFlow's own JPEG quality is 95.
    options = {"quality": 95} if encoder.encoding_format == "jpeg" else {}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, encoder.encoding_format, **options)
    return buffer.getvalue()
