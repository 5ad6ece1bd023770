"""`python -m launch.sweep` and `launch.figures`: all executors leave the same."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import processes
import pytest
import tiny

from dl_core.config import replace
from dl_core.files import locked
from dl_core.train.records import read_rows

NAME = "toy.tiny"
EXECUTORS = {
    "local": ("--executor=local", "--slots=2"),
    "in_turn": ("--executor=vmap", "--vmap_mode=in_turn"),
    "together": ("--executor=vmap", "--vmap_mode=together"),
}
LONG = ("--config.steps=1000000", "--config.checkpoint_every=100")


@pytest.fixture(scope="module")
def launch(toy):
    """Runs a command on the toy experiment's sweep under a workdir."""

    def run(workdir, *flags, module="sweep", sweep="rates", wait=True):
        given = [f"--experiment={NAME}", f"--workdir={workdir}", *flags]
        if module == "sweep":
            given.append(f"--sweep={sweep}")
        command = processes.fork(f"launch.{module}", *given, **toy)
        return command.wait() if wait else command

    return run


@pytest.fixture(scope="module")
def in_shell(toy):
    """Runs a line as it was printed, in a shell."""

    def run(line):
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            line,
            shell=True,
            env=os.environ | toy | {"PATH": path},
            cwd="/",
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def swept(launch, tmp_path_factory):
    """Finished sweeps: {executor: workdir}, and what their commands told."""
    workdirs, told = {}, {}
    for executor, flags in EXECUTORS.items():
        workdirs[executor] = tmp_path_factory.mktemp(executor)
        told[executor] = launch(workdirs[executor], *flags)
        assert told[executor].code == 0, told[executor]
    return workdirs, told


def folder_of(workdir, name="rates"):
    return workdir / NAME / "sweeps" / name


def points_of(workdir, name="rates"):
    return sorted(folder_of(workdir, name).glob("0*"))


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def assert_refused(result, *words):
    assert result.code == 2, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


# What the executors leave.


def files(workdir):
    """The files of the points by their relative paths, without times and hashes."""
    names = set()
    for point in points_of(workdir):
        for path in point.rglob("*"):
            name = str(path.relative_to(point.parent))
            name = re.sub(r"tfevents\.\d+", "tfevents", name)
            if "/checkpoints/" not in name or path.parent.name == "checkpoints":
                names.add(name)
    return names


@pytest.mark.parametrize("executor", ["local", "together"])
def test_executors_leave_the_same_results(swept, executor):
    workdirs, _ = swept
    found, wanted = points_of(workdirs[executor]), points_of(workdirs["in_turn"])
    assert [p.name for p in found] == [p.name for p in wanted]
    assert len(found) == 4
    assert files(workdirs[executor]) == files(workdirs["in_turn"])
    for point, other, changes in zip(found, wanted, tiny.SWEEPS["rates"], strict=True):
        config = replace(tiny.Config(), changes)
        tiny.assert_close(tiny.TINY, point, other, config)
        text = (point / "config.json").read_bytes()
        assert text == (other / "config.json").read_bytes()
        results = [json.loads((p / "DONE").read_text()) for p in (point, other)]
        assert results[0].keys() == results[1].keys()
        for name in ("status", "step", "text", "versions", "device", "commit"):
            assert results[0][name] == results[1][name]
        metrics = [result["metrics"] for result in results]
        assert metrics[0].keys() == metrics[1].keys()
        for path in (point / "artifacts").iterdir():
            arrays = [np.load(p / "artifacts" / path.name) for p in (point, other)]
            assert set(arrays[0]) == set(arrays[1])
            for name in arrays[0]:
                np.testing.assert_allclose(
                    arrays[0][name], arrays[1][name], rtol=1e-5, atol=1e-5
                )


def test_the_sweep_is_written_down(swept):
    for workdir in swept[0].values():
        saved = json.loads((folder_of(workdir) / "sweep.json").read_text())
        assert saved["experiment"] == NAME
        assert saved["base"]["steps"] == 12
        assert list(saved["points"].values()) == list(tiny.SWEEPS["rates"])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_summary_has_a_line_a_point(swept, executor):
    workdirs, told = swept
    lines = told[executor].stdout.splitlines()
    assert lines[0].split() == ["point", "status", "test/loss", "seconds"]
    points = points_of(workdirs[executor])
    for number, (changes, point) in enumerate(
        zip(tiny.SWEEPS["rates"], points, strict=True)
    ):
        words = lines[1 + number].split()
        label = [f"{path}={value}" for path, value in changes.items()]
        assert words[:4] == [str(number), *label, "done"]
        final = read_rows(point / "metrics.jsonl")[-1]["test/loss"]
        assert float(words[4]) == pytest.approx(final, rel=1e-3)
    assert lines[5] == "4 done"
    assert lines[6].startswith(f"draw it: python -m launch.figures --experiment={NAME}")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_finished_sweep_again_runs_nothing(swept, launch, executor):
    workdirs, told = swept
    before = contents(workdirs[executor])
    again = launch(workdirs[executor], *EXECUTORS[executor])
    assert again.code == 0
    assert again.stdout == told[executor].stdout
    assert contents(workdirs[executor]) == before


