"""Prepared data sets as folders: where they lie, what they hold, their checksums.

A prepared data set is the folder `<data_dir>/<name>[/<config>]/<version>`. It can be
copied to another machine as it is. Nothing here imports TFDS, so looking is fast.
"""

import hashlib
import json
import os
import pathlib
import re
from typing import NamedTuple

from dl_core.errors import UserError
from dl_core.files import read_json, write_json

EMBEDDED = {
    "bccd_small": "dl_core.data.bccd_small",
    "jsb_chorales": "dl_core.data.jsb_chorales",
    "mnist_subset": "dl_core.data.mnist_subset",
    "novels_small": "dl_core.data.novels_small",
    "shakespeare_small": "dl_core.data.shakespeare_small",
    "tatoeba_small": "dl_core.data.tatoeba_small",
}
"""The data sets that ship with the project, and the packages of their builders."""

CHECKSUMS = "dl_core_files.json"
"""In a prepared folder: the size and SHA-256 of each of its other files."""

_INFO = "dataset_info.json"
_NAME = re.compile(r"(\w+)(?:/([^:\s]+))?(?::(\d+\.\d+\.\d+))?")


class Name(NamedTuple):
    """The parts of a TFDS name, `name[/config][:version]`."""

    dataset: str
    config: str | None
    version: str | None


class Prepared(NamedTuple):
    """A prepared data set: its TFDS name, version, examples by split, and size."""

    name: str
    version: str
    splits: dict[str, int]
    bytes: int


def default_data_dir() -> pathlib.Path:
    """Returns TFDS's own root: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(root).expanduser()


def resolve(data_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the root that `data_dir` names; None is the default one."""
    if data_dir is None:
        return default_data_dir()
    return pathlib.Path(data_dir).expanduser()


def parse(name: str) -> Name:
    """Splits a TFDS name into its parts.

    Raises:
      UserError: if it is not written as TFDS writes names.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"{name!r} is not a data set's name: write it as 'name', 'name/config' or "
            "'name/config:1.2.3'"
        )
    return Name(*match.groups())


def find(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of a prepared data set, of the newest version if none is said.

    Args:
      name: a TFDS name; without a config it means the default one.
      data_dir: the root of the prepared data sets.

    Returns:
      None if it is not prepared.

    Raises:
      UserError: if the name is malformed, the folder is not in the array_record format,
        or one of its files is missing or cut short.
    """
    dataset, config, version = parse(name)
    root = data_dir / dataset
    config = config or _default_config(root)
    folders = [
        path.parent
        for path in (root / config if config else root).glob(f"*/{_INFO}")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        and version in (None, path.parent.name)
    ]
    if not folders:
        return None
    folder = max(folders, key=lambda path: [int(n) for n in path.name.split(".")])
    _check(folder)
    return folder


def prepared(data_dir: str | os.PathLike | None = None) -> list[Prepared]:
    """Lists the data sets that are prepared under a root, by name and version.

    Args:
      data_dir: the root of the prepared data sets; the default one if None.
    """
    root = resolve(data_dir)
    infos = [*root.glob(f"*/[0-9]*/{_INFO}"), *root.glob(f"*/*/[0-9]*/{_INFO}")]
    return sorted(
        Prepared(
            name=folder.parent.relative_to(root).as_posix(),
            version=folder.name,
            splits=examples(folder),
            bytes=sum(path.stat().st_size for path in _files(folder)),
        )
        for folder in (info.parent for info in infos)
    )


def examples(folder: pathlib.Path) -> dict[str, int]:
    """Returns the number of examples in each split of a prepared folder.

    Raises:
      UserError: if the folder's description is missing or damaged.
    """
    splits = read_json(folder / _INFO).get("splits", [])
    return {
        split["name"]: sum(int(length) for length in split.get("shardLengths", []))
        for split in splits
    }


def record_checksums(folder: pathlib.Path) -> None:
    """Writes the size and SHA-256 of each file of a prepared folder into it."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in _files(folder)
    }
    write_json(folder / CHECKSUMS, {"files": files})


def recorded_checksums(folder: pathlib.Path) -> dict[str, dict] | None:
    """Returns {file: {"bytes": …, "sha256": …}}, or None if none were recorded."""
    path = folder / CHECKSUMS
    return read_json(path)["files"] if path.exists() else None


def fingerprint(folder: pathlib.Path) -> str:
    """Returns a name for the content of a prepared folder.

    It is made of the recorded checksums; where there are none (the folder was prepared
    by TFDS itself), of the files' names, sizes and times.
    """
    content = recorded_checksums(folder) or [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in _files(folder)
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != CHECKSUMS and not path.name.startswith(".")
    )


def _default_config(root: pathlib.Path) -> str | None:
    path = root / ".config" / "metadata.json"
    return read_json(path).get("default_config_name") if path.exists() else None


def _check(folder: pathlib.Path) -> None:
    """Refuses a folder that cannot be read, by what is quick to see."""
    file_format = read_json(folder / _INFO).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise UserError(
            f"{folder} is prepared as {file_format}, which cannot be read at random; "
            "move it away, or choose another data_dir, and prepare it again"
        )
    for name, expected in (recorded_checksums(folder) or {}).items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{path} {found}, where {expected['bytes']} bytes were prepared: copy "
                f"the folder again, or remove {folder} and prepare it again"
            )
