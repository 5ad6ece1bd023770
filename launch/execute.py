"""Runs points in this process: opens their directories, trains, tells how it ended."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from dl_core.errors import UserError
from dl_core.files import LockedError
from launch import app

FLAGS = flags.FLAGS
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def execute(
    experiment: Any,
    points: Sequence[tuple[pathlib.Path, Any]],
    *,
    together: bool,
) -> list[str]:
    """Trains points that share their static fields, each in its own directory.

    Args:
      experiment: the experiment.
      points: directory and config of each. Finished ones are left as they are.
      together: train them all at once, vmapped; else in turn. Either way one program.

    Returns:
      How each ended: "done", "diverged", "stopped", "failed", "locked" (another
      process holds the directory) or "refused" (a mistake of the user's).
    """
    with stop_on_signals() as stop:
        if together:
            return _guarded(experiment, points, stop)
        return [_guarded(experiment, [point], stop)[0] for point in points]


def exit_code(statuses: Sequence[str]) -> int:
    """Returns the exit code for runs that ended so."""
    codes = {
        "stopped": app.PREEMPTED,
        "refused": app.MISUSED,
        "failed": app.FAILED,
        "diverged": app.FAILED,
        "locked": app.LOCKED,
    }
    return next((code for name, code in codes.items() if name in statuses), app.DONE)


def say(text: str) -> None:
    """Prints a line for the user."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_on_signals():
    """Gives a function that says whether SIGTERM or SIGINT has come.

    A second SIGINT interrupts at once.
    """
    came: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in came:
            raise KeyboardInterrupt
        came.append(number)

    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def provenance() -> dict[str, Any]:
    """Returns what made a result: command, code, versions, device."""
    import jax

    devices = jax.devices()
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "command": command_line(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **versions},
        "device": f"{len(devices)} × {_device_name(devices[0])}",
    }


def command_line() -> str:
    """Returns the command that runs this process, fit for a shell."""
    spec = sys.modules["__main__"].__spec__
    start = ["python", "-m", spec.name] if spec else ["python", sys.argv[0]]
    return shlex.join([*start, *sys.argv[1:]])


def _device_name(device: Any) -> str:
    if device.platform != "cpu":
        return device.device_kind
    return f"CPU ({os.cpu_count()} cores, {platform.machine()})"


def _commit() -> str | None:
    """Returns the commit of this code, with "+" where files differ from it."""

    def git(*args: str) -> str:
        folder = pathlib.Path(__file__).parent
        return subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _guarded(
    experiment: Any, points: Sequence[tuple[pathlib.Path, Any]], stop: Any
) -> list[str]:
    """Runs points, and turns what goes wrong into a sentence and a status."""
    from dl_core.train.checkpoints import SaveError

    try:
        return _execute(experiment, points, stop)
    except UserError as error:
        say(f"error: {error}")
        return ["refused"] * len(points)
    except SaveError as error:
        say(f"error: {error}")
        return ["failed"] * len(points)
    except OSError as error:
        say(f"error: {error.strerror or error}: {error.filename or points[0][0]}")
        return ["failed"] * len(points)


def _execute(
    experiment: Any, points: Sequence[tuple[pathlib.Path, Any]], stop: Any
) -> list[str]:
    from dl_core.train import loop
    from dl_core.train.layout import make_layout
    from dl_core.train.run_directory import open_run

    with contextlib.ExitStack() as stack:
        runs, statuses = [], []
        for path, config in points:
            # One that cannot be opened does not keep the others from training.
            run = status = None
            try:
                run = stack.enter_context(open_run(path, experiment.name, config))
                if run.result:
                    status = run.result["status"]
                    say(f"{run.path}: {run.result['text']} before; nothing to do")
            except UserError as error:
                say(f"error: {error}")
                status = "locked" if isinstance(error, LockedError) else "refused"
            runs.append(run)
            statuses.append(status)
        left = [i for i, status in enumerate(statuses) if status is None]
        if not left:
            return statuses
        if stop():
            return [status or "stopped" for status in statuses]
        options = loop.Options(
            data_dir=data_dir(),
            layout=make_layout(FLAGS.devices, FLAGS.model_axis, fsdp=FLAGS.fsdp),
            steps_per_call=FLAGS.steps_per_call or loop.default_steps_per_call(),
            stop=stop,
            say=say,
            progress=sys.stderr.isatty(),
            provenance=provenance(),
        )
        first = runs[left[0]].path
        more = f" and {len(left) - 1} more, all at once" if len(left) > 1 else ""
        say(f"{first}{more}: {experiment.name} on {options.provenance['device']}")
        outcomes = loop.train(experiment, [runs[i] for i in left], options)
        for i, outcome in zip(left, outcomes, strict=True):
            statuses[i] = outcome.status
            say(_told(experiment, runs[i], outcome))
    return statuses


def _told(experiment: Any, run: Any, outcome: Any) -> str:
    if outcome.status == "stopped":
        return f"{run.path}: {outcome.text}; the same command goes on from there"
    result = run.result
    text = f"{run.path}: {outcome.text}"
    if outcome.status == "diverged":
        return text
    value = result["metrics"][experiment.main_metric]
    return f"{text} in {result['seconds']:.1f} s, {experiment.main_metric} {value:.4g}"


def data_dir() -> pathlib.Path:
    """Returns the folder of the data sets."""
    if FLAGS.data_dir:
        return pathlib.Path(FLAGS.data_dir)
    from dl_core.data import default_data_dir

    return default_data_dir()
