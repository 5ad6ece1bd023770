"""A run that is killed, however often and whenever, ends with the same bits.

Under the compiler's own settings, as a user runs it.
"""

import os
import pathlib
import random
import signal
import time

import processes
import pytest
import tiny

from dl_core.config import replace
from launch import registry

NAME = "classification.batch_norm"
SETTINGS = {
    "steps": 2_000,
    "batch_size": 20,
    "log_every": 10,
    "eval_every": 100,
    "checkpoint_every": 50,
    "model.width": 20,
}
FLAGS = [f"--config.{path}={value}" for path, value in SETTINGS.items()]


def config():
    return replace(registry.load(NAME).preset("default"), SETTINGS)


@pytest.fixture(scope="module")
def launch(data_dir, tmp_path_factory):
    """Starts the run of a workdir, or goes on with it."""
    # Of this file alone: what is killed may leave half a file in it.
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir, *flags):
        return processes.fork(
            "launch.run",
            *(f"--experiment={NAME}", f"--data_dir={data_dir}", "--name=run"),
            *(f"--workdir={workdir}", *FLAGS, *flags),
            XLA_FLAGS="",
            JAX_COMPILATION_CACHE_DIR=str(cache),
        )

    return start


def folder_of(workdir) -> pathlib.Path:
    return workdir / NAME / "runs/run"


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """The directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    result = launch(workdir).wait()
    assert result.code == 0, result.stderr
    return folder_of(workdir)


def progress(folder) -> int:
    """Returns the step of the last checkpoint."""
    names = [path.name for path in folder.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def is_saving(folder) -> bool:
    return any(folder.glob("checkpoints/*.orbax-checkpoint-tmp*"))


def kill_anywhen(command, folder, chance):
    """At some moment of starting up, or soon after."""
    far = progress(folder) + 2 * SETTINGS["checkpoint_every"]
    end = time.monotonic() + chance.uniform(0, 2)
    processes.until(lambda: time.monotonic() > end or progress(folder) >= far, command)


def kill_while_training(command, folder, chance):
    before = progress(folder)
    processes.until(lambda: progress(folder) > before, command)
    time.sleep(chance.uniform(0, 0.05))


def kill_while_saving(command, folder, chance):
    before = progress(folder)
    processes.until(lambda: progress(folder) > before, command)
    processes.until(lambda: is_saving(folder), command)


MOMENTS = [
    *[kill_anywhen] * 3,
    *[kill_while_training] * 3,
    *[kill_while_saving] * 4,
]


def test_killed_at_ten_moments(launch, whole, tmp_path):
    chance = random.Random(0)
    folder = folder_of(tmp_path)
    for moment in chance.sample(MOMENTS, len(MOMENTS)):
        command = launch(tmp_path)
        moment(command, folder, chance)
        command.send(signal.SIGKILL)
        assert command.wait().code == -signal.SIGKILL
    assert 0 < progress(folder) < SETTINGS["steps"]
    result = launch(tmp_path).wait()
    assert result.code == 0, result.stderr
    assert "resuming at step" in result.stderr
    assert "Traceback" not in result.stderr
    tiny.assert_same_bits(registry.load(NAME), folder, whole, config())
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {path.name for path in (whole / "checkpoints").iterdir()}
    for path in (whole / "artifacts").glob("*"):
        assert (folder / "artifacts" / path.name).read_bytes() == path.read_bytes()


def step_of(folder) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_saves_and_says_so(launch, whole, tmp_path, number):
    folder = folder_of(tmp_path)
    command = launch(tmp_path)
    processes.until(lambda: step_of(folder) > 20, command)
    command.send(number)
    result = command.wait()
    assert result.code == 75
    last = result.stderr.splitlines()[-1]
    step = progress(folder)
    assert last == (
        f"{folder}: stopped and saved at step {step}; "
        "the same command goes on from there"
    )
    assert "Traceback" not in result.stderr
    assert not (folder / "DONE").exists()
    result = launch(tmp_path).wait()
    assert result.code == 0, result.stderr
    assert f"resuming at step {step} (train)" in result.stderr
    tiny.assert_same_bits(registry.load(NAME), folder, whole, config())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay", [0.0, 0.4, 0.8, 1.2, 1.6])
def test_asked_to_stop_while_starting_is_no_accident(launch, tmp_path, number, delay):
    command = launch(tmp_path)
    processes.until(lambda: (folder_of(tmp_path) / ".lock").exists(), command)
    time.sleep(delay)
    command.send(number)
    result = command.wait()
    assert result.code == 75
    assert "Traceback" not in result.stderr


def test_interrupted_while_reading_the_command_line_is_no_accident(tmp_path):
    config_file = tmp_path / "config.json"
    os.mkfifo(config_file)
    flags = [f"--config={config_file}", f"--workdir={tmp_path}"]
    command = processes.start("launch.run", *flags)
    with config_file.open("w"):  # Opens once the command has begun to read it.
        command.send(signal.SIGINT)
        time.sleep(0.2)
    result = command.wait()
    assert result.code != 0
    assert "Traceback" not in result.stderr


def test_interrupted_twice_ends_at_once(launch, whole, tmp_path):
    folder = folder_of(tmp_path)
    command = launch(tmp_path)
    processes.until(lambda: step_of(folder) > 5, command)
    os.kill(command.pid, signal.SIGINT)
    os.kill(command.pid, signal.SIGINT)
    code = command.wait().code
    assert code != 0
    assert not (folder / "DONE").exists()
    result = launch(tmp_path).wait()
    assert result.code == 0, result.stderr
    tiny.assert_same_bits(registry.load(NAME), folder, whole, config())
