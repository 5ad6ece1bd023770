"""A sweep read from its folder alone: no experiment is imported, nor JAX.

The folder may be of another checkout or machine; see `launch.points` for what is in it.
"""

import collections
import dataclasses
import difflib
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from dl_core.errors import UserError
from dl_core.files import read_json
from dl_core.train import records
from launch.point_numbers import parse_numbers

FLAGS = flags.FLAGS
CANCELLED = "CANCELLED"
"""The file in a sweep's folder that ends it."""

_ALIVE = ("queued", "running")
_RUN = re.compile(r"(\d{4,})-[0-9a-f]{8}")
_BLOCK = 2**16


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: its last step, and the last value of each metric."""

    step: int
    numbers: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep, as its folder tells of it."""

    number: int
    changes: Mapping[str, Any]
    path: pathlib.Path | None
    """Its run directory; None before it has one."""
    log: pathlib.Path
    steps: int | None
    """Training steps of its config; those of further stages are not counted."""

    @property
    def label(self) -> str:
        """What it changes, on one line."""
        text = " ".join(f"{path}={value}" for path, value in self.changes.items())
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

    def status(self) -> str:
        """Returns how far it is, as `records.status`, or "damaged"."""
        try:
            return records.status(self.path) if self.path else "missing"
        except UserError:
            return "damaged"

    def result(self) -> Mapping[str, Any]:
        """Returns what `DONE` holds; nothing before there is one that can be read."""
        return self._json("DONE")

    def error(self) -> str:
        """Returns the sentence with which its last try failed, or ""."""
        return str(self._json("FAILED").get("error", ""))

    def config(self) -> Mapping[str, Any]:
        """Returns its config as it was saved; nothing before it was."""
        config = self._json("config.json").get("config")
        return config if isinstance(config, dict) else {}

    def progress(self) -> Progress | None:
        """Returns how far it is, from the end of its rows; None before the first."""
        if self.path is None:
            return None
        result = self.result()
        if "metrics" in result:
            return Progress(result["step"], result["metrics"])
        if rows := _last_rows(self.path / "metrics.jsonl"):
            numbers = {k: v for row in rows for k, v in row.items() if "/" in k}
            return Progress(rows[-1]["step"], numbers)
        return None

    def written(self) -> float | None:
        """Returns when its rows were last written to, in seconds; None before that."""
        try:
            return (self.path / "metrics.jsonl").stat().st_mtime if self.path else None
        except FileNotFoundError:
            return None

    def _json(self, name: str) -> Mapping[str, Any]:
        try:
            values = read_json(self.path / name) if self.path else {}
        except UserError:
            return {}
        return values if isinstance(values, dict) else {}


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """A sweep: its folder, experiment, base config and points, by number."""

    path: pathlib.Path
    experiment: str
    base: Mapping[str, Any]
    points: Sequence[Point]

    @property
    def cancelled(self) -> pathlib.Path:
        """The mark that ends it, where it exists."""
        return self.path / CANCELLED

    @property
    def on_slurm(self) -> bool:
        """Whether points of it were submitted to Slurm."""
        return (self.path / "slurm.json").exists()

    def statuses(self) -> dict[int, str]:
        """Returns the points' statuses by number: from the files, then from Slurm."""
        found = {point.number: point.status() for point in self.points}
        if not self.on_slurm or set(found.values()) <= set(records.FINISHED):
            return found
        from launch import slurm

        try:
            asked = slurm.states(self.path)
        except UserError as error:
            print(f"Slurm was not asked what waits and runs: {error}", file=sys.stderr)
            return found
        for number, state in asked.items():
            # It may run where no lock is seen from here, or wait for another try; how
            # a try ended, the files know better.
            begun = found.get(number) in ("missing", "unfinished")
            if begun or (found.get(number) == "failed" and state in _ALIVE):
                found[number] = state
        return found

    def select(self, text: str | None) -> list[Point]:
        """Returns the points that `--points` names: all, where it is None."""
        if text is None:
            return list(self.points)
        known = [point.number for point in self.points]
        chosen = set(parse_numbers("--points", text, known))
        return [point for point in self.points if point.number in chosen]


