"""`--snapshot`: a sweep goes on with the code that it began with, whoever edits it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import processes
import pytest
import tiny

from dl_core.errors import UserError
from launch import snapshot

ROOT = pathlib.Path(snapshot.__file__).parents[1]


def git(folder, *arguments):
    about = ("user.name=A", "user.email=a@example.org", "commit.gpgsign=false")
    command = ["git", *(word for a in about for word in ("-c", a)), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(folder):
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=first")
    return git(folder, "rev-parse", "HEAD")


# The copy.


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository that is taken for the one of the code that runs."""
    root = tmp_path / "repository"
    (root / "launch").mkdir(parents=True)
    (root / "launch" / "snapshot.py").write_text("code\n")
    (root / "a b;$(touch x)").write_text("a name\n")
    (root / "kept").write_text("old\n")
    (root / "gone").write_text("gone\n")
    (root / "link").symlink_to("kept")
    (root / ".gitignore").write_text("ignored\n")
    commit(root)
    monkeypatch.setattr(snapshot, "_ROOT", root)
    return root


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_copy_holds_the_tracked_files(repository, tmp_path):
    source = snapshot.take(tmp_path / "sweep")
    assert source == tmp_path / "sweep" / "src"
    assert [path.name for path in source.parent.iterdir()] == ["src"]
    found = contents(source)
    assert found.pop("COMMIT") == git(repository, "rev-parse", "HEAD") + "\n"
    assert found.pop("CHANGES.diff") == ""
    tracked = git(repository, "ls-files", "-z").split("\0")[:-1]
    assert found == {name: (repository / name).read_text() for name in tracked}
    assert (source / "link").is_symlink()


def test_a_copy_is_of_the_working_tree_and_tells_the_difference(
    repository, tmp_path, capsys
):
    (repository / "kept").write_text("new\n")
    (repository / "gone").unlink()
    (repository / "ignored").write_text("")
    (repository / "beside.py").write_text("")
    source = snapshot.take(tmp_path / "sweep")
    head = git(repository, "rev-parse", "HEAD")
    assert (source / "COMMIT").read_text() == f"{head}+\n"
    assert (source / "kept").read_text() == "new\n"
    for name in ("gone", "ignored", "beside.py"):
        assert not (source / name).exists()
    assert f"beside.py: not in {source}" in capsys.readouterr().err
    # The commit and the difference together give the same files.
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", repository, other)
    git(other, "apply", source / "CHANGES.diff")
    tracked = git(other, "ls-files", "-z").split("\0")[:-1]
    left = {n: (other / n).read_text() for n in tracked if (other / n).exists()}
    found = contents(source)
    assert left == {
        k: v for k, v in found.items() if k not in ("COMMIT", "CHANGES.diff")
    }


def test_the_first_copy_is_kept(repository, tmp_path):
    source = snapshot.take(tmp_path / "sweep")
    before = contents(source)
    (repository / "kept").write_text("new\n")
    assert snapshot.take(tmp_path / "sweep") == source
    assert contents(source) == before


@pytest.mark.parametrize("missing", ["repository", "commit", "git", "launch"])
def test_without_a_repository_it_is_refused(repository, tmp_path, monkeypatch, missing):
    if missing == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif missing == "launch":  # The code lies in a repository that ignores it.
        git(repository, "rm", "-r", "--cached", "launch")
    else:
        shutil.rmtree(repository / ".git")
    if missing == "commit":
        git(repository, "init", "--quiet")
        git(repository, "add", "--all")
    with pytest.raises(UserError, match="is not a git repository with a commit"):
        snapshot.take(tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


# Sweeps that run it.


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The code that is tested, with toy.tiny, in a repository of its own."""
    root = tmp_path_factory.mktemp("some 'clone'")
    ignored = shutil.ignore_patterns("__pycache__", "data")
    for name in ("dl_core", "launch"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    code = shutil.ignore_patterns("__pycache__", "*_small", "*_subset", "jsb_chorales")
    shutil.copytree(ROOT / "dl_core" / "data", root / "dl_core" / "data", ignore=code)
    topic = root / "experiments" / "toy"
    topic.mkdir(parents=True)
    for folder in (topic, topic.parent):
        (folder / "__init__.py").write_text('"""A topic."""\n')
    shutil.copy(tiny.__file__, topic / "tiny.py")
    (root / "torch.py").write_text("raise ImportError")
    (root / ".gitignore").write_text("__pycache__\nruns\n")
    return root, commit(root)


def start(root, *flags):
    """Starts a sweep of two points in the repository, as people do."""
    command = [sys.executable, "-m", "launch.sweep", "--experiment=toy.tiny"]
    return subprocess.Popen(
        [*command, "--sweep=failing", "--workdir=runs", "--slots=1", *flags],
        cwd=root,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_points_that_wait_run_the_code_that_there_was(clone):
    root, head = clone
    folder = root / "runs" / "toy.tiny" / "sweeps" / "failing"
    module = root / "experiments" / "toy" / "tiny.py"
    module.write_text(module.read_text() + "\n")
    sweep = start(root, "--snapshot")
    processes.until((folder / "src").exists)
    edited = module.read_text() + "raise RuntimeError('edited')\n"
    module.write_text(edited)
    (root / "dl_core" / "files.py").write_text("raise RuntimeError('edited')\n")
    told, errors = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, errors
    assert "1 done, 1 diverged" in told
    assert f"running the code of {folder / 'src'}" in errors
    for path in folder.glob("0*/DONE"):
        assert json.loads(path.read_text())["commit"] == f"{head}+"
    git(root, "checkout", "--", ".")
    # Another time it runs the copy too, although that was not said.
    (folder / "src" / "launch" / "pool.py").write_text("def run(sweep): return 7\n")
    again = start(root)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 7, errors
    extended = start(root, "--extend")
    _, errors = extended.communicate(timeout=240)
    assert extended.returncode == 2
    assert errors.startswith(f"error: --extend: {folder.relative_to(root)} runs the")
