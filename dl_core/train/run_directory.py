"""The run directory: all that a run leaves, and all that it needs to go on.

config.json     the experiment and its complete config
metrics.jsonl   a row an interval: step, stage, metrics by name
assets/         files that belong to the parameters, such as vocabularies
artifacts/      arrays observed at the evaluations, <stage>-<step>.npz
checkpoints/    Orbax's
events.out.*    the same metrics for TensorBoard
FAILED          why the last try ended in an error, until the next one begins
DONE            the result, written last: there is nothing left to do
"""

import contextlib
import io
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dl_core.config import differences, to_dict
from dl_core.errors import UserError
from dl_core.files import locked, read_json, write_atomically, write_json
from dl_core.train.checkpoints import Checkpoints
from dl_core.train.records import Row, read_result, read_rows


class RunDirectory:
    """One run's folder, held by this process while it is open."""

    def __init__(self, path: pathlib.Path, config: Any, *, writes: bool = True):
        """Use `open_run`, in the one process that writes.

        Args:
          path: the folder.
          config: the run's config.
          writes: whether this process writes; of many that make one run, one does.
        """
        self.path = path
        self.config = config
        self._writes = writes
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._metrics = path / "metrics.jsonl"
        self.row_count = 0
        self._file: Any = None
        self._events: Any = None

    @property
    def result(self) -> dict[str, Any] | None:
        """What `DONE` holds; None while there is something left to do."""
        done = self.path / "DONE"
        return read_result(done) if done.exists() else None

    def rows(self) -> list[Row]:
        """Returns the rows of metrics so far."""
        return read_rows(self._metrics)

    def start(self, rows: int, step: int) -> None:
        """Begins to write, after dropping the rows that will be written again.

        Args:
          rows: how many rows stay.
          step: the step the run starts or resumes from.
        """
        self.row_count = rows
        if not self._writes:
            return
        kept = "".join(json.dumps(row) + "\n" for row in self.rows()[:rows])
        write_atomically(self._metrics, kept)
        self._file = self._metrics.open("a")
        from tensorboardX import SummaryWriter  # Slow to import; not all need it.

        purge = step + 1 if step else None
        # Numbered, since two of the same second would have one name.
        number = f".{len(list(self.path.glob('events.out.*'))):04d}"
        self._events = SummaryWriter(
            str(self.path), purge_step=purge, filename_suffix=number
        )

    def write(self, step: int, stage: str, metrics: Mapping[str, np.ndarray]) -> None:
        """Appends a row of metrics (scalars, or small arrays)."""
        self.row_count += 1
        if not self._writes:
            return
        values = {name: np.asarray(x).tolist() for name, x in metrics.items()}
        self._file.write(json.dumps({"step": step, "stage": stage, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, list):
                parts = {f"{name}/{i}": v for i, v in enumerate(np.ravel(value))}
            else:
                parts = {name: value}
            for part, number in parts.items():
                self._events.add_scalar(part, float(number), step)

    def write_artifact(
        self, step: int, stage: str, arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Keeps the arrays observed at a step."""
        if not self._writes:
            return
        folder = self.path / "artifacts"
        folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(folder / f"{stage}-{step:08d}.npz", buffer.getvalue())

    def keep(self, assets: Mapping[str, bytes]) -> None:
        """Keeps files beside the parameters, or sees that they are those kept before.

        Raises:
          UserError: if one differs: the parameters would not belong to it.
        """
        folder = self.path / "assets"
        folder.mkdir(exist_ok=True)
        for name, content in assets.items():
            file = folder / name
            if not file.exists():
                if self._writes:
                    write_atomically(file, content)
            elif file.read_bytes() != content:
                raise UserError(
                    f"{file} is not what the data give now, so the run's checkpoints "
                    "do not belong to them: give the data it began with, or another "
                    "--name"
                )

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result: there is nothing left to do."""
        self.stop()
        if self._writes:
            write_json(self.path / "DONE", dict(result))

    def fail(self, sentence: str) -> None:
        """Writes down why this try ended in an error, in whichever process it did."""
        file = self.path / "FAILED"
        if not file.exists():  # Else what failed elsewhere has ended this process.
            write_json(file, {"error": sentence, "time": time.time()})

    def stop(self) -> None:
        """Closes the files, once all that was saved is on the disk."""
        self.checkpoints.close()
        if self._file is not None:
            self._file.close()
            self._events.close()
            self._file = self._events = None


@contextlib.contextmanager
def open_run(
    path: pathlib.Path, experiment: str, config: Any
) -> Iterator[RunDirectory]:
    """Opens a run's folder, making it if need be, and holds it.

    Args:
      path: the folder.
      experiment: the experiment's name.
      config: the run's complete config.

    Raises:
      LockedError: if another process holds the folder.
      UserError: if the folder holds a run of another experiment or config.
    """
    with locked(path):
        wanted = {"experiment": experiment, "config": to_dict(config)}
        saved = path / "config.json"
        if saved.exists():
            found = read_json(saved)
            if not isinstance(found, dict):
                raise UserError(f"{saved} is damaged: it holds no config")
            if found != wanted:
                changed = "; ".join(differences(found, wanted))
                raise UserError(
                    f"{path} holds another run: {changed}; give another --name, "
                    "or remove that folder"
                )
        else:
            write_json(saved, wanted)
        (path / "FAILED").unlink(missing_ok=True)
        run = RunDirectory(path, config)
        try:
            yield run
        finally:
            run.stop()


def first_infinite(metrics: Mapping[str, np.ndarray]) -> str | None:
    """Returns the name of the first metric that is not finite, if there is one."""
    for name, value in metrics.items():
        array = np.asarray(value)
        finite = math.isfinite(array) if not array.ndim else np.isfinite(array).all()
        if not finite:
            return name
    return None