def test_each_child_of_the_local_executor_has_a_log(swept):
    logs = sorted((folder_of(swept[0]["local"]) / "logs").iterdir())
    points = points_of(swept[0]["local"])
    assert [log.stem for log in logs] == [point.name[:4] for point in points]
    for log in logs:
        assert "finished 12 steps" in log.read_text()


# Figures.


def draw(launch, workdir, *flags):
    return launch(workdir, *flags, module="figures")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_figures_are_drawn_from_any_executors_results(swept, launch, executor):
    workdir = swept[0][executor]
    result = draw(launch, workdir)
    assert result.code == 0, result.stderr
    folder = folder_of(workdir) / "figures"
    assert result.stdout.split() == [str(folder / f"rates.{k}") for k in ("png", "svg")]
    image = plt.imread(folder / "rates.png")
    assert image[..., :3].std() > 0.01
    assert "<svg" in (folder / "rates.svg").read_text()
    made_by = json.loads((folder / "rates.json").read_text())
    assert made_by["figure"] == made_by["sweep"] == "rates"
    folders = [str(point) for point in points_of(workdir)]
    assert [run["folder"] for run in made_by["runs"]] == folders
    assert {run["status"] for run in made_by["runs"]} == {"done"}
    before = {path: path.read_bytes() for path in folder.iterdir()}
    draw(launch, workdir)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_dry_run_of_figures_names_the_files_and_writes_none(swept, launch, tmp_path):
    workdir = tmp_path / "runs"
    shutil.copytree(swept[0]["in_turn"], workdir)
    shutil.rmtree(folder_of(workdir) / "figures", ignore_errors=True)
    before = contents(workdir)
    dry = draw(launch, workdir, "--dry_run")
    assert dry.code == 0
    assert contents(workdir) == before
    assert draw(launch, workdir).stdout == dry.stdout


def test_figures_refuse_an_incomplete_sweep(swept, launch, in_shell, tmp_path):
    workdir = tmp_path / "some 'runs'"
    flags = ("--config.seed=1",)
    assert launch(workdir, *flags, "--index=1").code == 0
    refused = draw(launch, workdir, *flags, "--figure=rates")
    (sweep,) = (workdir / NAME / "sweeps").iterdir()
    assert_refused(refused, "rates", "3 of 4 points are not done")
    names = [f"0{number:03d}-" for number in (0, 2, 3)]
    for name, changes in zip(names, np.delete(tiny.SWEEPS["rates"], 1), strict=True):
        label = " ".join(f"{path}={value}" for path, value in changes.items())
        found = re.search(rf"{name}[0-9a-f]{{8}} \((.*?): missing\)", refused.stderr)
        assert found.group(1) == label
    command = refused.stderr.strip().split("complete it with: ")[1]
    completed = in_shell(f"{command} --executor=vmap")
    assert completed.returncode == 0, completed.stderr
    assert draw(launch, workdir, *flags).code == 0
    assert (sweep / "figures/rates.png").exists()


def test_no_figure_at_all_is_no_success(launch, tmp_path):
    result = draw(launch, tmp_path)
    assert result.code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "4 of 4 points are not done" in line


def test_a_figure_that_there_is_not_names_the_nearest(launch, tmp_path):
    refused = draw(launch, tmp_path, "--figure=rate")
    assert_refused(refused, "has the figures rates; did you mean 'rates'?")


# What goes wrong.


