"""Runs points in this process: opens their directories, trains, tells how it ended."""

import contextlib
import importlib.metadata
import math
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from dl_core.errors import UserError
from dl_core.files import LockedError
from launch import app, processes

FLAGS = flags.FLAGS
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def execute(
    experiment: Any,
    points: Sequence[tuple[pathlib.Path, Any]],
    *,
    together: bool,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Trains points that share their static fields, each in its own directory.

    Args:
      experiment: the experiment.
      points: directory and config of each. Finished ones are left as they are.
      together: train them all at once, vmapped; else in turn. Either way one program.
      cancelled: whether to stop; asked once a second.

    Returns:
      How each ended: "done", "diverged", "stopped", "failed", "locked" (another
      process holds the directory) or "refused" (a mistake of the user's).
    """
    with stop_on_signals() as came:
        ended = _seldom(cancelled)
        stop = processes.stop_together(lambda: came() or ended())
        if together:
            return _guarded(experiment, points, stop)
        return [_guarded(experiment, [point], stop)[0] for point in points]


def _seldom(asked: Callable[[], bool]) -> Callable[[], bool]:
    """Returns a function that is asked often, and asks another once a second."""
    last, answer = -math.inf, False

    def ask() -> bool:
        nonlocal last, answer
        if time.monotonic() - last > 1:
            last, answer = time.monotonic(), asked()
        return answer

    return ask


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
    """Prints a line for the user; of many processes of a run, one speaks."""
    if processes.is_first():
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

    wanted = processes.signals()
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
    root = pathlib.Path(__file__).parents[1]
    written = root / "COMMIT"
    if written.exists() and not (root / ".git").exists():  # A snapshot's.
        return written.read_text().strip()

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _guarded(
    experiment: Any, points: Sequence[tuple[pathlib.Path, Any]], stop: Any
) -> list[str]:
    """Trains points at once, and turns what goes wrong into a sentence and a status."""
    from dl_core.train.checkpoints import SaveError

    statuses: list[str | None] = [None] * len(points)
    try:
        with contextlib.ExitStack() as stack:
            runs, statuses = _open(stack, experiment, points)
            left = [i for i, status in enumerate(statuses) if status is None]
            if left and stop():
                return [status or "stopped" for status in statuses]
            ended = _tried(experiment, [runs[i] for i in left], stop) if left else []
            for i, status in zip(left, ended, strict=True):
                statuses[i] = status
    except (OSError, SaveError) as error:  # Files could not be made, or closed.
        if "failed" not in statuses:
            _failed([], "failed", _sentence(error))
        return ["failed"] * len(points)
    return statuses


def _tried(experiment: Any, runs: Sequence[Any], stop: Any) -> list[str]:
    """Trains runs; an error becomes a sentence, in their folders too."""
    from dl_core.train.checkpoints import SaveError

    try:
        return _train(experiment, runs, stop)
    except UserError as error:
        return _failed(runs, "refused", str(error))
    except (OSError, SaveError) as error:
        return _failed(runs, "failed", _sentence(error))
    except Exception as error:
        traceback.print_exc()
        return _failed(runs, "failed", f"{type(error).__name__}: {error}")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error)


def _open(
    stack: contextlib.ExitStack,
    experiment: Any,
    points: Sequence[tuple[pathlib.Path, Any]],
) -> tuple[list[Any], list[str | None]]:
    """Opens runs, in the process that writes; says of each why it is not to train."""
    from dl_core.train import processes as together
    from dl_core.train.run_directory import RunDirectory, open_run

    runs, statuses = [], []
    for path, config in points if processes.is_first() else ():
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
    if not processes.is_first():
        runs = [RunDirectory(*point, writes=False) for point in points]
        for run in runs:
            stack.callback(run.stop)
    return runs, together.agreed(statuses)


def _train(experiment: Any, runs: Sequence[Any], stop: Any) -> list[str]:
    from dl_core.train import loop
    from dl_core.train.layout import make_layout

    options = loop.Options(
        data_dir=data_dir(),
        layout=make_layout(FLAGS.devices, FLAGS.model_axis, fsdp=FLAGS.fsdp),
        steps_per_call=FLAGS.steps_per_call or loop.default_steps_per_call(),
        stop=stop,
        say=say,
        progress=processes.is_first() and sys.stderr.isatty(),
        provenance=provenance(),
    )
    more = f" and {len(runs) - 1} more, all at once" if len(runs) > 1 else ""
    device = options.provenance["device"]
    say(f"{runs[0].path}{more}: {experiment.name} on {device}")
    outcomes = loop.train(experiment, runs, options)
    if processes.is_first():
        for run, outcome in zip(runs, outcomes, strict=True):
            say(_told(experiment, run, outcome))
    return [outcome.status for outcome in outcomes]


def _failed(runs: Sequence[Any], status: str, sentence: str) -> list[str]:
    """Says and writes down why runs failed; returns their statuses."""
    sentence = sentence.splitlines()[0]
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    for run in runs:
        with contextlib.suppress(OSError):
            run.fail(sentence)
    processes.abandon(exit_code([status]))
    return [status] * len(runs)


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
