"""What the commands tell without running anything."""

import os
import re
import subprocess
import sys

import processes
import pytest

from dl_core.config import leaves
from launch import registry


@pytest.fixture(scope="module")
def listed():
    """`launch.list`, and the modules that it imported."""
    result = processes.start_python("-X", "importtime", "-m", "launch.list").wait()
    assert result.code == 0
    modules = {
        line.split("|")[-1].strip()
        for line in result.stderr.splitlines()
        if line.startswith("import time:")
    }
    return result.stdout, modules


def test_list_names_every_experiment_sweep_and_figure(listed):
    text, _ = listed
    for name in registry.names():
        experiment = registry.load(name)
        after = text.split(f"{name}\n", 1)[1]
        (part,) = re.findall(r"\A((?:  .*\n)+)", after)
        words = part.split()
        for found in (experiment.presets, experiment.sweeps, experiment.figures):
            assert set(found) <= set(words)
        topic = experiment.doc.splitlines()[0]
        assert topic.split()[:3] == part.split()[1:4]
    assert max(map(len, text.splitlines())) <= 88


def imported(modules, *names):
    return {m for m in modules if m.split(".")[0] in names}


def test_list_imports_nothing_slow(listed):
    _, modules = listed
    assert "launch.registry" in modules
    assert not imported(modules, "jax", "flax", "numpy", "orbax", "matplotlib")


@pytest.mark.parametrize("module", ["run", "sweep", "figures"])
def test_help_imports_nothing_slow(module):
    result = processes.start_python(
        "-X", "importtime", "-m", f"launch.{module}", "--help"
    ).wait()
    assert "--experiment" in result.stdout
    assert "--preset" in result.stdout
    assert "Traceback" not in result.stderr
    modules = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "launch.flags" in modules
    assert not imported(modules, "jax", "flax", "orbax", "matplotlib")


@pytest.mark.parametrize("name", registry.names())
def test_helpfull_lists_every_field(name):
    result = processes.fork("launch.run", "--helpfull", f"--experiment={name}").wait()
    assert "Traceback" not in result.stderr
    text = " ".join(result.stdout.split())
    for leaf in leaves(registry.load(name).preset("default")).values():
        assert f"--config.{leaf.path}: {' '.join(leaf.help.split())} [" in text
        (about,) = re.findall(
            rf"--config\.{re.escape(leaf.path)}: .*?\[(.*?; default .*?; \w+)\]", text
        )
        kind, default, traced = re.fullmatch(
            r"(.*); default (.*); (\w+)", about
        ).groups()
        assert traced == ("traced" if leaf.traced else "static")
        assert default == shown(leaf.value)
        words = {int: "a whole number", float: "a number", str: "a text"}
        assert kind == words.get(leaf.type, kind)


def shown(value):
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return str(value)


def test_helpfull_shows_the_defaults_of_the_preset():
    flags = ("--experiment=classification.batch_norm", "--preset=smoke")
    text = processes.fork("launch.run", "--helpfull", *flags).wait().stdout
    assert re.search(r"--config\.steps: .*?default\s+20;", text, re.DOTALL)


def test_a_reader_that_leaves_is_no_accident():
    """As in `python -m launch.list | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "launch.list"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert "Traceback" not in result.stderr