def damage_first_point(launch, workdir):
    """Leaves the first point begun, with a config that cannot be read."""
    assert launch(workdir, "--index=0", sweep="failing").code == 0
    (point,) = points_of(workdir, "failing")
    (point / "DONE").unlink()
    (point / "config.json").write_text("{")
    return point


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_failed_point_does_not_stop_the_others(launch, tmp_path, executor):
    damaged = damage_first_point(launch, tmp_path)
    result = launch(tmp_path, *EXECUTORS[executor], sweep="failing")
    assert result.code in (1, 2)
    lines = result.stdout.splitlines()
    assert lines[2].split()[:3] == ["1", "nan_at=2", "diverged"]
    number, label, status = lines[1].split()
    assert (number, label) == ("0", "nan_at=-1")
    assert status in ("failed", "refused")
    assert f"1 {status}" in lines[3]
    assert lines[4] == "the same command again runs what is not done"
    told = result.stderr
    log = folder_of(tmp_path, "failing") / "logs" / f"{damaged.name[:4]}.log"
    if executor == "local":
        told += log.read_text()
    assert f"error: {damaged / 'config.json'} cannot be read as JSON" in told
    assert "Traceback" not in told
    shutil.rmtree(damaged)
    mended = launch(tmp_path, *EXECUTORS[executor], sweep="failing")
    assert mended.code == 0
    assert "1 done, 1 diverged" in mended.stdout


def test_a_diverged_point_is_a_result(launch, tmp_path):
    result = launch(tmp_path, *EXECUTORS["together"], sweep="failing")
    assert result.code == 0
    lines = result.stdout.splitlines()
    assert lines[1].split()[2] == "done"
    assert lines[2].split()[2:4] == ["diverged", "nan"]
    assert lines[3] == "1 done, 1 diverged"


@pytest.mark.parametrize("executor", ["in_turn", "together", "local"])
def test_a_point_that_another_process_holds_is_left_alone(launch, tmp_path, executor):
    dry = launch(tmp_path, "--dry_run", sweep="failing")
    assert launch(tmp_path, "--index=1", sweep="failing").code == 0
    assert len(dry.stdout.splitlines()) == 2
    (diverged,) = points_of(tmp_path, "failing")
    shutil.rmtree(diverged)
    assert launch(tmp_path, "--index=0", sweep="failing").code == 0
    (point,) = points_of(tmp_path, "failing")
    (point / "DONE").unlink()
    with locked(point):
        before = contents(point)
        result = launch(tmp_path, *EXECUTORS[executor], sweep="failing")
        assert contents(point) == before
    assert result.code == 76
    assert result.stdout.splitlines()[1].split()[2] == "locked"
    assert result.stdout.splitlines()[2].split()[2] == "diverged"
    assert launch(tmp_path, *EXECUTORS["in_turn"], sweep="failing").code == 0


def test_a_changed_sweep_under_the_same_name_is_refused(launch, tmp_path):
    assert launch(tmp_path, "--name=mine", "--index=0").code == 0
    before = contents(tmp_path)
    for flags, words in {
        ("--config.steps=3",): "base.steps: 12, now 3",
        ("--preset=smoke",): "base.steps: 12, now 4",
        ("--config.seed=3",): "base.seed: 0, now 3",
    }.items():
        result = launch(tmp_path, "--name=mine", *EXECUTORS["in_turn"], *flags)
        assert_refused(result, words, "--name")
    other = launch(tmp_path, "--name=mine", sweep="failing")
    assert_refused(other, "holds another sweep")
    assert contents(tmp_path) == before


