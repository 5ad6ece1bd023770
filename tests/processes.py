"""Runs the project's commands in processes of their own, and ends them on request.

`run` and `start` begin a real command, as from a shell. `fork` does the same from a
server that has imported what takes long, so that a command starts at once.
"""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

_PRELOADED = [
    "flax.linen",
    "matplotlib.pyplot",
    "optax",
    "orbax.checkpoint",
    "scipy.optimize",
    "tensorboardX",
    "tensorflow_datasets",
    "dl_core.data",
    "dl_core.results",
    "dl_core.train.loop",
]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(_PRELOADED)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended; the code is negative if a signal ended it."""

    code: int
    stdout: str
    stderr: str


class Command:
    """A command that runs."""

    def __init__(self, pid, wait, is_running, folder):
        self.pid = pid
        self._wait = wait
        self._is_running = is_running
        self._folder = folder

    def running(self) -> bool:
        return self._is_running()

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def told(self) -> str:
        """Returns what it has written to standard error so far."""
        return (self._folder / "stderr").read_text()

    def wait(self, timeout: float = 240) -> Result:
        """Waits for its end; kills it and fails if that does not come."""
        code = self._wait(timeout)
        if code is None:
            self.send(signal.SIGKILL)
            raise TimeoutError(f"still running: {self.told()[-2_000:]}")
        return Result(code, (self._folder / "stdout").read_text(), self.told())


def run(module: str, *arguments: object, **environment: str) -> Result:
    """Runs `python -m module arguments…` to its end."""
    return start(module, *arguments, **environment).wait()


def start(module: str, *arguments: object, **environment: str) -> Command:
    """Starts `python -m module arguments…`."""
    return start_python("-m", module, *arguments, **environment)


def start_python(*arguments: object, **environment: str) -> Command:
    """Starts `python arguments…`, away from the repository."""
    folder = _new_folder()
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=os.environ | environment,
        )

    def wait(timeout):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout)

    return Command(process.pid, wait, lambda: process.poll() is None, folder)


def fork(module: str, *arguments: object, **environment: str) -> Command:
    """Starts what `python -m module arguments…` does, without the slow imports."""
    folder = _new_folder()
    process = _server.Process(
        target=_command, args=(module, list(map(str, arguments)), environment, folder)
    )
    process.start()

    def wait(timeout):
        process.join(timeout)
        return process.exitcode

    return Command(process.pid, wait, process.is_alive, folder)


def fork_many(
    module: str, commands: Sequence[Sequence[str]], imported: str
) -> list[Result]:
    """Runs commands of one module, one after another, each in a process of its own.

    Args:
      module: what each runs.
      commands: the arguments of each.
      imported: a module that they all need, imported once.
    """
    receive, send = _server.Pipe(duplex=False)
    process = _server.Process(target=_commands, args=(module, commands, imported, send))
    process.start()
    send.close()
    results = receive.recv()
    process.join()
    return results


def until(happens, command: Command | None = None, timeout: float = 120) -> None:
    """Waits until something happens; fails if the command ends before it does."""
    end = time.monotonic() + timeout
    while not happens():
        if command is not None and not command.running():
            raise AssertionError(f"it ended too soon: {command.wait()}")
        if time.monotonic() > end:
            raise AssertionError("it did not happen in time")
        time.sleep(0.002)


def _new_folder() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="command-"))
    for name in ("stdout", "stderr"):
        (folder / name).touch()
    return folder


def _command(
    module: str,
    arguments: list[str],
    environment: Mapping[str, str],
    folder: pathlib.Path,
) -> None:
    for name, number in (("stdout", 1), ("stderr", 2)):
        with (folder / name).open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.update(environment)
    first = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in first if path and path not in sys.path]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _commands(
    module: str, commands: Sequence[Sequence[str]], imported: str, send
) -> None:
    for name in ("absl.app", "launch.flags", imported):
        importlib.import_module(name)
    results = []
    for arguments in commands:
        folder = _new_folder()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                _command(module, list(arguments), {}, folder)
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [(folder / name).read_text() for name in ("stdout", "stderr")]
        results.append(Result(code, *texts))
    send.send(results)
