"""`python -m launch.collect`: the tables hold what the runs' directories hold."""

import csv
import itertools
import json
import shutil

import by_hand
import numpy as np
import processes
import pyarrow.parquet as pq
import pytest

from dl_core.config import flatten
from dl_core.train.records import read_rows


@pytest.fixture
def swept(failing):
    return failing / "toy.tiny/sweeps/failing"


@pytest.fixture
def folder(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "failing")


def collect(*arguments):
    result = processes.fork("launch.collect", *arguments).wait()
    assert (result.code, result.stderr) == (0, ""), result
    return result


def results(folder):
    return pq.read_table(folder / "results.parquet").to_pylist()


def measured(rows):
    """Rows of metrics as {(step, stage, metric, which of the same): value}."""
    found = {}
    for row in rows:
        for name in row.keys() - {"step", "stage"}:
            key = (row["step"], row["stage"], name)
            found[(*key, sum(k[:3] == key for k in found))] = row[name]
    return found


def measurements(folder, sweep, point):
    """What `measured` gives, from the table of metrics."""
    found = []
    for row in pq.read_table(folder / "metrics.parquet").to_pylist():
        if (row["sweep"], row["point"]) == (str(sweep), point):
            value = row["value"]
            if row["values"] is not None:
                assert value is None
                value = np.reshape(row["values"], row["shape"]).tolist()
            found.append(
                {"step": row["step"], "stage": row["stage"], row["metric"]: value}
            )
    return measured(found)


def test_the_tables_hold_what_the_directories_hold(folder):
    told = collect(folder)
    assert told.stdout.startswith(
        f"{folder}: 2 runs in results.parquet and results.csv"
    )
    paths = sorted(folder.glob("0*-*"))
    for number, (row, path) in enumerate(zip(results(folder), paths, strict=True)):
        done = json.loads((path / "DONE").read_text())
        config = flatten(json.loads((path / "config.json").read_text())["config"])
        assert (row["experiment"], row["sweep"]) == ("toy.tiny", str(folder))
        assert row["point"] == number
        names = ("status", "step", "text", "seconds", "trained_together", "commit")
        for name in (*names, "device"):
            assert row[name] == done[name]
        assert {n: row[f"config.{n}"] for n in config} == config
        final = {name: value for name, value in row.items() if "/" in name}
        assert {n: x for n, x in final.items() if x is not None} == done["metrics"]
        rows = read_rows(path / "metrics.jsonl")
        assert measurements(folder, folder, number) == measured(rows)
    assert [row["status"] for row in results(folder)] == ["done", "diverged"]


def test_the_csv_is_the_same_table(folder):
    collect(folder)
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, wanted in zip(rows, results(folder), strict=True):
        assert list(row) == list(wanted)
        for name, value in wanted.items():
            if value is None or isinstance(value, str):
                assert row[name] == (value or "")
            else:
                assert json.loads(row[name]) == value


def test_runs_that_have_not_finished(folder):
    done, other = sorted(folder.glob("0*-*"))
    spec = json.loads((folder / "sweep.json").read_text())
    spec["points"]["2"] = {"nan_at": 7}
    (folder / "sweep.json").write_text(json.dumps(spec))
    (other / "DONE").unlink()
    (other / "FAILED").write_text(json.dumps({"error": "the disk is full", "time": 0}))
    metrics = other / "metrics.jsonl"
    rows = read_rows(done / "metrics.jsonl")
    metrics.write_text((done / "metrics.jsonl").read_text()[:-7])
    collect(folder)
    first, failed, missing = results(folder)
    assert first["status"] == "done"
    assert (failed["status"], failed["text"]) == ("failed", "the disk is full")
    assert (failed["step"], failed["device"]) == (rows[-2]["step"], None)
    last = {name: value for row in rows[:-1] for name, value in row.items()}
    assert {n: failed[n] for n in failed if "/" in n and n in last} == {
        name: value for name, value in last.items() if "/" in name
    }
    assert measurements(folder, folder, 1) == measured(rows[:-1])
    assert (missing["status"], missing["config.nan_at"]) == ("missing", 7)
    assert missing["config.width"] == 6
    assert missing["step"] is missing["test/loss"] is None
    collect(folder, "--finished")
    assert results(folder) == [first]
    assert measurements(folder, folder, 1) == {}


