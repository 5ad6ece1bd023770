"""Published results and the README's table, which is made from them."""

import json
import pathlib
import re

import numpy as np
import pytest

from dl_core.config import flatten, leaves
from dl_core.errors import UserError
from launch import publish, registry

README = publish.README.read_text()


def test_what_is_made_from_results_is_current():
    for path, text in publish.pages().items():
        assert path.read_text() == text, "run python -m launch.publish --readme"


def test_a_topics_page_shows_every_published_figure():
    for name in registry.names():
        folder = registry.results_folder(name)
        text = (folder.parent / "README.md").read_text()
        module = name.split(".")[1]
        shown = set(re.findall(rf"\(results/({module}\.\S+\.png)\)", text))
        assert shown == {path.name for path in folder.glob(f"{module}.*.png")}


@pytest.mark.parametrize("name", registry.names())
def test_every_sweep_is_published_whole_with_its_figures(name):
    experiment = registry.load(name)
    found = publish.published(name)
    assert set(experiment.sweeps) <= set(found)
    module = name.split(".")[1]
    for results in found.values():
        sweep = results["sweep"]
        points = [flatten(run["changes"]) for run in results["runs"]]
        swept = [flatten(point) for point in experiment.sweeps[sweep]]
        assert points == json.loads(json.dumps(swept))  # Which has no tuples.
        assert set(flatten(results["base"])) == set(leaves(experiment.config_class()))
        assert re.fullmatch("[0-9a-f]{40}", results["commit"]), "from a clean checkout"
        assert results["device"]
        assert results["versions"]["jax"]
        for run in results["runs"]:
            assert run["status"] in ("done", "diverged")
    for figure in experiment.figures:
        assert (registry.results_folder(name) / f"{module}.{figure}.png").exists()


def test_no_published_file_names_a_machine():
    for path in pathlib.Path(registry.ROOT).glob("*/results/*.json"):
        text = path.read_text()
        assert not re.search(r"/(home|root|tmp|work|Users)/", text), path


def test_spread_over_seeds_is_in_the_summary():
    for name in registry.names():
        for sentence in publish.summaries(name).values():
            assert "±" in sentence
            assert sentence.endswith(".")


def test_results_that_no_longer_fit_are_named(monkeypatch):
    name = "classification.batch_norm"
    stale = publish.published(name)
    stale["learning_rates"]["runs"] = stale["learning_rates"]["runs"][:1]
    stale["learning_rates"]["runs"][0]["metrics"] = {}
    monkeypatch.setattr(publish, "published", lambda name: stale)
    with pytest.raises(UserError, match="batch_norm, learning_rates, do not fit"):
        publish.summaries(name)


def test_results_of_a_preset_stand_beside_those_of_the_default(monkeypatch, tmp_path):
    name, sweep = "classification.batch_norm", "learning_rates"
    results = publish.published(name)[sweep]
    for preset in ("default", "paper"):
        suffix = "" if preset == "default" else f"-{preset}"
        path = tmp_path / f"batch_norm.{sweep}{suffix}.json"
        path.write_text(json.dumps({**results, "preset": preset}))
    (tmp_path / "batch_norm.covariate_shift-paper.png").write_bytes(b"")
    monkeypatch.setattr(registry, "results_folder", lambda name: tmp_path)
    found = publish.published(name)
    assert list(publish.summaries(name)) == [sweep, f"{sweep}-paper"]
    paths = publish.figure_paths(registry.load(name), found[f"{sweep}-paper"])
    assert list(paths) == ["covariate_shift"]
    assert not publish.figure_paths(registry.load(name), found[sweep])


def test_published_numbers_become_runs():
    results = publish.published("classification.batch_norm")["learning_rates"]
    runs = publish.as_runs(results)
    finals = runs.final("test/accuracy")
    expected = [run["metrics"]["test/accuracy"] for run in results["runs"]]
    np.testing.assert_array_equal(finals, expected)


def test_the_commands_of_the_readme_name_what_exists():
    for name in re.findall(r"--experiment=(\S+)", README):
        assert name in [*registry.names(), "<topic>.<name>`", "NAME", "…"]
    for module in re.findall(r"python -m launch\.(\w+)", README):
        assert (pathlib.Path(registry.ROOT).parent / "launch" / f"{module}.py").exists()
