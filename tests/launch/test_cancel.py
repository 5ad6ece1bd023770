"""`python -m launch.cancel`: what runs saves and stops, nothing more is started."""

import signal

import by_hand
import processes
import pytest

IN_PLACE_OF_SLURM = """
import runpy, sys, types
import launch

def cancel(folder, numbers):
    print(folder, numbers)
    return [1, 3]

launch.slurm = types.SimpleNamespace(cancel=cancel, states=lambda _: {1: "running"})
sys.modules["launch.slurm"] = launch.slurm
runpy.run_module("launch.cancel", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def command(toy):
    started = []

    def run(module, *arguments):
        started.append(processes.fork(f"launch.{module}", *arguments, **toy))
        return started[-1]

    yield run
    for command in started:
        if command.running():
            command.send(signal.SIGTERM)


def statuses(command, folder):
    lines = command("status", folder).wait().stdout.splitlines()
    return [line.split()[3] for line in lines[2:-1]]


def test_a_sweep_that_runs_saves_and_stops_and_goes_on_later(command, tmp_path):
    given = ("--experiment=toy.tiny", "--sweep=rates", f"--workdir={tmp_path}")
    never = 1_000_000
    long = [
        f"--config.{k}={never}" for k in ("steps", "eval_every", "checkpoint_every")
    ]
    sweep = command("sweep", *given, *long, "--name=n", "--slots=1")
    folder = tmp_path / "toy.tiny/sweeps/n"

    def trains():
        metrics = folder.glob("0000-*/metrics.jsonl")
        return any("train/loss" in path.read_text() for path in metrics)

    processes.until(trains, sweep)
    assert statuses(command, folder) == ["running", *["missing"] * 3]
    told = command("cancel", folder).wait()
    assert (told.code, told.stderr) == (0, "")
    (line,) = told.stdout.splitlines()
    assert line.endswith("cancelled; 1 running save and stop, 3 more are not started")
    ended = sweep.wait(60)
    assert ended.code == 75
    assert [line.split()[3] for line in ended.stdout.splitlines()[1:5]] == [
        "stopped"
    ] * 4
    (saved,) = folder.glob("0000-*/checkpoints/*")
    assert int(saved.name) > 0
    assert statuses(command, folder) == ["unfinished", *["missing"] * 3]
    assert f"{folder} (cancelled)" in command("status", folder).wait().stdout

    again = command("sweep", *given, *long, "--name=n", "--slots=1")
    log = folder / "logs/0000.log"
    processes.until(lambda: f"resuming at step {saved.name}" in log.read_text(), again)
    assert command("cancel", folder).wait().code == 0
    assert again.wait(60).code == 75


def test_nothing_is_left_to_end(command, tmp_path):
    folder = by_hand.sweep(tmp_path / "s", {0: {}})
    by_hand.run(folder, 0, DONE=by_hand.done())
    told = command("cancel", folder).wait()
    assert told.stdout == f"{folder}: nothing is left to end (1 point: 1 done)\n"
    assert not (folder / "CANCELLED").exists()


def test_what_runs_out_of_sight_may_run_on_kubernetes(command, tmp_path):
    folder = by_hand.sweep(tmp_path / "s", {0: {}})
    told = command("cancel", folder).wait()
    assert (told.code, told.stderr) == (0, "")
    line, kubernetes = told.stdout.splitlines()
    assert line.endswith("cancelled; 0 running save and stop, 1 more are not started")
    assert "kubectl delete" in kubernetes
    assert (folder / "CANCELLED").exists()


def test_single_points_need_slurm(command, tmp_path):
    folder = by_hand.sweep(tmp_path / "s", {0: {}, 1: {}})
    told = command("cancel", folder, "--points=1").wait()
    assert (told.code, told.stdout) == (2, "")
    assert told.stderr.startswith("error: --points=1: single points can be ended where")
    assert not (folder / "CANCELLED").exists()


@pytest.mark.parametrize(("flags", "wanted"), [((), None), (("--points=1-2",), [1, 2])])
def test_slurm_ends_its_jobs(tmp_path, flags, wanted):
    folder = by_hand.sweep(tmp_path / "s", {number: {} for number in range(4)})
    by_hand.run(folder, 2, DONE=by_hand.done())
    (folder / "slurm.json").write_text("{}")
    told = processes.start_python("-c", IN_PLACE_OF_SLURM, folder, *flags).wait()
    assert told.code == 0, told
    asked, first = told.stdout.splitlines()
    assert asked == f"{folder} {wanted}"
    assert first == f"{folder}: cancelled; Slurm has ended 2 queued or running"
    assert (folder / "CANCELLED").exists() == (wanted is None)
