"""A sweep on the disk: its folder, its points, and how far each of them is.

sweep.json          experiment, base config and the points by number
NNNN-XXXXXXXX/      a run directory for each point: its number and a fingerprint
logs/NNNN.log       what a point's process printed, where it had one of its own
figures/            what launch.figures drew
src/                a copy of the code that runs it, with --snapshot
search/             what a search has proposed
CANCELLED           launch.cancel was here: nothing more is started
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from dl_core.config import differences, fingerprint, replace, to_dict
from dl_core.errors import UserError, nearest
from dl_core.files import inside, locked, read_json, write_json
from dl_core.train.records import FINISHED, status
from launch import flags as shared
from launch.point_numbers import parse_numbers
from launch.sweep_folder import CANCELLED, log_file

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep: its number, what it changes, config and directory."""

    number: int
    changes: Mapping[str, Any]
    config: Any
    path: pathlib.Path

    @property
    def label(self) -> str:
        """What it changes, for reading."""
        return " ".join(f"{path}={value}" for path, value in self.changes.items())

    @property
    def log(self) -> pathlib.Path:
        """Where its process prints to, if it has one of its own."""
        return log_file(self.path.parent, self.number)

    def status(self) -> str:
        """Returns how far it is; see `dl_core.train.records.status`."""
        return status(self.path)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep of an experiment: its name, folder, base config and points."""

    experiment: Any
    name: str
    folder: pathlib.Path
    base: Any
    points: Sequence[Point]
    """All of them, in the order of the experiment's module."""
    selected: Sequence[Point]
    """Those that `--points` chooses, by number."""

    def write(self, *, extend: bool = False) -> None:
        """Writes `sweep.json`.

        Args:
          extend: let points be added to those that it has.

        Raises:
          UserError: if the folder holds another sweep.
        """
        spec = {
            "experiment": self.experiment.name,
            "base": to_dict(self.base),
            "points": {str(p.number): dict(p.changes) for p in self._by_number()},
        }
        path = self.folder / "sweep.json"
        with locked(self.folder, wait=True):
            if not path.exists():
                write_json(path, spec)
                return
            old, new = read_json(path), _as_json(spec)
            changed = differences(old, new)
            added = len(new["points"]) - len(old["points"])
            only_added = differences(old, {**new, "points": _same(old, new)}) == []
            if changed and only_added and extend:
                write_json(path, spec)
            elif changed:
                shown = "; ".join(changed[:5]) + ("; …" if len(changed) > 5 else "")
                add = (
                    f"add its {added} new points with --extend, " if only_added else ""
                )
                raise UserError(
                    f"{self.folder} holds another sweep: {shown}; {add}give another "
                    "--name, or remove that folder"
                )

    @property
    def metric(self) -> str:
        """The metric that is told of each point."""
        return self.experiment.main_metric

    def begin(self, point: Point) -> Point:
        """Returns a point as it is run; a search proposes its values now."""
        return point

    def end(self) -> None:
        """Is called when a point has been run."""

    def cancelled(self) -> bool:
        """Returns whether `launch.cancel` has ended it."""
        return (self.folder / CANCELLED).exists()

    def revive(self) -> None:
        """Takes back what `launch.cancel` said, since it is run again."""
        (self.folder / CANCELLED).unlink(missing_ok=True)

    def unfinished(self) -> list[Point]:
        """Returns the points that are neither done nor diverged."""
        return [p for p in self.points if p.status() not in FINISHED]

    def left(self) -> list[Point]:
        """Returns the selected points that are neither done nor diverged."""
        return [p for p in self.selected if p.status() not in FINISHED]

    def _by_number(self) -> list[Point]:
        return sorted(self.points, key=lambda point: point.number)


def chosen_sweep(name: str) -> Sweep:
    """Returns the sweep that the flags choose, whether or not it has run.

    Args:
      name: one of the experiment's `SWEEPS`.

    Raises:
      UserError: for an unknown sweep, or a field that it sets itself.
    """
    experiment, base, overrides = shared.chosen()
    if name not in experiment.sweeps:
        known = ", ".join(experiment.sweeps)
        raise UserError(
            f"--sweep={name}: {experiment.name} has the sweeps {known}"
            f"{nearest(name, experiment.sweeps)}"
        )
    changes = experiment.sweeps[name]
    if twice := overrides.keys() & {path for point in changes for path in point}:
        raise UserError(f"--config.{min(twice)} is a field that the sweep {name} sets")
    folder = _folder(experiment, base, name)
    points = [
        Point(
            number,
            point,
            replace(base, point),
            folder / f"{number:04d}-{fingerprint(_as_json(point))}",
        )
        for number, point in zip(_numbers(folder, changes), changes, strict=True)
    ]
    return Sweep(experiment, name, folder, base, points, select(points))


def select(points: Sequence[Point]) -> list[Point]:
    """Returns the points that `--points` chooses (all, without it), by number.

    Raises:
      UserError: for what is no list of numbers, or a number that no point has.
    """
    by_number = {point.number: point for point in points}
    numbers = sorted(by_number)
    if "points" in FLAGS and FLAGS.points is not None:
        numbers = parse_numbers("--points", FLAGS.points, numbers)
    return [by_number[number] for number in numbers]


def _numbers(folder: pathlib.Path, changes: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the points' numbers: those they were given once, then new ones."""
    path = folder / "sweep.json"
    stored = read_json(path).get("points", {}) if path.exists() else {}
    wanted = [_as_json(point) for point in changes]
    given = {fingerprint(point): int(number) for number, point in stored.items()}
    keys = [fingerprint(point) for point in wanted]
    if not set(given) <= set(keys):  # Another sweep, which `write` will refuse.
        return list(range(len(keys)))
    fresh = itertools.count(len(given))
    return [given[key] if key in given else next(fresh) for key in keys]


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the new points that have the number of an old one."""
    return {k: v for k, v in new["points"].items() if k in old["points"]}


def _folder(experiment: Any, base: Any, sweep: str) -> pathlib.Path:
    preset = FLAGS.preset or "default"
    name = sweep if preset == "default" else f"{sweep}-{preset}"
    if base != experiment.preset(preset):
        name += f"-{fingerprint(base)}"
    return inside(
        pathlib.Path(FLAGS.workdir), experiment.name, "sweeps", FLAGS.name or name
    )


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _as_json(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
