"""An experiment that trains in moments, registered under the name toy.tiny."""

import os
import pathlib
import shutil

import processes
import pytest
import tiny


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The environment in which toy.tiny is the only experiment."""
    root = tmp_path_factory.mktemp("toy")
    topic = root / "experiments" / "toy"
    topic.mkdir(parents=True)
    for folder in (topic, topic.parent):
        (folder / "__init__.py").write_text('"""A topic."""\n')
    shutil.copy(pathlib.Path(tiny.__file__), topic / "tiny.py")
    # TensorBoard's writer imports it where it can, which takes seconds.
    (root / "torch.py").write_text("raise ImportError")
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(scope="module")
def failing(toy, tmp_path_factory):
    """The workdir of a sweep by the local executor: one point done, one diverged."""
    workdir = tmp_path_factory.mktemp("runs")
    given = ("--experiment=toy.tiny", "--sweep=failing", f"--workdir={workdir}")
    result = processes.fork("launch.sweep", *given, "--slots=2", **toy).wait()
    assert result.code == 0, result
    return workdir
