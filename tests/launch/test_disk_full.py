"""A disk that fills up costs no more than the steps since the last checkpoint."""

import contextlib
import os
import pathlib
import shutil
import subprocess

import processes
import pytest
import tiny

from dl_core.config import replace
from launch import registry

NAME = "classification.batch_norm"
SETTINGS = {
    "steps": 60,
    "log_every": 1,
    "eval_every": 10,
    "checkpoint_every": 20,
    "model.width": 400,
}
SIZE = 16 * 2**20


def mount(folder: pathlib.Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip(
            "A FULL DISK IS NOT TESTED: a small file system cannot be mounted here; "
            "run this test as root, with the right to mount"
        )


@pytest.fixture
def disk(tmp_path):
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def launch(data_dir):
    def start(workdir):
        return processes.fork(
            "launch.run",
            *(f"--experiment={NAME}", f"--data_dir={data_dir}", "--name=run"),
            f"--workdir={workdir}",
            *(f"--config.{path}={value}" for path, value in SETTINGS.items()),
        ).wait()

    return start


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """The directory of a run that had room enough."""
    workdir = tmp_path_factory.mktemp("whole")
    result = launch(workdir)
    assert result.code == 0, result.stderr
    return workdir / NAME / "runs/run"


def used(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def ballast(disk, free):
    """Fills the disk up to `free` bytes."""
    file = disk / "ballast"
    room = os.statvfs(disk)
    with file.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, room.f_bavail * room.f_frsize - free)
    yield
    file.unlink()


def assert_told(result, *words):
    assert result.code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize("checkpoints", [1.5, 2.5])
def test_full_during_a_save(launch, whole, disk, checkpoints):
    """The disk has room for so many checkpoints, of which two are kept."""
    one = used(whole / "checkpoints/60")
    folder = disk / NAME / "runs/run"
    with ballast(disk, int(checkpoints * one)):
        result = launch(disk)
        assert_told(result, "No space left", f"that of step {20 * int(checkpoints)}")
    assert not (folder / "DONE").exists()
    result = launch(disk)
    assert result.code == 0, result.stderr
    assert f"resuming at step {20 * int(checkpoints)} (train)" in result.stderr
    config = replace(registry.load(NAME).preset("default"), SETTINGS)
    tiny.assert_same_bits(registry.load(NAME), folder, whole, config)


def test_full_before_the_first_checkpoint(launch, whole, disk):
    folder = disk / NAME / "runs/run"
    with ballast(disk, used(whole / "checkpoints/60") // 2):
        assert_told(launch(disk), "No space left", "the last good one is none")
    assert launch(disk).code == 0
    config = replace(registry.load(NAME).preset("default"), SETTINGS)
    tiny.assert_same_bits(registry.load(NAME), folder, whole, config)


@pytest.mark.parametrize("free", [0, 4_096, 16_384])
def test_full_from_the_start(launch, whole, disk, free):
    folder = disk / NAME / "runs/run"
    with ballast(disk, free):
        assert_told(launch(disk), "No space left")
    assert launch(disk).code == 0
    config = replace(registry.load(NAME).preset("default"), SETTINGS)
    tiny.assert_same_bits(registry.load(NAME), folder, whole, config)


@pytest.mark.parametrize("free", [0.01, 1.5])
def test_a_full_disk_is_told_in_one_sentence(launch, whole, disk, free):
    with ballast(disk, int(free * used(whole / "checkpoints/60"))):
        result = launch(disk)
    assert_told(result, "No space left")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 3
