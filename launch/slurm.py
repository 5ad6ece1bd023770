"""`--executor=slurm`: the points as tasks of a job array, through `sbatch` itself.

A task runs one point by `slurm_array.sh`. Before its time is up, or when it is
preempted, it gets SIGTERM, saves, and requeues itself. The same command again submits
what is neither finished nor queued. `slurm.json` in the sweep's folder names the jobs:

{"jobs": [{"job": "123", "name": …, "numbers": "0-3,7", "first": 0, "time": …}]}

where task 7 of job 123 runs the point `first` + 7.
"""

import dataclasses
import datetime
import hashlib
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from dl_core.errors import UserError
from dl_core.files import locked, read_json, write_json
from launch import app
from launch.point_numbers import numbers_text

if TYPE_CHECKING:
    from launch.points import Point, Sweep

FLAGS = flags.FLAGS
flags.DEFINE_string("partition", None, "slurm: Run in this partition.")
flags.DEFINE_string("account", None, "slurm: Charge this account.")
flags.DEFINE_string(
    "time", None, "slurm: A point's time until it is requeued, such as 4:00:00."
)
flags.DEFINE_integer("nodes", 1, "slurm, kubernetes: Nodes for a point.", lower_bound=1)
flags.DEFINE_integer(
    "tasks_per_node",
    1,
    "slurm: Processes of a point on each of its nodes: where there are several, each "
    "sees one GPU of its node.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_parallel",
    None,
    "slurm, kubernetes: Points at once, of each job array (default: all).",
    lower_bound=1,
)
flags.DEFINE_integer(
    "max_requeues", 20, "slurm: How often a point may be requeued.", lower_bound=0
)
flags.DEFINE_multi_string(
    "sbatch", [], "slurm: Any further option of sbatch, such as --gres=gpu:1."
)
flags.DEFINE_bool(
    "validate", False, "slurm: Ask Slurm whether it would run; submit nothing."
)

_SECONDS_TO_SAVE = 120
"""How long before its end a point is told of it."""
_DEFAULT_MAX_ARRAY_SIZE = 1001
_SCRIPT = pathlib.Path(__file__).with_name("slurm_array.sh")
_RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED")
_ENDED = {
    "CANCELLED": "cancelled",
    "FAILED": "failed",
    "OUT_OF_MEMORY": "failed",
    "BOOT_FAIL": "stopped",
    "DEADLINE": "stopped",
    "NODE_FAIL": "stopped",
    "PREEMPTED": "stopped",
    "TIMEOUT": "stopped",
}


@dataclasses.dataclass(frozen=True)
class Array:
    """A job array: its points, the number of its task 0, what submits it."""

    points: Sequence["Point"]
    first: int
    command: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Task:
    """A point in Slurm's queue."""

    number: int
    job: str
    task: str
    state: str


def run(sweep: "Sweep") -> int:
    """Submits the points that are neither finished nor queued; returns the exit code.

    Raises:
      UserError: if Slurm refuses, or is not here.
    """
    # Held so that of two commands at once only one submits a point.
    with locked(sweep.folder, wait=True):
        _call("sbatch", "--version")  # Without it, nothing else is worth telling.
        arrays = _arrays(sweep, _to_submit(sweep), _max_array_size())
        if FLAGS.validate:
            for array in arrays:
                sbatch, *words = array.command
                print(_call(sbatch, "--test-only", *words).stderr.strip())
            return app.DONE
        (sweep.folder / "logs").mkdir(exist_ok=True)
        sweep.revive()
        for array in arrays:
            _submit(sweep.folder, array)
    if not arrays:
        print("nothing to submit: every point is finished, queued or running")
    print(f"how far it is: python -m launch.status {shlex.quote(str(sweep.folder))}")
    return app.DONE


def dry_run(sweep: "Sweep") -> None:
    """Prints the commands: sbatch's, and those that run the points."""
    from launch import commands

    points = _to_submit(sweep)
    try:
        size = _max_array_size()
    except UserError:  # No cluster is asked to show what it would be told.
        size = _DEFAULT_MAX_ARRAY_SIZE
    for array in _arrays(sweep, points, size):
        print(shlex.join(array.command))
    for point in points:
        print(commands.shell(commands.of_point(sweep, point.number)))


def states(folder: pathlib.Path) -> dict[int, str]:
    """Asks Slurm for the points' states.

    Args:
      folder: a sweep's.

    Returns:
      "queued" or "running" by number, and where the cluster keeps accounts also
      "cancelled", "failed" or "stopped" of those that are neither.

    Raises:
      UserError: if Slurm does not answer.
    """
    jobs = _jobs(folder)
    queued = {task.number: task.state for task in _queued(jobs)}
    return _ended(jobs) | queued


def cancel(folder: pathlib.Path, numbers: Sequence[int] | None = None) -> list[int]:
    """Takes points out of the queue, and ends those that run, for good.

    Args:
      folder: the sweep's.
      numbers: of the points (default: all).

    Returns:
      The numbers of those that were queued or running.

    Raises:
      UserError: if Slurm refuses, or is not here.
    """
    chosen = [
        task
        for task in _queued(_jobs(folder))
        if numbers is None or task.number in numbers
    ]
    for job in {task.job for task in chosen}:
        tasks = ",".join(task.task for task in chosen if task.job == job)
        _call("scancel", f"{job}_[{tasks}]")
    return sorted({task.number for task in chosen})


def _to_submit(sweep: "Sweep") -> list["Point"]:
    queued = {task.number for task in _queued(_jobs(sweep.folder))}
    return [
        point
        for point in sweep.left()
        if point.number not in queued and point.status() != "running"
    ]


