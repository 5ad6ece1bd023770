"""Prints the end of a sweep's logs: python -m launch.logs FOLDER

`--points=3,5` leaves the others out, and with `--follow` it goes on as they are written
until those points have ended, or Ctrl-C. Where there are several logs each line begins
with its point's number.
"""

import os
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from dl_core.errors import UserError
from launch import app, sweep_folder
from launch import flags as shared
from launch.sweep_folder import Point, SweepFolder

FLAGS = flags.FLAGS
flags.declare_key_flag("workdir", flag_values=shared.FLAGS)
flags.DEFINE_string("points", None, "Of these points alone, such as 0-3,7.")
flags.DEFINE_integer("lines", 20, "How many lines of the end of each.", lower_bound=0)
flags.DEFINE_bool("follow", False, "Go on until the points have ended, or Ctrl-C.")
_SECONDS = 0.2
_BLOCK = 2**16


def main(args: list[str]) -> None:
    """Prints the end of the logs, and what is added to them."""
    sweep = sweep_folder.one(args)
    points = sweep.select(FLAGS.points)
    logs = [Log(point.log, FLAGS.lines) for point in points]
    none = [p.number for p in points if not p.log.exists()]
    if len(none) == len(points) and not FLAGS.follow:
        raise UserError(
            f"{sweep.path}: no log yet of what was asked for; a point has one once a "
            "process of its own has begun"
        )
    try:
        while True:
            over = not FLAGS.follow or _ended(sweep, points)
            for point, log in zip(points, logs, strict=True):
                start = f"{point.number}: " if len(points) > 1 else ""
                for line in log.more(last=over):
                    print(start + line)
            sys.stdout.flush()
            if over:
                return
            time.sleep(_SECONDS)
    except KeyboardInterrupt:
        return


class Log:
    """A log that others write to, or begin anew, while it is read."""

    def __init__(self, path: pathlib.Path, lines: int):
        """Args:
        path: need not exist yet.
        lines: how many at its end to begin with.
        """
        self._path = path
        self._place = _place_of_last(path, lines)
        self._inode = path.stat().st_ino if path.exists() else None
        self._begun = b""

    def more(self, *, last: bool = False) -> list[str]:
        """Returns the lines that were added, at the `last` the one begun too."""
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_size < self._place or about.st_ino != self._inode:
                    self._place, self._inode, self._begun = 0, about.st_ino, b""
                file.seek(self._place)
                added = file.read()
                self._place += len(added)
        except FileNotFoundError:
            added = b""
        *whole, self._begun = (self._begun + added).split(b"\n")
        if last and self._begun:
            whole.append(self._begun)
        return [line.decode(errors="replace") for line in whole]


def _place_of_last(path: pathlib.Path, lines: int) -> int:
    """Returns where the last lines of a file begin, without reading all of it."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        size, block = file.seek(0, os.SEEK_END), _BLOCK
        while True:
            start = file.seek(max(0, size - block))
            # The end of the last line begins no other.
            ends = [i for i, byte in enumerate(file.read()[:-1]) if byte == 10]
            if len(ends) >= lines > 0:
                return start + ends[-lines] + 1
            if not start or not lines:
                return start if lines else size
            block *= 4


def _ended(sweep: SweepFolder, points: Sequence[Point]) -> bool:
    """Returns whether none of the points is going to write more."""
    begins = () if sweep.cancelled.exists() else ("missing", "unfinished")
    now = {p.number: p for p in sweep_folder.read(sweep.path).points}
    return all(now[p.number].status() not in ("running", *begins) for p in points)


if __name__ == "__main__":
    app.run(main, sweep_folder.flags_anywhere)
