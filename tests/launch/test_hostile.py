"""Sweeps under rough treatment: hostile texts, two pools at once, a pool killed often.

What holds is read from what the runs left: directories, rows, logs.
"""

import ast
import json
import pathlib
import random
import shlex
import signal
import time

import processes
import psutil
import pytest
import tiny

import dl_core
import experiments
import launch
from dl_core.config import replace
from dl_core.errors import UserError
from dl_core.files import inside
from dl_core.train.run_directory import read_rows

NAME = "toy.tiny"
HOSTILE = 'it\'s; $(touch x) `touch x` "q" %d %A\n| touch x & #..'
STEPS = 600


@pytest.fixture(scope="module")
def start(toy):
    """Starts a command on the toy experiment under a workdir."""

    def run(workdir, *flags):
        given = (f"--experiment={NAME}", f"--workdir={workdir}", *flags)
        return processes.fork("launch.sweep", *given, **toy)

    return run


def points_of(workdir):
    return sorted((workdir / NAME / "sweeps").glob("*/0*"))


def log_of(point):
    log = point.parent / "logs" / f"{point.name[:4]}.log"
    return log.read_text() if log.exists() else ""


def assert_each_ran_once(workdir, count, steps):
    points = points_of(workdir)
    assert len(points) == count
    for point in points:
        assert json.loads((point / "DONE").read_text())["step"] == steps
        assert log_of(point).count(f"finished {steps} steps in") == 1
        trained = [
            row["step"]
            for row in read_rows(point / "metrics.jsonl")
            if "train/loss" in row
        ]
        assert trained == sorted(set(trained))
        assert trained[-1] == steps


# Texts.


@pytest.fixture(scope="module")
def with_text(toy, tmp_path_factory):
    """The environment of toy.tiny with a text among its fields."""
    first, *others = toy["PYTHONPATH"].split(":")
    root = tmp_path_factory.mktemp("texts")
    field = "    width: int = static("
    for path in pathlib.Path(first).rglob("*.py"):
        copy = root / path.relative_to(first)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = f'    note: str = static("", "A text.")\n{field}'
        copy.write_text(path.read_text().replace(field, text))
    return {"PYTHONPATH": ":".join([str(root), *others])}


def test_hostile_texts_pass_unharmed(with_text, tmp_path):
    (tmp_path / HOSTILE).mkdir()
    workdir = tmp_path / HOSTILE / ".." / "runs $(touch x)\n%d"
    given = (
        f"--config.note={HOSTILE}",
        f"--data_dir={tmp_path / HOSTILE}",
        f"--workdir={workdir}",
    )
    flags = (f"--experiment={NAME}", "--sweep=failing", "--slots=2", *given)
    dry = processes.fork("launch.sweep", *flags, "--dry_run", **with_text).wait()
    words = shlex.split(dry.stdout)
    assert [words.count(flag) for flag in given] == [2, 2, 2]
    result = processes.fork("launch.sweep", *flags, **with_text).wait()
    assert result.code == 0, result
    assert "1 done, 1 diverged" in result.stdout
    points = points_of(workdir.resolve())
    assert len(points) == 2
    for point in points:
        config = json.loads((point / "config.json").read_text())["config"]
        assert config["note"] == HOSTILE
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize(
    "name", [HOSTILE, "", " ", "..", ".", "/etc/x", "a/b", "%j", "a\n", "-x", "$(id)"]
)
def test_a_name_that_is_more_than_a_name_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot be used"):
        inside(tmp_path, NAME, "sweeps", name)


# Several at once, and killed.


def test_two_pools_at_once_run_every_point_once(start, tmp_path):
    flags = ("--sweep=rates", "--slots=2", "--preset=smoke")
    both = [start(tmp_path, *flags) for _ in range(2)]
    results = [command.wait() for command in both]
    assert {result.code for result in results} <= {0, 76}
    assert 0 in {result.code for result in results}
    assert_each_ran_once(tmp_path, 4, steps=4)


def test_a_pool_that_is_killed_again_and_again_loses_nothing(start, tmp_path):
    flags = (
        "--sweep=rates",
        "--slots=2",
        f"--config.steps={STEPS}",
        "--config.checkpoint_every=20",
    )

    def rows():
        return sum(len(read_rows(p / "metrics.jsonl")) for p in points_of(tmp_path))

    def has_gone_on(command, count):
        return lambda: rows() >= count or not command.running()

    random.seed(0)
    for kill in range(10):
        command, before = start(tmp_path, *flags), rows()
        if kill % 2:
            processes.until(has_gone_on(command, before + random.randrange(1, 60)))
        else:
            time.sleep(random.uniform(0, 2))
        command.send(signal.SIGKILL)
        command.wait()
    last = start(tmp_path, *flags).wait()
    # What the last pool left may still be saving; then its point is locked.
    while last.code == 76:
        last = start(tmp_path, *flags).wait()
    assert last.code == 0, last
    assert "4 done" in last.stdout
    assert_each_ran_once(tmp_path, 4, steps=STEPS)
    assert any("resuming at step" in log_of(point) for point in points_of(tmp_path))
    changes = {"steps": STEPS, "checkpoint_every": 20}
    point, whole = points_of(tmp_path)[0], tmp_path / "whole"
    config = replace(tiny.Config(), changes | tiny.SWEEPS["rates"][0])
    tiny.train(tiny.TINY, {whole: config})
    tiny.assert_same_bits(tiny.TINY, point, whole, config)


def test_nothing_listens_beyond_this_machine(start, tmp_path):
    command = start(tmp_path, "--sweep=failing", "--config.steps=100000", "--slots=2")
    pool, listening, trained = psutil.Process(command.pid), set(), False
    while not trained and command.running():
        for process in (pool, *pool.children(recursive=True)):
            try:
                listening |= {
                    (process.pid, connection.laddr)
                    for connection in process.net_connections(kind="inet")
                    if connection.status == psutil.CONN_LISTEN
                }
            except psutil.Error:
                continue  # It has just ended.
        trained = any(read_rows(p / "metrics.jsonl") for p in points_of(tmp_path))
        time.sleep(0.02)
    command.send(signal.SIGTERM)
    assert command.wait().code == 75
    assert trained
    beyond = [at for _, at in listening if at.ip not in ("127.0.0.1", "::1")]
    assert not beyond


# What the packages do not do.


_UNSAFE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal"}


def _unsafe(node):
    """Says what a node does that runs code which a file or a text may hold."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    else:
        names = []
    if found := _UNSAFE & {name.split(".")[0] for name in names}:
        return f"imports {min(found)}"
    if isinstance(node, ast.Call):
        keywords = {k.arg: k.value for k in node.keywords}
        for name, safe in {"allow_pickle": False, "shell": False}.items():
            if name in keywords and getattr(keywords[name], "value", None) is not safe:
                return f"passes {name}"
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "os.system", "os.popen"):
            return f"calls {called}"
    return None


def test_no_file_and_no_text_is_executed():
    packages = [pathlib.Path(p.__path__[0]) for p in (dl_core, experiments, launch)]
    files = [path for package in packages for path in package.rglob("*.py")]
    assert len(files) > 100
    found = [
        f"{path}:{node.lineno} {problem}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if (problem := _unsafe(node))
    ]
    assert not found
