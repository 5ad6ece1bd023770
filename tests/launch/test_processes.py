"""Many processes, one run: the numbers of one process, whatever ends which of them.

Each process has one device, as on a node with one accelerator, and all are bound to the
loopback.
"""

import os
import pathlib
import re
import signal
import socket

import by_hand
import processes
import psutil
import pytest
import tiny

from dl_core.config import replace
from dl_core.files import read_json
from dl_core.train.records import read_rows
from launch import processes as joining
from launch import registry

SETTINGS = {"width": 64, "batch_size": 8, "learning_rate": 0.01}
FLAGS = tuple(f"--config.{path}={value}" for path, value in SETTINGS.items())
LONG = ("--config.steps=1000000", "--config.checkpoint_every=200")
CONFIG = replace(tiny.Config(), SETTINGS)
# A process that is gone is missed after a while only: kill what still waits then.
ONE = {"NPROC": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


STREAMED = '''"""The toy, whose examples are read as they are needed."""

from typing import Any

import jax

from dl_core.data.batches import Data, Streamed
from experiments.toy import tiny
from experiments.toy.tiny import *


class Source:
    """Says which examples this process has read."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays["inputs"])

    def read(self, indices):
        assert len(indices) * jax.process_count() in (4, 8)
        return {name: x[indices] for name, x in self.arrays.items()}


def streamed(arrays, prepare=None, size=8):
    here = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return Streamed(Source(arrays), size, prepare, **here)


def data(config: Any, data_dir: Any) -> Data:
    train = tiny.examples(50, config.width, 1)
    test, few = (tiny.examples(n, config.width, seed) for n, seed in ((20, 2), (3, 3)))
    sets = {"test": streamed(test), "few": streamed(few, size=4)}
    return Data(streamed(train, tiny.blur), sets)
'''


PICKY = '''"""The toy, on two machines of which one has no data."""

from typing import Any

import jax

from dl_core.data.batches import Data
from dl_core.errors import UserError
from experiments.toy import tiny
from experiments.toy.tiny import *


def data(config: Any, data_dir: Any) -> Data:
    if jax.process_index():
        raise UserError("no data here")
    return tiny.data(config, data_dir)
'''


SLOW = '''"""The toy; half of its points have no data, as one machine finds out late."""

import time
from typing import Any

import jax

from dl_core.data.batches import Data
from dl_core.errors import UserError
from dl_core.sweep import product
from experiments.toy import tiny
from experiments.toy.tiny import *


def data(config: Any, data_dir: Any) -> Data:
    if config.width == 64:
        time.sleep(4 * jax.process_index())
        raise UserError("no data anywhere")
    return tiny.data(config, data_dir)


SWEEPS, FIGURES = {"widths": product(width=(64, 6))}, {}
'''


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def modules(toy):
    """The experiments above, beside the toy while these tests run."""
    topic = pathlib.Path(toy["PYTHONPATH"].split(os.pathsep)[0], "experiments/toy")
    texts = {"streamed": STREAMED, "picky": PICKY, "slow": SLOW}
    paths = [topic / f"{name}.py" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    yield
    for path in paths:
        path.unlink()


@pytest.fixture
def start(toy):
    """Starts the processes of one run; ends what is left of them."""
    started = []

    def start(count, *flags, module="launch.run", **environment):
        address = f"127.0.0.1:{free_port()}"
        for i in range(count):
            together = (f"--processes={count}", f"--process={i}")
            given = ("--experiment=toy.tiny", f"--coordinator={address}", *together)
            started.append(
                processes.fork(module, *given, *flags, **toy, **ONE, **environment)
            )
        return started[-count:]

    yield start
    for command in started:
        if command.running():
            command.send(signal.SIGKILL)
            command.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The directory of the same run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    tiny.train(tiny.TINY, {folder: CONFIG})
    return folder


def folder_of(workdir, name="run"):
    return workdir / "toy.tiny/runs" / name


def ended(commands):
    return [command.wait(120) for command in commands]


@pytest.mark.parametrize(
    ("count", "flags"),
    [(2, ()), (4, ("--fsdp",)), (2, ("--model_axis=2",))],
    ids=["data", "fsdp", "model"],
)
def test_it_is_the_run_of_one_process(start, alone, tmp_path, count, flags):
    given = (f"--workdir={tmp_path}", "--name=run", *FLAGS, *flags)
    results = ended(start(count, *given))
    assert [result.code for result in results] == [0] * count, results
    tiny.assert_close(tiny.TINY, folder_of(tmp_path), alone, CONFIG)
    rows, wanted = (
        read_rows(f / "metrics.jsonl") for f in (folder_of(tmp_path), alone)
    )
    for row, other in zip(rows, wanted, strict=True):
        for name in other.keys() & {"train/loss", "test/loss"}:
            assert row[name] == pytest.approx(other[name], rel=1e-6)
    # One speaks, and what it says names all devices.
    assert f"on {count} × CPU" in results[0].stderr
    assert all("finished" not in result.stderr for result in results[1:])
    (again, *_) = ended(start(count, *given))
    assert (again.code, again.stderr.count("nothing to do")) == (0, 1)


def test_each_process_reads_its_share_of_streamed_examples(start, alone, tmp_path):
    given = ("--experiment=toy.streamed", f"--workdir={tmp_path}", "--name=run")
    # The evaluation batches of 4 cannot be split over 8 devices.
    devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    results = ended(start(2, *FLAGS, *given, XLA_FLAGS=devices))
    refused = ended(start(2, *FLAGS, *given[:2], "--model_axis=2"))
    assert [result.code for result in results] == [0, 0], results
    run = tmp_path / "toy.streamed/runs/run"
    tiny.assert_close(tiny.TINY, run, alone, CONFIG)
    assert [result.code for result in refused] == [2, 2], refused
    assert "--model_axis=2: examples that are read as they are" in refused[0].stderr


def saved(folder):
    names = [path.name for path in folder.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def test_a_signal_to_one_stops_all_at_one_step(start, tmp_path):
    flags = (f"--workdir={tmp_path}", "--name=run", *FLAGS, *LONG)
    commands = start(2, *flags)
    folder = folder_of(tmp_path)
    processes.until(lambda: saved(folder) >= 200, commands[0])
    commands[1].send(signal.SIGTERM)
    results = ended(commands)
    assert [result.code for result in results] == [75, 75], results
    step = saved(folder)
    assert f"stopped and saved at step {step}" in results[0].stderr
    # It goes on from there, and one process may finish what two have begun.
    commands = start(2, *flags)
    processes.until(lambda: saved(folder) > step, commands[0])
    assert f"resuming at step {step}" in commands[0].told()
    commands[0].send(signal.SIGINT)
    assert [result.code for result in ended(commands)] == [75, 75]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_run_goes_on_after_one_was_killed(start, tmp_path, killed):
    changes = {"steps": 600, "checkpoint_every": 20, "eval_every": 200}
    flags = [f"--config.{path}={value}" for path, value in changes.items()]
    flags = (f"--workdir={tmp_path}", *FLAGS, *flags)
    whole = ended(start(2, *flags, "--name=whole"))
    assert [result.code for result in whole] == [0, 0], whole
    commands = start(2, *flags, "--name=run")
    folder = folder_of(tmp_path)
    processes.until(lambda: saved(folder) >= 100, commands[0])
    commands[killed].send(signal.SIGKILL)
    other = commands[1 - killed].wait(120)  # It misses the other, and ends too.
    assert other.code not in (0, 75), other
    assert not (folder / "DONE").exists()
    results = ended(start(2, *flags, "--name=run"))
    assert [result.code for result in results] == [0, 0], results
    assert "resuming at step" in results[0].stderr
    config = replace(CONFIG, changes)
    tiny.assert_same_bits(tiny.TINY, folder, folder_of(tmp_path, "whole"), config)


def test_points_train_at_once_in_many_processes(start, tmp_path):
    changes = {"steps": 400, "checkpoint_every": 20, "eval_every": 200}
    flags = [f"--config.{path}={value}" for path, value in changes.items()]
    flags += ["--experiment=toy.streamed", f"--workdir={tmp_path}", "--sweep=rates"]
    flags += ["--executor=vmap", "--vmap_mode=together", "--name=rates"]
    folder = tmp_path / "toy.streamed/sweeps/rates"
    commands = start(2, *flags, module="launch.sweep")
    processes.until(lambda: any(map(saved, folder.glob("0*"))), commands[0])
    commands[1].send(signal.SIGTERM)
    assert [result.code for result in ended(commands)] == [75, 75]
    results = ended(start(2, *flags, module="launch.sweep"))
    assert [result.code for result in results] == [0, 0], results
    assert "resuming at step" in results[0].stderr
    points = sorted(folder.glob("0*"))
    assert len(points) == 4
    for point, point_changes in zip(points, tiny.SWEEPS["rates"], strict=True):
        config = replace(tiny.Config(), {**changes, **point_changes})
        other = tmp_path / "alone" / point.name
        tiny.train(tiny.TINY, {other: config})
        tiny.assert_close(tiny.TINY, point, other, config)
    assert "4 done" in results[0].stdout
    assert "done" not in results[1].stdout


def test_nothing_listens_to_the_network(start, tmp_path):
    flags = (f"--workdir={tmp_path}", "--name=run", *FLAGS, *LONG)
    commands = start(2, *flags)
    processes.until(lambda: saved(folder_of(tmp_path)) >= 200, commands[0])
    hosts = {
        connection.laddr.ip
        for command in commands
        for connection in psutil.Process(command.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert hosts  # The coordinator's, for one.
    loopback = re.compile(r"127\..*|::1|::ffff:127\..*")
    assert all(loopback.fullmatch(host) for host in hosts), hosts


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--processes=2", "--process=0"), "--coordinator is missing"),
        (("--coordinator=here:1", "--process=0"), "--processes is missing"),
        (("--coordinator=here:1", "--processes=2"), "--process is missing"),
        (
            ("--coordinator=here", "--processes=2", "--process=0"),
            "--coordinator=here: expected host:port",
        ),
        (
            ("--coordinator=here:1", "--processes=2", "--process=2"),
            "--process=2: expected less than --processes=2",
        ),
        (("--coordinator=here:1", "--processes=0", "--process=0"), "--processes"),
    ],
)
def test_flags_that_do_not_fit_are_told(toy, tmp_path, flags, words):
    given = ("--experiment=toy.tiny", f"--workdir={tmp_path}", *flags)
    result = processes.fork("launch.run", *given, **toy).wait()
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())


def test_what_one_process_refuses_ends_all(start, tmp_path):
    sweep = ("--sweep=rates", "--name=rates", "--index=0", f"--workdir={tmp_path}")
    given = ("--experiment=toy.picky", f"--workdir={tmp_path}", "--name=run")
    results = ended(start(2, *given))
    by_hand.sweep(folder_of(tmp_path).parents[1] / "sweeps/rates", {0: {}})
    changed = ended(start(2, *sweep, module="launch.sweep"))
    assert results[0].code not in (0, 2)
    assert (results[1].code, results[1].stderr.count("no data here")) == (2, 1)
    failed = read_json(tmp_path / "toy.picky/runs/run/FAILED")
    assert failed["error"] == "no data here"
    assert [result.code for result in changed] == [2, 2], changed
    assert "holds another sweep" in changed[0].stderr


def test_what_all_refuse_however_late_keeps_no_other_point(start, tmp_path):
    given = ("--experiment=toy.slow", f"--workdir={tmp_path}", "--sweep=widths")
    results = ended(start(2, *given, "--executor=vmap", module="launch.sweep"))
    assert [result.code for result in results] == [2, 2], results
    assert all("no data anywhere" in result.stderr for result in results)
    assert "1 refused, 1 done" in results[0].stdout


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:4321", True),
        ("localhost:4321", True),
        ("[::1]:4321", True),
        ("10.1.2.3:4321", False),
        # On process 0's own machine it may lead to 127.0.1.1.
        (f"{socket.gethostname()}:4321", False),
    ],
)
def test_only_what_says_so_is_bound_to_the_loopback(address, bound):
    assert ("coordinator_bind_address" in joining._at(address)) == bound


def test_no_experiment_starts_jax_before_processes_have_joined(data_dir):
    code = (
        "from launch import registry; from jax._src import xla_bridge\n"
        "for name in registry.names():\n"
        "    registry.load(name)\n"
        "    assert not xla_bridge.backends_are_initialized(), name\n"
    )
    paths = os.pathsep.join([str(registry.ROOT.parent)])
    result = processes.start_python("-c", code, PYTHONPATH=paths).wait()
    assert result.code == 0, result.stderr
