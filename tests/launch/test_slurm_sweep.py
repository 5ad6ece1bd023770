"""A sweep on a real Slurm: time limits, preemption, ends for good, hostile names."""

import contextlib
import datetime
import os
import pathlib
import shutil
import signal
import subprocess

import processes
import psutil
import pytest
import tiny

from dl_core.config import replace
from dl_core.train.records import FINISHED, read_rows, status
from launch import local_slurm, slurm

LACKING = local_slurm.missing()
if LACKING:
    pytest.skip(f"no Slurm here: {LACKING}", allow_module_level=True)

SINGLE, DOUBLE = range(10), (10, 11)
SLOW = (0, 1, *DOUBLE)
LONG = {"steps": 400, "checkpoint_every": 100, "log_every": 20}
POINTS = [{"seed": i, **(LONG if i in SLOW else {"steps": 20})} for i in range(12)]
SLOWLY = """
    import os, time
    if os.environ.get("SLOWLY") and "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(1)
"""
"""What a point does at each evaluation, so that what happens to it happens midway."""


@pytest.fixture(scope="module")
def cluster():
    """The environment of four nodes, where one partition preempts the other."""
    partitions = (
        "PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120",
        "PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF",
    )
    options = {
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "MaxArraySize": 11,
    }
    with local_slurm.cluster(4, partitions=partitions, options=options) as environment:
        yield environment


@pytest.fixture(scope="module")
def dozen(toy, tmp_path_factory):
    """The environment in which toy.tiny has a sweep of twelve points, some slow."""
    root = tmp_path_factory.mktemp("dozen")
    (old,) = (path for path in toy["PYTHONPATH"].split(os.pathsep)[:1])
    shutil.copytree(old, root, dirs_exist_ok=True)
    module = root / "experiments" / "toy" / "tiny.py"
    text = module.read_text().replace("SWEEPS = {", f'SWEEPS = {{"dozen": {POINTS},', 1)
    head = "def score(config: Config, observed: Any) -> dict[str, float]:\n"
    assert head in text
    module.write_text(text.replace(head, head + SLOWLY))
    return toy | {"PYTHONPATH": toy["PYTHONPATH"].replace(old, str(root), 1)}


@pytest.fixture(scope="module")
def submit(cluster, dozen):
    """Runs the sweep command; the environment given goes to the jobs."""

    def run(workdir, *flags, **environment):
        given = ("--experiment=toy.tiny", "--sweep=dozen", f"--workdir={workdir}")
        result = processes.fork(
            "launch.sweep",
            *given,
            "--executor=slurm",
            "--time=60",
            *flags,
            **dozen,
            **cluster,
            **environment,
        ).wait()
        return result

    return run


@pytest.fixture(autouse=True)
def asks_this_cluster(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])