def test_arrays_are_kept(tmp_path):
    folder = by_hand.sweep(tmp_path / "s", {0: {}, 1: {"widths": [3, 4]}}, widths=[])
    grid = np.arange(6.0).reshape(1, 3, 2).tolist()
    rows = [
        {"step": 1, "test/a": [1, 2.5], "test/grid": grid, "test/none": []},
        {"step": 2, "test/a": [3], "test/grid": [], "test/loss": 7},
        {"step": 3, "test/a": [], "test/grid": [*grid, *grid], "test/loss": 0.1},
    ]
    final = {"test/a": [0.5, 0.25], "test/grid": grid}
    by_hand.run(folder, 0, rows, DONE=by_hand.done(**final))
    by_hand.run(folder, 1, rows[:2])
    collect(folder)
    wanted = [{"stage": "train", **row} for row in rows]
    assert measurements(folder, folder, 0) == measured(wanted)
    assert measurements(folder, folder, 1) == measured(wanted[:2])
    table = pq.read_table(folder / "metrics.parquet").to_pylist()
    shapes = [row["shape"] for row in table if row["metric"] == "test/grid"]
    assert shapes[0] == [1, 3, 2]
    first, second = results(folder)
    assert {name: first[name] for name in final} == final
    assert [row["config.widths"] for row in (first, second)] == [[], [3, 4]]


def test_values_of_several_types(tmp_path):
    points = dict(enumerate([{"a": 1}, {"a": "b"}, {"a": [1, 2]}, {}]))
    for number, value in enumerate([1, 2.5, 2**53 + 1, None]):
        points[number] |= {"b": value, "c": 2**70, "d": number > 1}
    folder = by_hand.sweep(tmp_path / "s", points)
    rows = [{"step": 1, "test/loss": float("nan")}, {"step": 2, "test/loss": 1.5}]
    for number in points:
        by_hand.run(folder, number, rows)
    collect(folder)
    found = results(folder)
    assert [json.loads(row["config.a"] or "null") for row in found] == [
        1,
        "b",
        [1, 2],
        None,
    ]
    assert [json.loads(row["config.c"]) for row in found] == [2**70] * 4
    assert [row["config.d"] for row in found] == [False, False, True, True]
    values = list(measurements(folder, folder, 0).values())
    assert np.isnan(values[0])
    assert values[1] == 1.5


def test_several_sweeps_in_one_folder(swept, tmp_path):
    before = sorted(swept.iterdir())
    other = by_hand.sweep(tmp_path / "other", {0: {}})
    rows = [{"step": 1, "test/other": 3}]
    by_hand.run(other, 0, rows, DONE=by_hand.done(1, **{"test/other": 3}))
    out = tmp_path / "a" / "b"
    collect(swept, other, f"--out={out}")
    found = results(out)
    keys = [(row["sweep"], row["point"]) for row in found]
    assert keys == [(str(swept), 0), (str(swept), 1), (str(other), 0)]
    assert [row["test/other"] for row in found] == [None, None, 3]
    assert measurements(out, other, 0) == {(1, "train", "test/other", 0): 3}
    assert sorted(swept.iterdir()) == before
    collect(other, f"--out={out}")
    assert len(results(out)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the folder of a sweep is missing"),
        (("--finished", "{}"), "no run has finished; without --finished"),
        (("{}x",), "did you mean {}?"),
        (("{}", "--out={}/sweep.json"), "{}/sweep.json: File exists"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, arguments, words):
    folder = by_hand.sweep(tmp_path / "s", {0: {}})
    given = [argument.format(folder) for argument in arguments]
    result = processes.fork("launch.collect", *given).wait()
    assert (result.code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words.format(folder) in line
    assert not list(itertools.chain(folder.glob("*.parquet"), folder.glob("*.csv")))
