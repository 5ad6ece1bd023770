"""The official files of a TFDS builder: what it registers of each, and comparing."""

import pathlib
import urllib.parse
from typing import Any

from dl_core.data.folders import sha256
from dl_core.errors import UserError

_LISTED = 12


def list_official(builder: Any) -> str:
    """Returns the official files by name, size and SHA-256, as a sentence's part.

    It is empty if TFDS registers none by name.
    """
    files = _official(builder)
    listed = [
        f"{name}: {info.size:,d} bytes, sha256 {info.checksum}"
        for name, infos in files.items()
        for info in infos
    ]
    more = len(listed) - _LISTED
    rest = [f"and {more} more, listed in {builder._checksums_path}"] if more > 0 else []
    return ", ".join(listed[:_LISTED] + rest)


def missing_official(builder: Any, folder: pathlib.Path, url: str | None) -> str:
    """Returns "x, y are": the official files that a folder lacks.

    Args:
      builder: a TFDS builder.
      folder: where the files should be.
      url: the file that the builder asked for; None if that is not known.
    """
    info = (builder.url_infos or {}).get(url)
    if info is not None and info.filename:
        names = [info.filename]
    else:
        names = [name for name in _official(builder) if not (folder / name).exists()]
    if not names:
        name = pathlib.PurePosixPath(urllib.parse.urlsplit(url or "").path).name
        names = [name or "one of its files"]
    return ", ".join(names) + (" is" if len(names) == 1 else " are")


def check_official(builder: Any, folder: pathlib.Path | None) -> None:
    """Compares the official files in a folder with what TFDS registers of them.

    Args:
      builder: a TFDS builder.
      folder: what it lacks of the files is not looked for.

    Raises:
      UserError: names the first that differs, with both sizes and checksums.
    """
    for name, infos in _official(builder).items() if folder else ():
        path = folder / name
        if not path.is_file():
            continue
        size, found = path.stat().st_size, sha256(path)
        if found not in [info.checksum for info in infos]:
            raise UserError(
                f"{path} is not the official file: it has {size} bytes and sha256 "
                f"{found}, where {int(infos[0].size)} bytes and sha256 "
                f"{infos[0].checksum} are expected; fetch it again"
            )


def _official(builder: Any) -> dict[str, list[Any]]:
    files: dict[str, list[Any]] = {}
    for info in (builder.url_infos or {}).values():
        if info.filename:
            files.setdefault(info.filename, []).append(info)
    return files
