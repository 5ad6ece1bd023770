"""A sweep on the disk: its folder, its points, and how far each of them is.

sweep.json          experiment, base config and the points
NNNN-XXXXXXXX/      a run directory for each point: its number and a fingerprint
figures/            what launch.figures drew
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from dl_core.config import differences, fingerprint, replace, to_dict
from dl_core.errors import UserError, nearest
from dl_core.files import inside, is_locked, read_json, write_json
from launch import flags as shared

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

    def status(self) -> str:
        """Returns "done", "diverged", "running", "unfinished" or "missing"."""
        done = self.path / "DONE"
        if done.exists():
            from dl_core.train.run_directory import read_result

            return read_result(done)["status"]
        if not (self.path / "config.json").exists():
            return "missing"
        return "running" if is_locked(self.path) else "unfinished"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep of an experiment: its name, folder, base config and points."""

    experiment: Any
    name: str
    folder: pathlib.Path
    base: Any
    points: Sequence[Point]

    def write(self) -> None:
        """Writes `sweep.json`.

        Raises:
          UserError: if the folder holds another sweep.
        """
        spec = {
            "experiment": self.experiment.name,
            "base": to_dict(self.base),
            "points": {str(p.number): dict(p.changes) for p in self.points},
        }
        path = self.folder / "sweep.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, spec)
        elif changed := differences(read_json(path), _as_json(spec)):
            shown = "; ".join(changed[:5]) + ("; …" if len(changed) > 5 else "")
            raise UserError(
                f"{self.folder} holds another sweep: {shown}; give another --name, or "
                "remove that folder"
            )

    def unfinished(self) -> list[Point]:
        """Returns the points that are neither done nor diverged."""
        return [p for p in self.points if p.status() not in ("done", "diverged")]


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
        for number, point in enumerate(changes)
    ]
    return Sweep(experiment, name, folder, base, points)


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
