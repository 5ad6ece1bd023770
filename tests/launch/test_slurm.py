"""`--executor=slurm` where there is no Slurm: its commands, refusals and records."""

import json
import shlex

import processes
import pytest

from dl_core.errors import UserError
from launch import slurm


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory):
    """A PATH on which there is nothing."""
    return str(tmp_path_factory.mktemp("nothing"))


def sweep(toy, path, *flags, name="rates"):
    given = ("--experiment=toy.tiny", f"--sweep={name}", "--executor=slurm")
    return processes.fork("launch.sweep", *given, *flags, **toy, PATH=path).wait()


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Makes a command of Slurm's that answers with a text."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def make(name, answer, code=0):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\necho {shlex.quote(answer)}\nexit {code}\n")
        path.chmod(0o755)

    return make


@pytest.fixture
def folder(tmp_path):
    """A sweep's folder with two jobs, one of them of the points from 10 on."""
    jobs = [
        {"job": "7", "name": "rates-12345678", "numbers": "0-5", "first": 0},
        {"job": "9", "name": "rates-12345678", "numbers": "10-11", "first": 10},
    ]
    (tmp_path / "slurm.json").write_text(json.dumps({"jobs": jobs}))
    return tmp_path


def test_dry_run_prints_every_command_and_does_nothing(toy, nowhere, tmp_path):
    flags = ("--partition=gpu", "--time=1:00:00", "--nodes=2", "--tasks_per_node=8")
    more = ("--max_parallel=2", "--sbatch=--gres=gpu:8", "--sbatch=--comment=a b;c")
    places = (f"--workdir={tmp_path}", "--points=1-3", "--dry_run")
    result = sweep(toy, nowhere, *flags, *more, *places)
    assert result.code == 0, result
    first, *points = result.stdout.splitlines()
    words = shlex.split(first)
    folder = tmp_path / "toy.tiny" / "sweeps" / "rates"
    for word in (
        "--array=1-3%2",
        "--partition=gpu",
        "--time=1:00:00",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gres=gpu:8",
        "--comment=a b;c",
        f"--output={folder}/logs/%4a.log",
    ):
        assert word in words
    assert words[0] == "sbatch"
    assert not any("account" in word for word in words)
    script = next(i for i, word in enumerate(words) if word.endswith("slurm_array.sh"))
    command = words[script + 5 :]
    assert [shlex.split(line)[1:] for line in points] == [
        [*command, f"--index={number}"] for number in (1, 2, 3)
    ]
    assert list(tmp_path.iterdir()) == []


def test_it_is_refused_in_a_sentence_where_slurm_is_not(toy, nowhere, tmp_path):
    result = sweep(toy, nowhere, f"--workdir={tmp_path}")
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: sbatch is not installed here")


@pytest.mark.parametrize("flags", [(), ("--validate",)])
def test_what_submits_nothing_leaves_a_sweep_cancelled(toy, tool, tmp_path, flags):
    tool("sbatch", "error: no")
    tool("scontrol", "MaxArraySize = 5")
    if not flags:
        tool("sbatch", "no", 1)
    cancelled = tmp_path / "toy.tiny/sweeps/rates/CANCELLED"
    cancelled.parent.mkdir(parents=True)
    cancelled.touch()
    path = f"{tmp_path / 'bin'}:/bin:/usr/bin"
    result = sweep(toy, path, f"--workdir={tmp_path}", *flags)
    assert result.code == (0 if flags else 2), result
    assert cancelled.exists()


@pytest.mark.parametrize("name", ["100%", "a\\b", "a\nb"])
def test_names_that_slurm_would_read_as_its_own_are_refused(
    toy, nowhere, tmp_path, name
):
    result = sweep(toy, nowhere, f"--workdir={tmp_path / name}", "--dry_run")
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --workdir=")


def test_what_is_no_option_of_sbatch_is_refused(toy, nowhere, tmp_path):
    flags = (f"--workdir={tmp_path}", "--sbatch=gres=gpu:1", "--dry_run")
    result = sweep(toy, nowhere, *flags)
    assert result.code == 2
    assert "--sbatch=gres=gpu:1: expected an option of sbatch" in result.stderr


def test_states_come_from_the_queue_and_then_from_the_accounts(tool, folder):
    tool("squeue", "7|0|RUNNING\n7|1|PENDING\n9|1|COMPLETING\n8|2|RUNNING")
    found = {0: "running", 1: "queued", 11: "running"}
    assert slurm.states(folder) == found
    tool("sacct", "Slurm accounting storage is disabled", 1)
    assert slurm.states(folder) == found
    ended = ("7_1|FAILED", "7_2|CANCELLED by 0", "7_3|TIMEOUT", "7_4|COMPLETED")
    tool("sacct", "\n".join([*ended, "7_[5-6]|PENDING", "9_0|NODE_FAIL"]))
    found |= {2: "cancelled", 3: "stopped", 10: "stopped"}
    assert slurm.states(folder) == found


def test_a_folder_without_jobs_needs_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert slurm.states(tmp_path) == {}
    assert slurm.cancel(tmp_path) == []


def test_a_damaged_record_and_a_missing_squeue_are_told(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="squeue is not installed"):
        slurm.states(folder)
    (folder / "slurm.json").write_text("[1]")
    with pytest.raises(UserError, match=r"slurm\.json is damaged"):
        slurm.states(folder)
