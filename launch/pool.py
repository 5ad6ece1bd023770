"""`--executor=local`: a bounded pool of processes on this machine.

A point goes on after another has failed. Each process gets GPUs of its own, as many as
there are for each slot, or its share of the cores; it ends with the pool, however that
ends, and the locks of what it ran are free then.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from dl_core.train.records import FINISHED
from launch import app, commands, processes
from launch.execute import say, stop_on_signals
from launch.points import Point, Sweep
from launch.summary import exit_code, print_summary

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process of the pool runs: points, by one command."""

    points: Sequence[Point]
    command: Sequence[str]
    log: pathlib.Path

    @property
    def name(self) -> str:
        """The points, for reading."""
        first = self.points[0]
        more = f" and {len(self.points) - 1} more" if len(self.points) > 1 else ""
        return f"{first.path.name}: {first.label}{more}"


def run(sweep: Sweep) -> int:
    """Runs the unfinished points, each in a process; returns the exit code."""
    jobs = [
        Job([point], commands.of_point(sweep, point.number), point.log)
        for point in sweep.left()
    ]
    statuses = run_jobs(sweep, jobs, FLAGS.slots or default_slots())
    print_summary(sweep, statuses)
    return exit_code(statuses)


def run_jobs(sweep: Sweep, jobs: Sequence[Job], slots: int) -> dict[int, str]:
    """Runs jobs, a few at a time.

    Args:
      sweep: whose jobs they are.
      jobs: what to run.
      slots: how many at once.

    Returns:
      How each selected point of the sweep ended, by number.
    """
    sweep.revive()
    statuses = {point.number: point.status() for point in sweep.selected}
    waiting = collections.deque(jobs)
    free = list(range(slots))
    running: dict[int, tuple[Job, subprocess.Popen]] = {}
    (sweep.folder / "logs").mkdir(parents=True, exist_ok=True)
    with stop_on_signals() as signalled:
        stopping = False
        while waiting or running:
            if not stopping and (signalled() or sweep.cancelled()):
                stopping = True
                waiting.clear()
                for _, child in running.values():
                    child.send_signal(signal.SIGTERM)
            while waiting and free:
                job = waiting.popleft()
                left = [p for p in job.points if p.status() not in FINISHED]
                if not left:  # Another process has been quicker.
                    statuses |= {p.number: p.status() for p in job.points}
                    continue
                slot = free.pop(0)
                running[slot] = job, _start(job, slot, slots)
                say(f"started {job.name} (log: {job.log})")
            for slot, (job, child) in list(running.items()):
                if child.poll() is not None:
                    del running[slot]
                    free.append(slot)
                    for point in job.points:
                        statuses[point.number] = _ended(point, child.returncode)
                        name = f"{point.path.name}: {point.label}"
                        say(f"{statuses[point.number]} {name}")
            time.sleep(0.05)
        for point in sweep.selected:  # What another process held it may have finished.
            if statuses[point.number] == "locked" and point.status() in FINISHED:
                statuses[point.number] = point.status()
        if stopping:
            unfinished = ("missing", "unfinished")
            statuses = {
                k: "stopped" if s in unfinished else s for k, s in statuses.items()
            }
    return statuses


def default_slots() -> int:
    """Returns how many processes fit this machine: one a GPU, or half the cores.

    A TPU's chips belong to one process.
    """
    if gpus := len(_visible_gpus()):
        return gpus
    return 1 if processes.may_have_tpu() else max(1, (os.cpu_count() or 1) // 2)


def _start(job: Job, slot: int, slots: int) -> subprocess.Popen:
    with job.log.open("a") as output:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(slot, slots),
            preexec_fn=functools.partial(_end_with_parent, os.getpid()),
        )


def _environment(slot: int, slots: int) -> dict[str, str]:
    """Gives a child its group of GPUs, or its share of the cores."""
    devices = _visible_gpus()
    if devices:
        group = devices[slot::slots] or [devices[slot % len(devices)]]
        return os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(group)}
    share = str(max(1, (os.cpu_count() or 1) // slots))
    return os.environ | {"NPROC": share, "OMP_NUM_THREADS": share}


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
        -signal.SIGINT: "stopped",
        128 + signal.SIGINT: "stopped",
        app.LOCKED: "locked",
        app.MISUSED: "refused",
    }
    return known.get(code, "failed")