def test_other_configs_have_other_folders(launch, tmp_path):
    cases = ((), ("--preset=smoke",), ("--config.seed=1",), ("--config.seed=2",))
    for flags in cases:
        launch(tmp_path, *flags, "--config.steps=1", "--index=0")
    assert len(list((tmp_path / NAME / "sweeps").iterdir())) == len(cases)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sweep=rats",), "did you mean 'rates'?"),
        (("--sweep=",), "toy.tiny has the sweeps rates, failing"),
        (("--sweep=rates", "--config.learning_rate=1"), "a field that the sweep rates"),
        (("--sweep=rates", "--index=4"), "--index=4: rates has the points 0-3"),
        (("--sweep=rates", "--index=-1"), "--index"),
        (("--sweep=rates", "--index=one"), "--index"),
        (("--sweep=rates", "--executor=cloud"), "--executor"),
        (("--sweep=rates", "--validate"), "--validate means nothing to --executor=loc"),
        (("--sweep=rates", "--executor=slurm", "--slots=2"), "--slots means nothing"),
        (("--sweep=rates", "--vmap_mode=in_turn"), "--vmap_mode means nothing"),
        (("--sweep=rates", "--tpu_topology=4x4"), "--tpu_topology means nothing"),
        (
            ("--sweep=rates", "--index=1", "--slots=2"),
            "--slots means nothing to the on",
        ),
        (
            ("--sweep=rates", "--coordinator=a:1", "--processes=2", "--process=0"),
            "each of these processes would run the whole sweep",
        ),
        (("--sweep=rates", "--slots=0"), "--slots"),
        (("--sweep=rates", "--vmap_mode=both"), "--vmap_mode"),
        (("--sweep=rates", "--name=../x"), "the name '../x' cannot be used"),
        ((), "--sweep is missing; there are rates, failing"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(toy, tmp_path, flags, words):
    given = (f"--experiment={NAME}", f"--workdir={tmp_path}", *flags)
    result = processes.fork("launch.sweep", *given, **toy).wait()
    assert_refused(result, words)
    assert not list(tmp_path.iterdir())


# One point at a time.


def test_index_runs_one_point(swept, launch, tmp_path):
    result = launch(tmp_path, "--index=2")
    assert result.code == 0
    (point,) = points_of(tmp_path)
    assert point.name == points_of(swept[0]["in_turn"])[2].name
    config = replace(tiny.Config(), tiny.SWEEPS["rates"][2])
    other = points_of(swept[0]["in_turn"])[2]
    tiny.assert_same_bits(tiny.TINY, point, other, config)
    again = launch(tmp_path, "--index=2")
    assert (again.code, again.stderr.count("nothing to do")) == (0, 1)


def test_dry_run_prints_commands_that_work(swept, launch, in_shell, tmp_path):
    workdir = tmp_path / "it's a folder"
    flags = ("--executor", "vmap", "--vmap_mode=in_turn", "--slots", "3", "--dry_run")
    result = launch(workdir, *flags)
    assert result.code == 0
    assert not workdir.exists()
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    for number, line in enumerate(lines):
        assert shlex.split(line)[:3] == ["python", "-m", "launch.sweep"]
        assert shlex.split(line)[-1] == f"--index={number}"
    done = in_shell(lines[3])
    assert done.returncode == 0, done.stderr
    (point,) = points_of(workdir)
    assert point.name == points_of(swept[0]["in_turn"])[3].name
    assert (point / "DONE").exists()


# Signals.


def holders(workdir):
    """The process that holds each point that has begun to train."""
    metrics = (workdir / NAME / "sweeps").glob("*/0*/metrics.jsonl")
    trained = [path for path in metrics if '"train/loss"' in path.read_text()]
    return [int((path.parent / ".lock").read_text()) for path in trained]


def alive(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def start_long(launch, workdir, executor, expected):
    command = launch(workdir, *EXECUTORS[executor], *LONG, wait=False)
    processes.until(lambda: len(holders(workdir)) >= expected, command)
    return command


def test_killing_the_local_executor_ends_its_children(launch, tmp_path):
    command = start_long(launch, tmp_path, "local", 2)
    pids = holders(tmp_path)
    assert len(set(pids)) == 2
    assert all(alive(pid) for pid in pids)
    command.send(signal.SIGKILL)
    command.wait()
    processes.until(lambda: not any(alive(pid) for pid in pids), timeout=60)
    for log in (tmp_path / NAME / "sweeps").glob("*/logs/*.log"):
        assert "stopped and saved at step" in log.read_text()


def resumed(command, workdir):
    """How often a sweep's command or its children have told that they go on."""
    logs = (workdir / NAME / "sweeps").glob("*/logs/*.log")
    told = [command.told(), *(log.read_text() for log in logs)]
    return "".join(told).count("resuming at step")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_asked_to_stop(launch, tmp_path, executor, number):
    expected = {"local": 2, "in_turn": 1, "together": 2}[executor]
    command = start_long(launch, tmp_path, executor, expected)
    pids = set(holders(tmp_path)) - {command.pid}
    command.send(number)
    result = command.wait()
    assert result.code == 75
    statuses = [line.split()[3] for line in result.stdout.splitlines()[1:5]]
    assert statuses[0] == "stopped"
    assert set(statuses) <= {"stopped", "missing"}
    assert "the same command again runs what is not done" in result.stdout
    assert "Traceback" not in result.stderr
    assert not any(alive(pid) for pid in pids)
    saved = list((tmp_path / NAME / "sweeps").glob("*/0*/checkpoints/*"))
    assert len({path.parent for path in saved}) == expected
    if number == signal.SIGTERM:
        return
    again = launch(tmp_path, *EXECUTORS[executor], *LONG, wait=False)
    resuming = 2 if executor == "local" else 1
    processes.until(lambda: resumed(again, tmp_path) == resuming, again)
    again.send(signal.SIGTERM)
    assert again.wait().code == 75
