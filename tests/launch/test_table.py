"""The table of measured and published numbers."""

import dataclasses
import json

import processes
import pytest

from dl_core.published import Row
from dl_core.results import Run, Runs
from launch import publish, registry, table

ROW = Row(
    task="Copying",
    sweep="networks",
    metric="test/accuracy",
    better="higher",
    scale=100,
    unit=" %",
    published={"tcn": 99.0, "lstm": 50.0},
)


def run(name, seed, accuracy, status="done"):
    config = {"model.name": name, "seed": seed}
    result = {"status": status, "metrics": {"test/accuracy": accuracy}}
    return Run(config, (), result)


def words(line):
    return " ".join(line.split())


@pytest.fixture
def experiment():
    points = [{"model.name": name} for name in ("tcn", "lstm", "gru")]
    some = registry.load(registry.names()[0])
    return dataclasses.replace(
        some, name="a.copying", sweeps={"networks": points}, table=(ROW,)
    )


def test_means_stand_beside_what_was_published(experiment):
    runs = Runs([run("tcn", 0, 0.992), run("tcn", 1, 0.994), run("lstm", 0, 0.4)])
    title, tcn, lstm, gru, command = table.told(experiment, ROW, runs)
    assert title == "Copying (test/accuracy %, higher is better)"
    assert tcn.split() == [
        "TCN",
        "99.30",
        "±",
        "0.14",
        "(2",
        "seeds)",
        "published",
        "99",
        "at",
        "or",
        "better",
    ]
    assert words(lstm) == "LSTM 40 (1 seed) published 50 behind"
    assert words(gru) == "GRU not run"
    assert command == (
        "  not run: python -m launch.sweep --experiment=a.copying --sweep=networks"
    )


def test_a_diverged_network_is_behind(experiment):
    runs = Runs([run("tcn", 0, None, "diverged")])
    _, tcn, *_ = table.told(experiment, ROW, runs)
    assert tcn.split() == [
        "TCN",
        "diverged",
        "(1",
        "seed)",
        "published",
        "99",
        "behind",
    ]


def test_the_command_names_the_preset(experiment):
    row = dataclasses.replace(ROW, preset="paper")
    *_, command = table.told(experiment, row, Runs())
    assert command.endswith("--sweep=networks --preset=paper")


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_runs_on_the_disk_come_before_published_ones(
    experiment, preset, tmp_path, monkeypatch
):
    label = "networks" if preset == "default" else "networks-paper"
    result = {"status": "done", "metrics": {"test/accuracy": 0.5}}
    found = {
        "base": {"model": {"name": "tcn"}, "seed": 0},
        "runs": [{"changes": {"model.name": "lstm"}, **result}],
    }
    monkeypatch.setattr(publish, "published", lambda name: {label: found})
    monkeypatch.setattr(
        table,
        "FLAGS",
        type("Flags", (), {"workdir": str(tmp_path), "experiment": None}),
    )
    row = dataclasses.replace(ROW, preset=preset, where={"seed": 0})
    (published,) = table.measured(experiment, row)
    assert published.config["model.name"] == "lstm"
    folder = tmp_path / "a.copying" / "sweeps" / label / "0000-0"
    folder.mkdir(parents=True)
    config = {"model": {"name": "gru"}, "seed": 0}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "metrics.jsonl").write_text("")
    (folder / "DONE").write_text(json.dumps({**result, "text": ""}))
    (own,) = table.measured(experiment, row)
    assert own.config["model.name"] == "gru"


def test_the_command_prints_every_row_and_refuses_what_has_none():
    with_table = [n for n in registry.names() if registry.load(n).table]
    result = processes.fork("launch.table").wait()
    assert result.code == 0, result.stderr
    for name in with_table:
        for row in registry.load(name).table:
            assert row.task in result.stdout
    without = next(n for n in registry.names() if n not in with_table)
    result = processes.fork("launch.table", f"--experiment={without}").wait()
    assert result.code == 2
    assert f"--experiment={without}: it has no published table" in result.stderr
