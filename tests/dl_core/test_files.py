"""Safe names, whole files, locks."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from dl_core.errors import UserError
from dl_core.files import (
    LockedError,
    inside,
    is_locked,
    locked,
    read_json,
    write_atomically,
    write_json,
)


@pytest.mark.parametrize("name", ["a", "lr-0.1_b", "0", "A" * 64])
def test_good_names_stay_inside(tmp_path, name):
    assert inside(tmp_path, "x", name) == tmp_path / "x" / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc", "a/b", "-a", ".a", "a b", "a\n", "A" * 65]
)
def test_bad_names_are_refused_and_named(tmp_path, name):
    with pytest.raises(UserError, match="cannot be used"):
        inside(tmp_path, name)


def test_a_link_that_leads_out_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out"):
        inside(root, "link")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_and_damage_is_told(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None, "ü"]})
    assert read_json(path) == {"a": [1, None, "ü"]}
    path.write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        read_json(path)
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "b.json")


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path):
    script = (
        "import pathlib, sys, time\n"
        "from dl_core.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        assert is_locked(tmp_path)
        with (
            pytest.raises(LockedError, match=f"process {holder.pid}"),
            locked(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)


def test_where_the_file_system_keeps_no_locks_a_folder_is_free(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path), locked(tmp_path, wait=True):
        assert not is_locked(tmp_path)
