"""What a run's directory says of it: status, result, rows. Read without JAX."""

import json
import pathlib
from typing import Any

from dl_core.errors import UserError
from dl_core.files import is_locked, read_json

Row = dict[str, Any]

FINISHED = ("done", "diverged")
"""The statuses of a run that has nothing left to do."""


def status(path: pathlib.Path) -> str:
    """Returns how far the run in a folder is.

    "done" and "diverged" are finished; "running" is held by a process that this machine
    knows of; "failed" ended in an error, "unfinished" was stopped or killed, and
    "missing" has not begun.
    """
    if (path / "DONE").exists():
        return read_result(path / "DONE")["status"]
    if not (path / "config.json").exists():
        return "missing"
    if is_locked(path):
        return "running"
    return "failed" if (path / "FAILED").exists() else "unfinished"


def read_result(path: pathlib.Path) -> dict[str, Any]:
    """Reads a run's `DONE`.

    Raises:
      UserError: if it is missing or damaged.
    """
    result = read_json(path)
    if not isinstance(result, dict) or not {"status", "text", "metrics"} <= set(result):
        raise UserError(f"{path} is damaged: remove it, and the run is finished again")
    return result


def read_rows(path: pathlib.Path) -> list[Row]:
    """Returns the rows of a metrics file, up to the first that is torn or damaged."""
    if not path.exists():
        return []
    return parse_rows(path.read_text(errors="replace"))


def parse_rows(text: str) -> list[Row]:
    """Returns the rows in a text, up to the first that is torn or damaged."""
    rows: list[Row] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "stage": str(row["stage"]), **row})
        except (ValueError, KeyError, TypeError):
            break
    return rows