def call(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout


def folder_of(workdir):
    return workdir / "toy.tiny" / "sweeps" / "dozen"


def point_of(folder, number) -> pathlib.Path:
    (found,) = folder.glob(f"{number:04d}-*") or (folder / "missing",)
    return found


def rows(folder, number):
    found = list(folder.glob(f"{number:04d}-*/metrics.jsonl"))
    return read_rows(found[0]) if found else []


def log(folder, number):
    path = folder / "logs" / f"{number:04d}.log"
    return path.read_text() if path.exists() else ""


def hurry():
    """Has what was requeued start in a moment, not in minutes, and with time enough."""
    soon = datetime.datetime.now() + datetime.timedelta(seconds=10)
    lines = call("squeue", "-h", "-r", "--states=PENDING", "-o", "%i %S").split()
    for task, start in zip(lines[::2], lines[1::2], strict=True):
        if start != "N/A" and datetime.datetime.fromisoformat(start) > soon:
            at = ("StartTime=now+3", "TimeLimit=60")
            call("scontrol", "update", f"jobid={task}", *at)


def task_of(folder, number):
    (task,) = (t for t in slurm._queued(slurm._jobs(folder)) if t.number == number)
    return f"{task.job}_{task.task}"


def process_of(cluster, rank):
    """Returns the process of a rank of the one point that runs."""
    wanted = {"SLURM_CONF": cluster["SLURM_CONF"], "SLURM_PROCID": str(rank)}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if wanted.items() <= process.environ().items():
                found.append(process.pid)
    return min(found)


def until_over(folder, numbers):
    """Waits until Slurm is done with points."""

    def over():
        hurry()
        return not set(numbers) & set(slurm.states(folder))

    processes.until(over, timeout=240)


def midway(folder, *numbers):
    """Waits until points have trained for a while."""

    def reached(number):
        return any(row["step"] >= 8 for row in rows(folder, number))

    processes.until(lambda: all(map(reached, numbers)), timeout=180)
    assert all(status(point_of(folder, n)) not in FINISHED for n in numbers)


def saved(folder, number):
    """Whether the point's process has stopped as it was told to, and been requeued."""
    text = log(folder, number)
    return "goes on from there" in text and "requeued: 1" in text


@pytest.fixture(scope="module")
def reference(submit, tmp_path_factory):
    """The folder of what runs on two nodes, uninterrupted."""
    workdir = tmp_path_factory.mktemp("reference")
    assert submit(workdir, "--points=10,11", "--nodes=2").code == 0
    return folder_of(workdir)


def test_interrupted_points_finish_with_the_bits_of_uninterrupted_ones(
    submit, reference, tmp_path
):
    folder = folder_of(tmp_path)
    until_over(reference, DOUBLE)
    assert [status(point_of(reference, n)) for n in DOUBLE] == ["done", "done"]

    result = submit(tmp_path, "--points=10,11", "--nodes=2", SLOWLY="1")
    assert result.code == 0, result
    # The rest: the two are queued already, and one array has no place for twelve.
    result = submit(tmp_path, SLOWLY="1")
    assert result.code == 0, result
    assert "the points 0-9\n" in result.stdout
    assert "nothing to submit" in submit(tmp_path).stdout
    assert slurm.states(folder).keys() == set(range(12))

    midway(folder, *DOUBLE)
    # Less than the time to save is left: it gets SIGTERM as at its limit.
    call("scontrol", "update", f"jobid={task_of(folder, 10)}", "TimeLimit=2")
    processes.until(lambda: saved(folder, 10), timeout=120)
    midway(folder, 0, 1)
    call("sbatch", "--partition=high", "--nodes=4", "--output=/dev/null", "--wrap=true")
    for number in (0, 1, 11):
        processes.until(lambda n=number: saved(folder, n), timeout=120)
    until_over(folder, range(12))

    for number, changes in enumerate(POINTS):
        config = replace(tiny.Config(), changes)
        point = point_of(folder, number)
        if number in DOUBLE:
            whole = point_of(reference, number)
        else:
            whole = tmp_path / "whole" / point.name
            tiny.train(tiny.TINY, {whole: config})
        tiny.assert_same_bits(tiny.TINY, point, whole, config)
    assert "nothing to submit" in submit(tmp_path).stdout
    assert len(list((folder / "logs").iterdir())) == 12


def test_a_point_goes_on_when_one_of_its_processes_is_killed(
    submit, reference, cluster, tmp_path
):
    folder = folder_of(tmp_path)
    assert submit(tmp_path, "--points=10", "--nodes=2", SLOWLY="1").code == 0
    midway(folder, 10)
    os.kill(process_of(cluster, 1), signal.SIGKILL)
    processes.until(lambda: "requeued: 1" in log(folder, 10), timeout=180)
    until_over(folder, [10])
    point, whole = (point_of(path, 10) for path in (folder, reference))
    tiny.assert_same_bits(tiny.TINY, point, whole, replace(tiny.Config(), POINTS[10]))


def test_what_is_cancelled_ends_for_good(submit, tmp_path):
    folder = folder_of(tmp_path)
    assert submit(tmp_path, "--points=0,1", SLOWLY="1").code == 0
    midway(folder, 0, 1)
    assert slurm.cancel(folder, [0]) == [0]
    processes.until(lambda: slurm.states(folder) == {1: "running"})
    call("scancel", task_of(folder, 1))
    processes.until(lambda: slurm.states(folder) == {})
    for number in (0, 1):
        assert status(point_of(folder, number)) == "unfinished"
        assert "requeued" not in log(folder, number)


def test_names_with_a_meaning_for_shells_pass_unharmed(submit, tmp_path):
    workdir = tmp_path / "a b;'c' \"d\" $(touch e) `touch f` *"
    options = ("--sbatch=--comment=$(touch e); 'g", "--points=2", "--max_parallel=1")
    assert submit(workdir, *options).code == 0
    folder = folder_of(workdir)
    until_over(folder, [2])
    assert status(point_of(folder, 2)) == "done"
    assert {path.name for path in tmp_path.iterdir()} == {workdir.name}
    assert {path.name for path in workdir.iterdir()} == {"toy.tiny"}


def test_a_point_that_fails_is_not_requeued(submit, tmp_path):
    folder = folder_of(tmp_path)
    flags = ("--points=3", "--config.nan_at=2")
    assert submit(tmp_path, *flags, "--name=dozen", "--nodes=2").code == 0
    until_over(folder, [3])
    assert status(point_of(folder, 3)) == "diverged"
    assert "requeued" not in log(folder, 3)


def test_what_slurm_refuses_is_told_in_a_sentence(submit, tmp_path):
    for more in ((), ("--validate",)):
        result = submit(tmp_path, "--partition=none", *more)
        assert result.code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: sbatch refuses: invalid partition specified")
    result = submit(tmp_path, "--validate")
    assert result.code == 0
    assert "to start at" in result.stdout
    assert not (folder_of(tmp_path) / "slurm.json").exists()
    assert call("squeue", "-h") == ""


def test_two_commands_at_once_submit_a_point_once(cluster, dozen, tmp_path):
    given = ("--experiment=toy.tiny", "--sweep=dozen", f"--workdir={tmp_path}")
    flags = ("--executor=slurm", "--time=60", "--sbatch=--hold")
    started = [
        processes.fork("launch.sweep", *given, *flags, **dozen, **cluster)
        for _ in range(2)
    ]
    results = [command.wait() for command in started]
    assert [result.code for result in results] == [0, 0], results
    assert len(call("squeue", "-h", "-r").splitlines()) == 12
    assert len(slurm.cancel(folder_of(tmp_path))) == 12
