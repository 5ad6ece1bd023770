"""How the points of a sweep are run: a pool of processes, or one compiled program."""

import collections
import contextlib
import ctypes
import functools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from absl import flags

from launch import app
from launch.execute import execute, say, stop_on_signals
from launch.execute import exit_code as _exit_code
from launch.points import Point, Sweep

FLAGS = flags.FLAGS
_OWN_FLAGS = ("executor", "slots", "vmap_mode", "index", "dry_run", "nodry_run")


def one(sweep: Sweep, point: Point) -> int:
    """Runs one point in this process; returns the exit code."""
    statuses = execute(sweep.experiment, [(point.path, point.config)], together=False)
    return _exit_code(statuses)


def vmap(sweep: Sweep) -> dict[int, str]:
    """Runs the unfinished points in this process, a compiled program for each group."""
    import jax

    from dl_core.config import group_key

    mode = FLAGS.vmap_mode
    if mode == "auto":
        mode = "in_turn" if jax.default_backend() == "cpu" else "together"
    statuses = {point.number: point.status() for point in sweep.points}
    groups: dict[object, list[Point]] = collections.defaultdict(list)
    for point in sweep.unfinished():
        groups[group_key(point.config)].append(point)
    for points in groups.values():
        if "stopped" in statuses.values():
            break
        ended = execute(
            sweep.experiment,
            [(point.path, point.config) for point in points],
            together=mode == "together",
        )
        statuses |= {p.number: s for p, s in zip(points, ended, strict=True)}
    return statuses


def local(sweep: Sweep) -> dict[int, str]:
    """Runs the unfinished points in child processes, a few at a time."""
    slots = FLAGS.slots or _default_slots()
    statuses = {point.number: point.status() for point in sweep.points}
    waiting = collections.deque(sweep.unfinished())
    free = list(range(slots))
    running: dict[int, tuple[Point, subprocess.Popen]] = {}
    logs = sweep.folder / "logs"
    logs.mkdir(exist_ok=True)
    with stop_on_signals() as stop:
        while waiting or running:
            if stop():
                waiting.clear()
                for _, child in running.values():
                    child.send_signal(signal.SIGTERM)
            while waiting and free:
                point, slot = waiting.popleft(), free.pop(0)
                log = logs / f"{point.path.name}.log"
                running[slot] = point, _start(point, slot, slots, log)
                say(f"started {point.path.name}: {point.label} (log: {log})")
            for slot, (point, child) in list(running.items()):
                if child.poll() is not None:
                    del running[slot]
                    free.append(slot)
                    statuses[point.number] = _ended(point, child.returncode)
                    say(f"{statuses[point.number]} {point.path.name}: {point.label}")
            time.sleep(0.05)
        if stop():
            unfinished = ("missing", "unfinished")
            statuses = {
                k: "stopped" if s in unfinished else s for k, s in statuses.items()
            }
    return statuses


def shell_command(point: Point) -> str:
    """Returns the command that runs one point, fit for a shell."""
    return shlex.join(["python", *_command(point)[1:]])


def exit_code(statuses: Mapping[int, str]) -> int:
    """Returns the exit code of a sweep, to which a point that diverged is a result."""
    return _exit_code(["done" if s == "diverged" else s for s in statuses.values()])


def print_summary(sweep: Sweep, statuses: Mapping[int, str]) -> None:
    """Prints a line a point, the counts, and what to do next."""
    from dl_core.results import Run

    metric = sweep.experiment.main_metric
    width = max(len(point.label) for point in sweep.points)
    print(f"{'point':<5}  {'':<{width}}  {'status':<10}  {metric:>14}  {'seconds':>8}")
    for point in sweep.points:
        line = (
            f"{point.number:>5}  {point.label:<{width}}  {statuses[point.number]:<10}"
        )
        if (point.path / "DONE").exists():
            run = Run.read(point.path)
            line += f"  {run.final(metric):>14.4g}  {run.result['seconds']:>8.1f}"
        print(line)
    counts = collections.Counter(statuses.values())
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if set(counts) <= {"done", "diverged"}:
        print(f"draw it: {_shell('launch.figures', sweep)}")
    else:
        print("the same command again runs what is not done")


def sweep_command(sweep: Sweep, *, places: bool = True) -> str:
    """Returns the command that runs what a sweep is missing, fit for a shell.

    Args:
      sweep: the sweep.
      places: say where it runs too, if it was said.
    """
    return f"{_shell('launch.sweep', sweep, places)} --sweep={sweep.name}"


def _shell(module: str, sweep: Sweep, places: bool = True) -> str:
    """Returns a command with the flags that choose the sweep's config and folder."""
    names = ("preset", "config", *(("workdir", "name") if places else ()))
    chosen = [n for n in FLAGS if n in names or n.startswith("config.")]
    given = [f"--{n}={FLAGS[n].value}" for n in sorted(chosen) if FLAGS[n].present]
    return shlex.join(
        ["python", "-m", module, f"--experiment={sweep.experiment.name}", *given]
    )


def _command(point: Point) -> list[str]:
    """Returns the argument list of a child that runs one point."""
    kept, arguments = [], iter(sys.argv[1:])
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name not in _OWN_FLAGS:
            kept.append(argument)
        elif not equals and not name.endswith("dry_run"):
            next(arguments, None)
    return [sys.executable, "-m", "launch.sweep", *kept, f"--index={point.number}"]


def _start(point: Point, slot: int, slots: int, log) -> subprocess.Popen:
    with log.open("a") as output:
        return subprocess.Popen(
            _command(point),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(slot, slots),
            preexec_fn=functools.partial(_end_with_parent, os.getpid()),
        )


def _environment(slot: int, slots: int) -> dict[str, str]:
    """Gives a child its device, or its share of the cores."""
    devices = _visible_gpus()
    if devices:
        return os.environ | {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}
    share = str(max(1, (os.cpu_count() or 1) // slots))
    return os.environ | {"NPROC": share, "OMP_NUM_THREADS": share}


def _default_slots() -> int:
    return len(_visible_gpus()) or max(1, (os.cpu_count() or 1) // 2)


def _visible_gpus() -> list[str]:
    """Returns the GPUs' names for CUDA_VISIBLE_DEVICES, without initialising JAX."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=10
        )
        return found.stdout.split()
    return []


def _end_with_parent(parent: int) -> None:
    """Has the kernel send SIGTERM to this child when its parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # It died before it could be asked for.
        os._exit(128 + signal.SIGTERM)


def _ended(point: Point, code: int) -> str:
    status = point.status()
    if status in ("done", "diverged"):
        return status
    known = {
        app.PREEMPTED: "stopped",
        -signal.SIGTERM: "stopped",
        app.LOCKED: "locked",
        app.MISUSED: "refused",
    }
    return known.get(code, "failed")
