"""`python -m launch.status`: how far sweeps are, by what their folders hold."""

import json
import os
import sys
import time
import types

import by_hand
import processes
import pytest

from dl_core.files import locked
from dl_core.train.records import read_rows
from launch import sweep_folder


@pytest.fixture(scope="module")
def status(toy):
    def run(*arguments):
        return processes.fork("launch.status", *arguments, **toy).wait()

    return run


def lines_of(result):
    assert (result.code, result.stderr) == (0, ""), result
    return [line.split() for line in result.stdout.splitlines()]


def test_a_finished_sweep(failing, status):
    folder = failing / "toy.tiny/sweeps/failing"
    title, head, done, diverged, counts = lines_of(status(folder))
    assert title == [str(folder)]
    assert head == ["point", "status", "step", "test/loss", "last", "row"]
    (path,) = folder.glob("0000-*")
    final = read_rows(path / "metrics.jsonl")[-1]["test/loss"]
    assert done[:4] == ["0", "nan_at=-1", "done", "12/12"]
    assert float(done[4]) == pytest.approx(final, rel=1e-3)
    assert done[6:] in (["s", "ago"], ["min", "ago"])
    (path,) = folder.glob("0001-*")
    ended = json.loads((path / "DONE").read_text())["step"]
    assert diverged[:4] == ["1", "nan_at=2", "diverged", f"{ended}/12"]
    assert counts == ["2", "points:", "1", "done,", "1", "diverged"]


def test_the_metric_can_be_chosen(failing, status):
    folder = failing / "toy.tiny/sweeps/failing"
    _, head, done, *_ = lines_of(status(folder, "--metric=observed/norm"))
    (path,) = folder.glob("0000-*")
    rows = read_rows(path / "metrics.jsonl")
    final = [row["observed/norm"] for row in rows if "observed/norm" in row][-1]
    assert head[3] == "observed/norm"
    assert float(done[4]) == pytest.approx(final, rel=1e-3)
    wrong = status(folder, "--metric=observed/nrm")
    assert wrong.code == 2
    assert wrong.stderr.endswith("did you mean 'observed/norm'?\n")


def test_every_sweep_of_a_workdir_has_a_line(tmp_path, status):
    for name in ("one", "other"):
        folder = by_hand.sweep(tmp_path / "toy.tiny/sweeps" / name, {0: {}, 1: {}})
    by_hand.run(folder, 1, DONE=by_hand.done())
    (by_hand.sweep(tmp_path / "a.b/sweeps/c", {}) / "sweep.json").write_text("[]")
    damaged, one, other = lines_of(status(f"--workdir={tmp_path}"))
    assert damaged[1] == "error:"
    assert damaged[-2:] == ["no", "sweep"]
    assert one[0] == str(folder.with_name("one"))
    assert one[1:] == ["2", "points:", "2", "missing"]
    assert other[1:] == ["2", "points:", "1", "missing,", "1", "done"]


def test_how_far_each_point_is(tmp_path, status):
    points = {number: {"rate": number} for number in range(7)}
    points[6] = {"name": "a\nb\x1b[2J", "steps": 50}
    folder = by_hand.sweep(tmp_path / "s", points)
    rows = [{"step": step, "test/loss": 1 / step} for step in (1, 2, 4)]
    by_hand.run(folder, 1, rows)
    sentence = "the disk is full"
    by_hand.run(folder, 2, rows, FAILED={"error": sentence, "time": 0})
    torn = by_hand.run(folder, 3, rows) / "metrics.jsonl"
    torn.write_text(torn.read_text()[:-9])
    by_hand.run(folder, 4, rows, DONE=["not", "a", "result"])
    by_hand.run(folder, 5, [])
    by_hand.run(folder, 6, [{"step": 60, "train/loss": 0}])
    hours = time.time() - 5 * 3600
    os.utime(torn, (hours, hours))
    with locked(next(folder.glob("0001-*"))):
        told = lines_of(status(folder))[2:]
    assert told[0] == ["0", "rate=0", "missing"]
    assert told[1][:5] == ["1", "rate=1", "running", "4/12", "0.25"]
    assert told[2][:5] == ["2", "rate=2", "failed", "4/12", "0.25"]
    assert told[2][8:] == sentence.split()
    assert told[3][2:] == ["unfinished", "2/12", "0.5", "5", "h", "ago"]
    assert told[4][2] == "damaged"
    assert told[5][2] == "unfinished"
    assert told[6][1:5] == [r"name=a\nb\x1b[2J", "steps=50", "unfinished", "60"]
    assert told[7][:2] == ["7", "points:"]


def test_rows_longer_than_what_is_read_at_once(tmp_path):
    folder = by_hand.sweep(tmp_path / "s", {0: {}})
    arrays = [0.5] * 100_000
    rows = [{"step": step, "test/all": arrays} for step in (1, 2)]
    by_hand.run(folder, 0, rows)
    (point,) = sweep_folder.read(folder).points
    assert point.progress().step == 2
    assert point.progress().numbers == {"test/all": arrays}


def test_slurm_is_asked_what_the_files_do_not_say(tmp_path, monkeypatch):
    folder = by_hand.sweep(tmp_path / "s", {number: {} for number in range(6)})
    by_hand.run(folder, 0, DONE=by_hand.done())
    by_hand.run(folder, 1)
    for number in (2, 3):
        by_hand.run(folder, number, FAILED={"error": "", "time": 0})
    states = {0: "running", 1: "running", 2: "queued", 3: "timeout", 4: "queued"}
    slurm = types.SimpleNamespace(states=lambda asked: states)
    monkeypatch.setitem(sys.modules, "launch.slurm", slurm)
    monkeypatch.setattr("launch.slurm", slurm, raising=False)
    found = sweep_folder.read(folder).statuses()
    assert list(found.values())[1:4] == ["unfinished", "failed", "failed"]
    (folder / "slurm.json").write_text("{}")
    found = sweep_folder.read(folder).statuses()
    wanted = ["done", "running", "queued", "failed", "queued", "missing"]
    assert list(found.values()) == wanted


@pytest.mark.parametrize("module", ["status", "logs", "cancel"])
def test_it_starts_without_jax(module):
    code = f"import sys, launch.{module}; sys.exit('jax' in sys.modules)"
    assert processes.start_python("-c", code).wait().code == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("rats", "did you mean {}/rates?"),
        ("", "did you mean {}/rates?"),
        ("rates/0000-00000000", "did you mean {}/rates?"),
        ("rates/logs/0000.log", "did you mean {}/rates?"),
        ("/nowhere", "/nowhere is not a sweep's folder (it has no sweep.json)"),
    ],
)
def test_a_folder_that_is_no_sweep(tmp_path, status, given, words):
    sweeps = tmp_path / "toy.tiny/sweeps"
    by_hand.run(by_hand.sweep(sweeps / "rates", {0: {}}), 0)
    result = status(sweeps / given)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.endswith(
        words.format(sweeps) + ("" if "\n" in words else "\n")
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_workdir_without_sweeps(tmp_path, status):
    result = status(f"--workdir={tmp_path}")
    assert result.code == 2
    assert result.stderr == f"error: --workdir={tmp_path}: there are no sweeps in it\n"
