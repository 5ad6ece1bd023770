"""A whole split as arrays, decoded once and kept as memory-mapped files."""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import urllib.parse

import numpy as np
from jaxtyping import Shaped

from dl_core.data.folders import fingerprint, resolve
from dl_core.data.source import (
    Source,
    Transform,
    open_source,
    prepared_folder,
    varying,
)
from dl_core.errors import UserError
from dl_core.files import locked

Arrays = dict[str, Shaped[np.ndarray, "examples ..."]]

_VERSION = "1"
"""Part of a cache's fingerprint, to be changed whenever decoding changes."""

_CHUNK = 1024


def load(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    *,
    offline: bool = False,
    transform: Transform | None = None,
) -> Arrays:
    """Returns all examples of a split as arrays, for what fits in memory.

    The split is decoded once and kept under `<data_dir>/dl_core_cache`; from then on it
    is mapped from there, in milliseconds. With a transform, or where the root cannot be
    written, it is decoded into memory each time.

    Args:
      name: a TFDS name, `name[/config][:version]`; it is prepared if it is not.
      split: one of its splits, or a slice of one (`train[:90%]`), or a sum of these.
      data_dir: the root of the prepared data sets; `default_data_dir()` if None.
      offline: do not try the network.
      transform: applied to each decoded example.

    Returns:
      An array each field, its first axis the examples; read-only if it is mapped.

    Raises:
      UserError: if there is no such data set or split, it cannot be prepared, or a
        field's shape varies from example to example.
    """
    if transform is not None:
        return decode(
            open_source(name, split, data_dir, offline=offline, transform=transform)
        )
    root = resolve(data_dir)
    folder = prepared_folder(name, root, offline)
    cache = _cache(folder, split, root)
    if not cache.is_dir():
        source = open_source(name, split, root, offline=offline)
        try:
            with locked(cache.parent, wait=True):
                if not cache.is_dir():
                    _write(cache, decode(source))
        except OSError:
            # The root is read-only or full.
            return decode(source)
    return {
        urllib.parse.unquote(path.stem): np.load(path, mmap_mode="r")
        for path in sorted(cache.glob("*.npy"))
    }


def decode(source: Source) -> Arrays:
    """Decodes all examples of a source into memory.

    Raises:
      UserError: if a field's shape varies from example to example.
    """
    count = len(source)
    arrays: Arrays = {}
    for start in range(0, count, _CHUNK):
        rows = slice(start, min(start + _CHUNK, count))
        for field, values in source.read(np.arange(rows.start, rows.stop)).items():
            whole = arrays.get(field)
            if whole is None:
                whole = np.empty((count, *values.shape[1:]), values.dtype)
            if whole.shape[1:] != values.shape[1:]:
                raise UserError(varying(field, source))
            # Later texts may be longer.
            kind = np.promote_types(whole.dtype, values.dtype)
            arrays[field] = whole.astype(kind, copy=False)
            arrays[field][rows] = values
    return arrays


def _cache(folder: pathlib.Path, split: str, root: pathlib.Path) -> pathlib.Path:
    content = f"{_VERSION} {fingerprint(folder)} {split}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    readable = re.sub(r"\W+", "_", split).strip("_")
    parent = root / "dl_core_cache" / folder.relative_to(root)
    return parent / f"{readable}-{digest}"


def _write(cache: pathlib.Path, arrays: Arrays) -> None:
    """Writes the cache such that it is whole or absent; its lock is held."""
    temporary = cache.with_name(f".{cache.name}")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        for field, array in arrays.items():
            path = temporary / f"{urllib.parse.quote(field, safe='')}.npy"
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(cache)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
