"""`python -m launch.data` from the outside."""

import os
import re
import subprocess
import sys
import time

import pytest


def _run(*arguments, **environment):
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "launch.data", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    result.seconds = time.monotonic() - start
    return result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with a space in its name, in which the command prepared the subset."""
    root = tmp_path_factory.mktemp("the root")
    result = _run("prepare", "mnist_subset", f"--data_dir={root}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"preparing mnist_subset:1.0.0 in {root}"
    assert lines[1].startswith("prepared train 12,000, test 2,000 in ")
    assert len(lines) == 2
    assert result.stderr == ""
    return root


def test_prepare_again(root):
    result = _run("prepare", "mnist_subset", f"--data_dir={root}")
    assert result.returncode == 0
    folder = root / "mnist_subset/1.0.0"
    assert result.stdout == f"mnist_subset is prepared already, in {folder}\n"


def test_list(root):
    result = _run("list", TFDS_DATA_DIR=str(root))
    assert result.returncode == 0
    assert result.stderr == ""
    first, head, *rows, last = result.stdout.splitlines()
    (row,) = (row for row in rows if row.split()[0] == "mnist_subset")
    (other,) = (row for row in rows if row.split()[0] == "bccd_small")
    assert "embedded" in other
    assert first == f"in {root}:"
    assert head.split() == ["name", "version", "examples", "size"]
    assert row.split()[:2] == ["mnist_subset", "1.0.0"]
    shown = " ".join(row.split())
    assert shown.endswith("train 12,000, test 2,000 5.3 MiB embedded")
    assert head.index("examples") == row.index("train")
    assert "any other TFDS name can be prepared" in last


def test_list_of_nothing_shows_the_embedded_ones(tmp_path):
    result = _run("list", f"--data_dir={tmp_path / 'none'}")
    assert result.returncode == 0
    assert "mnist_subset" in result.stdout
    assert "bccd_small" in result.stdout
    assert "prepared when it is first used" in result.stdout


def test_verify(root):
    result = _run("verify", "mnist_subset", f"--data_dir={root}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1] == "train: all 12,000 records can be read and decoded"
    assert lines[-1] == "mnist_subset is whole"
    assert result.stderr == ""


def test_missing_data_offline(tmp_path):
    result = _run("prepare", "mnist", f"--data_dir={tmp_path}", "--offline")
    assert result.returncode == 2
    assert result.seconds < 10
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the data set 'mnist' is missing")
    assert "the network was not tried" in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to do: use 'prepare NAME', 'list' or 'verify NAME'"),
        (["prepar", "mnist"], "'prepar' is not known: use .*did you mean 'prepare'"),
        (["prepare"], "'prepare' takes one name, not 0"),
        (["prepare", "a", "b"], "'prepare' takes one name, not 2"),
        (["list", "mnist"], "'list' takes no name"),
        (["list", "--datadir=x"], "Unknown command line flag 'datadir'"),
        (["prepare", "mnst"], "no data set 'mnst' in TFDS; did you mean 'mnist'"),
        (["verify", "mnist"], "'mnist' is not prepared in"),
    ],
)
def test_misuse_is_one_sentence(arguments, sentence, tmp_path):
    result = _run(*arguments, TFDS_DATA_DIR=str(tmp_path))
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert re.search(sentence, result.stderr)


def test_help_is_quick():
    result = _run("--help")
    assert "python -m launch.data prepare NAME" in result.stdout
    assert "--manual_dir" in result.stdout
    assert result.seconds < 1.5


def test_importing_is_cheap():
    code = (
        "import sys, dl_core.data, launch.data; "
        "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'array_record'}; "
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
