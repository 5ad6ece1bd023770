"""Files that are whole or absent, folders held by one process, names that are safe."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import tempfile
import time
from typing import IO, Any

from dl_core.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class LockedError(UserError):
    """Another process holds the folder."""


def inside(root: pathlib.Path, *names: str) -> pathlib.Path:
    """Returns `root / names…`, which cannot leave `root`.

    Raises:
      UserError: if a name is not letters, digits, ".", "_" and "-", 64 at most.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"the name {name!r} cannot be used: a name is at most 64 letters, "
                "digits, '.', '_' and '-', and begins with a letter or a digit"
            )
    path = root.joinpath(*names)
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} leads out of {root}")
    return path


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file such that it is, at any moment, the old or the new one, whole."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes JSON values atomically, indented for reading."""
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None


@contextlib.contextmanager
def locked(folder: pathlib.Path, *, wait: bool = False):
    """Holds a folder for this process; the lock ends with the process at the latest.

    Args:
      folder: is made if need be.
      wait: wait for another process to let go instead of failing.

    Raises:
      LockedError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        _take(file, folder, wait)
        yield


def is_locked(folder: pathlib.Path) -> bool:
    """Returns whether some process holds the folder."""
    if not (folder / ".lock").exists():
        return False
    with (folder / ".lock").open() as file:
        # Shared, since NFS gives the other kind to those alone who may write.
        return not _taken(file, fcntl.LOCK_SH)


_PATIENCE = 0.5
"""Seconds for which a lock may be held by one who only asks whether it is."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What a file system says that keeps no locks; there every lock is free."""


def _take(file: IO[str], folder: pathlib.Path, wait: bool) -> None:
    end = time.monotonic() + _PATIENCE
    while not _taken(file):
        if wait or time.monotonic() < end:
            time.sleep(_PATIENCE / 10)
            continue
        file.seek(0)
        holder = file.read().strip()
        by = f" (process {holder})" if holder else ""
        raise LockedError(f"{folder} is in use by another process{by}")
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def _taken(file: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    """Takes a lock if it is free; returns whether it did."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