def _arrays(sweep: "Sweep", points: Sequence["Point"], max_size: int) -> list[Array]:
    """Returns the job arrays that run points.

    Each is of a block of 10, 100, … points, the largest such that fits an array: so
    Slurm itself can name their logs, such as `logs/12%2a.log` of the block of 1200.
    """
    digits = max(1, len(str(max_size)) - 1)
    block = 10**digits
    arrays = []
    for first in sorted({point.number // block * block for point in points}):
        chosen = [p for p in points if first <= p.number < first + block]
        tasks = numbers_text(point.number - first for point in chosen)
        start = f"{first // block:0{max(1, 4 - digits)}d}"
        log = f"{start}%{digits}a.log" if first else "%4a.log"
        arrays.append(Array(chosen, first, _command(sweep, first, tasks, log)))
    return arrays


def _command(sweep: "Sweep", first: int, tasks: str, log: str) -> list[str]:
    from launch import commands

    folder = sweep.folder.resolve()
    if found := re.search(r"[%\\\n]", str(folder)):
        raise UserError(
            f"--workdir={FLAGS.workdir!r}: the folder {str(folder)!r} has a "
            f"{found[0]!r}, to which Slurm gives a meaning in the name of a log"
        )
    for option in FLAGS.sbatch:
        if not option.startswith("-"):
            raise UserError(
                f"--sbatch={option}: expected an option of sbatch, such as --gres=gpu:1"
            )
    at_once = f"%{FLAGS.max_parallel}" if FLAGS.max_parallel else ""
    given = [
        f"--{name}={FLAGS[name].value}"
        for name in ("partition", "account", "time")
        if FLAGS[name].value is not None
    ]
    point = [w for w in commands.of_point(sweep, 0) if not w.startswith("--index=")]
    return [
        "sbatch",
        "--parsable",
        f"--job-name={_job_name(sweep.folder)}",
        f"--array={tasks}{at_once}",
        f"--nodes={FLAGS.nodes}",
        f"--ntasks-per-node={FLAGS.tasks_per_node}",
        *given,
        f"--signal=TERM@{_SECONDS_TO_SAVE}",
        "--requeue",
        "--open-mode=append",
        f"--output={folder}/logs/{log}",
        *FLAGS.sbatch,
        str(_SCRIPT),
        str(folder),
        str(FLAGS.max_requeues),
        str(first),
        *point,
    ]


def _submit(folder: pathlib.Path, array: Array) -> None:
    job = _call(*array.command).stdout.strip().partition(";")[0]  # 123;cluster
    numbers = numbers_text(point.number for point in array.points)
    entry = {
        "job": job,
        "name": _job_name(folder),
        "numbers": numbers,
        "first": array.first,
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    write_json(folder / "slurm.json", {"jobs": [*_jobs(folder), entry]})
    print(f"submitted as job {job}: the points {numbers}", flush=True)


def _jobs(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the jobs that `slurm.json` tells of.

    Raises:
      UserError: if it is damaged.
    """
    path = folder / "slurm.json"
    if not path.exists():
        return []
    jobs = read_json(path)
    try:
        return [
            dict(job, name=job["name"], first=int(job["first"])) for job in jobs["jobs"]
        ]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: it tells of no jobs") from None


def _queued(jobs: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Returns the points of jobs that are queued or running."""
    if not jobs:
        return []
    firsts = {job["job"]: job["first"] for job in jobs}
    # By name too: job numbers begin again, on another cluster at the latest.
    names = ",".join(sorted({job["name"] for job in jobs}))
    query = ("squeue", "--noheader", "--array", f"--name={names}", "--format=%F|%K|%T")
    found = []
    for line in _call(*query).stdout.split():
        job, task, state = line.split("|")
        if job in firsts and task.isdecimal():
            known = "running" if state in _RUNNING else "queued"
            found.append(Task(firsts[job] + int(task), job, task, known))
    return found


def _ended(jobs: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Returns how points ended that did not end well, where accounts are kept."""
    if not jobs or not shutil.which("sacct"):
        return {}
    firsts = {job["job"]: job["first"] for job in jobs}
    names = ",".join(sorted({job["name"] for job in jobs}))
    query = ("sacct", "--noheader", "--parsable2", "--allocations", f"--name={names}")
    try:
        answer = _call(*query, f"--jobs={','.join(firsts)}", "--format=JobID,State")
    except UserError:  # Most often since it keeps none.
        return {}
    found = {}
    for line in answer.stdout.splitlines():
        if match := re.fullmatch(r"(\d+)_(\d+)\|(\w+).*", line):
            job, task, state = match.groups()
            if state in _ENDED and job in firsts:
                found[firsts[job] + int(task)] = _ENDED[state]
    return found


def _job_name(folder: pathlib.Path) -> str:
    """Returns the name that this folder's jobs have, and no others."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return f"{folder.name}-{digest[:8]}"


def _max_array_size() -> int:
    found = re.search(
        r"MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config").stdout
    )
    return int(found[1]) if found else _DEFAULT_MAX_ARRAY_SIZE


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs one of Slurm's commands.

    Raises:
      UserError: if it is not installed, or says no.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not installed here: this needs Slurm's commands (on one "
            "machine, python -m launch.local_slurm starts a Slurm to try them with)"
        ) from None
    except OSError as error:  # Too many points for one command line, for example.
        raise UserError(f"{command[0]} does not start: {error.strerror}") from None
    if done.returncode:
        told = done.stderr.replace(f"{command[0]}: error: ", "").splitlines()
        reason = "; ".join(filter(None, map(str.strip, told)))
        raise UserError(f"{command[0]} refuses: {reason or done.returncode}")
    return done
