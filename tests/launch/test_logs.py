"""`python -m launch.logs`: the end of the logs, and what is added to them."""

import json
import signal
import subprocess
import sys

import by_hand
import processes
import pytest


@pytest.fixture
def logs():
    """Starts the command, whose output can be read as it comes."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "launch.logs", *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            # Else Ctrl-C means nothing where the tests run in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for command in started:
        command.kill()
        command.communicate()


@pytest.fixture
def folder(tmp_path):
    folder = by_hand.sweep(tmp_path / "s", {0: {}, 1: {}, 2: {}})
    for number in (0, 2):
        by_hand.run(folder, number)
        text = "".join(f"line {i} of {number}\n" for i in range(50))
        (folder / f"logs/{number:04d}.log").write_text(text)
    return folder


def told(*arguments):
    return processes.fork("launch.logs", *arguments).wait()


def test_following_a_sweep_to_its_end(toy, logs, tmp_path):
    given = ("--experiment=toy.tiny", "--sweep=failing", f"--workdir={tmp_path}")
    sweep = processes.fork("launch.sweep", *given, "--slots=2", **toy)
    folder = tmp_path / "toy.tiny/sweeps/failing"
    processes.until((folder / "sweep.json").exists, sweep)
    out, _ = logs(folder, "--follow").communicate(timeout=120)
    assert sweep.wait().code == 0
    for number in (0, 1):
        lines = [line for line in out.splitlines() if line.startswith(f"{number}: ")]
        text = "".join(line.removeprefix(f"{number}: ") + "\n" for line in lines)
        assert text == (folder / f"logs/000{number}.log").read_text()
    assert "finished 12 steps" in out
    again = told(folder, "--points=1", "--lines=1", "--follow")
    assert again.code == 0
    assert again.stdout == text.splitlines(keepends=True)[-1]


def test_the_ends_of_several_logs(folder):
    result = told(folder, "--lines=2")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{number}: line {i} of {number}" for number in (0, 2) for i in (48, 49)
    ]
    assert len(told(folder).stdout.splitlines()) == 2 * 20
    alone = told("--lines=3", "--points=2", folder)
    assert alone.stdout.splitlines() == [f"line {i} of 2" for i in (47, 48, 49)]


def test_following_until_the_points_have_ended(folder, logs):
    command = logs(folder, "--follow", "--lines=1", "--points=0-1")
    assert command.stdout.readline() == "0: line 49 of 0\n"
    with (folder / "logs/0000.log").open("a") as log:
        log.write("more\n")
    assert command.stdout.readline() == "0: more\n"
    (folder / "logs/0001.log").write_text("late\nbegun")
    assert command.stdout.readline() == "1: late\n"
    (folder / "logs/0000.log").write_text("anew\n")
    assert command.stdout.readline() == "0: anew\n"
    (folder / "other").write_text("in its place, and longer\n")
    (folder / "other").replace(folder / "logs/0000.log")
    assert command.stdout.readline() == "0: in its place, and longer\n"
    path = next(folder.glob("0000-*"))
    (path / "DONE").write_text(json.dumps(by_hand.done()))
    by_hand.run(folder, 1, FAILED={"error": "", "time": 0})
    assert command.communicate(timeout=60)[0] == "1: begun\n"
    assert command.returncode == 0


@pytest.mark.parametrize("how", ["interrupted", "cancelled"])
def test_following_ends(folder, logs, how):
    command = logs(folder, "--follow", "--lines=1", "--points=2")
    assert command.stdout.readline() == "line 49 of 2\n"
    if how == "cancelled":
        (folder / "CANCELLED").touch()
    else:
        command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=60)[0] == ""
    assert command.returncode == 0


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", 2),
        ("a", 2),
        ("a\n", 2),
        ("a\nb\nc\n", 2),
        ("a\nb\nc", 2),
        ("a\n\n\n", 2),
        ("a\nb\n", 0),
        ("é" * 100_000 + "\n" + "y" * 300_000 + "\nz\n", 2),
    ],
)
def test_the_last_lines_are_those_of_tail(folder, text, lines):
    path = folder / "logs/0001.log"
    path.write_text(text)
    tail = subprocess.check_output(["tail", "-n", str(lines), path], text=True)
    result = told(folder, "--points=1", f"--lines={lines}")
    assert result.code == 0
    assert result.stdout.splitlines() == tail.splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--points=1",), "no log yet"),
        (("--points=7",), "--points=7: there is no point 7; they are 0-2"),
        (("--points=x",), "--points=x: expected numbers of points, such as 0-3,7"),
        (("--lines=-1",), "--lines"),
        (("another",), "'another': one sweep's folder at a time"),
    ],
)
def test_a_mistake_is_one_sentence(folder, arguments, words):
    result = told(folder, *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
