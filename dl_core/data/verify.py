"""Verifying a prepared data set: every byte of its files, and every record."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dl_core.data.folders import (
    examples,
    find,
    recorded_checksums,
    resolve,
    sha256,
)
from dl_core.data.source import Source
from dl_core.errors import UserError

_CHUNK = 1024


def verify(
    name: str,
    data_dir: str | os.PathLike | None = None,
    log: Callable[[str], Any] = print,
) -> None:
    """Compares a prepared data set's files with their checksums and reads every record.

    Args:
      name: a TFDS name, `name[/config][:version]`.
      data_dir: the root of the prepared data sets; `default_data_dir()` if None.
      log: is told, in a line each, what was found right.

    Raises:
      UserError: names the first file or record that is bad, or says that the data set
        is not prepared.
    """
    root = resolve(data_dir)
    folder = find(name, root)
    if folder is None:
        raise UserError(
            f"{name!r} is not prepared in {root}: prepare it first (python -m "
            f"launch.data prepare {name})"
        )
    files = recorded_checksums(folder)
    if files is None:
        log("no checksums were recorded when it was prepared, so none are compared")
    else:
        _verify_files(folder, files)
        log(f"{len(files)} files have the checksums they were prepared with")
    for split, count in examples(folder).items():
        if count:
            _verify_records(Source(folder.resolve(), split, name), count)
        log(f"{split}: all {count:,} records can be read and decoded")


def _verify_files(folder: pathlib.Path, files: dict[str, dict]) -> None:
    for file, expected in files.items():
        found = sha256(folder / file)
        if found != expected["sha256"]:
            raise UserError(
                f"{folder / file} is damaged: its sha256 is {found}, where "
                f"{expected['sha256']} was prepared; remove {folder} and prepare it "
                "again"
            )


def _verify_records(source: Source, count: int) -> None:
    for start in range(0, count, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, count))
        if _why_bad(source, rows) is None:
            continue
        for row in rows:
            reason = _why_bad(source, np.array([row]))
            if reason is not None:
                raise UserError(
                    f"record {row} of {source.split} in {source.folder} cannot be read "
                    f"({reason}): remove the folder and prepare it again"
                )


def _why_bad(source: Source, rows: np.ndarray) -> str | None:
    try:
        source.examples(rows)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None