def log_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Returns where a point's process prints to, if it has one of its own."""
    return folder / "logs" / f"{number:04d}.log"


def read(folder: pathlib.Path) -> SweepFolder:
    """Reads a sweep's folder.

    Raises:
      UserError: if it is none, or damaged.
    """
    path = folder / "sweep.json"
    if not path.exists():
        raise UserError(
            f"{folder} is not a sweep's folder (it has no sweep.json){_hint(folder)}"
        )
    spec = read_json(path)
    try:
        name, base, points = spec["experiment"], spec["base"], spec["points"]
        changes = {int(number): dict(point) for number, point in points.items()}
        steps = base.get("steps")
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged: it holds no sweep") from None
    names = os.listdir(folder)  # noqa: PTH208 (a name each; there may be thousands)
    runs = {int(m[1]): folder / m[0] for m in map(_RUN.fullmatch, names) if m}
    return SweepFolder(
        folder,
        str(name),
        base,
        [
            Point(
                number,
                changed,
                runs.get(number),
                log_file(folder, number),
                changed.get("steps", steps),
            )
            for number, changed in sorted(changes.items())
        ],
    )


def counts(statuses: Mapping[int, str]) -> str:
    """Returns "4 points: 3 done, 1 failed"."""
    number = collections.Counter(statuses.values())
    points = f"{len(statuses)} point{'s' if len(statuses) != 1 else ''}"
    return f"{points}: " + ", ".join(f"{n} {status}" for status, n in number.items())


def given(args: Sequence[str]) -> list[SweepFolder]:
    """Reads the folders on the command line.

    Raises:
      UserError: if there is none on it, or one that is no sweep's.
    """
    if not args:
        known = under(pathlib.Path(FLAGS.workdir))
        there = f"; there are {', '.join(map(str, known))}" if known else ""
        raise UserError(f"the folder of a sweep is missing{there}")
    return [read(pathlib.Path(arg)) for arg in args]


def one(args: Sequence[str]) -> SweepFolder:
    """Reads the one folder on the command line.

    Raises:
      UserError: if there is not one on it, or one that is no sweep's.
    """
    if len(args) > 1:
        raise UserError(f"{args[1]!r}: one sweep's folder at a time")
    return given(args)[0]


def under(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of the sweeps in a working folder."""
    return sorted(path.parent for path in workdir.glob("*/sweeps/*/sweep.json"))


def flags_anywhere(argv: Sequence[str]) -> None:
    """Lets flags follow the folder on the command line; for `launch.app.run`."""
    FLAGS.set_gnu_getopt()


def _hint(folder: pathlib.Path) -> str:
    """Returns "; did you mean X?" for the sweep's folder that is nearest, or ""."""
    around = [folder / "sweep.json", *(p / "sweep.json" for p in folder.parents)]
    if not (near := [path.parent for path in around if path.exists()]):
        patterns = ("*/sweep.json", "sweeps/*/sweep.json", "*/sweeps/*/sweep.json")
        near = [path.parent for p in patterns for path in folder.glob(p)]
        near += [path.parent for path in folder.parent.glob("*/sweep.json")]
        near += under(pathlib.Path(FLAGS.workdir))
        known = {key: path for path in near for key in (path.name, str(path))}
        wanted = (str(folder), folder.name)
        matches = [difflib.get_close_matches(w, known, n=1, cutoff=0.4) for w in wanted]
        near = [known[match] for found in matches for match in found]
    return f"; did you mean {near[0]}?" if near else ""


def _last_rows(path: pathlib.Path) -> list[records.Row]:
    """Returns the rows at the end of a metrics file, without reading all of it."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size, block = file.seek(0, os.SEEK_END), _BLOCK
        while True:
            start = file.seek(max(0, size - block))
            text = file.read().decode(errors="replace")
            if start:  # It is, most likely, within a row.
                text = text.partition("\n")[2]
            rows = records.parse_rows(text)
            if rows or not start:
                return rows
            block *= 4
