"""What every experiment keeps to, so that it launches, resumes, sweeps and plots."""

import functools
import importlib
import json
import re
import shlex
import shutil

import matplotlib.pyplot as plt
import processes
import pytest
import tiny

from dl_core.config import fingerprint, group_key, leaves, replace, to_dict
from dl_core.files import read_json, write_json
from dl_core.results import Run, Runs
from dl_core.train import loop
from dl_core.train.records import read_rows
from launch import registry

NAMES = registry.names()


def module_of(name):
    return importlib.import_module(f"experiments.{name}")


def cases(*, figures=False):
    """Yields (experiment, sweep) or (experiment, figure)."""
    for name in NAMES:
        outline = registry.outline(name)
        for other in outline.figures if figures else outline.sweeps:
            yield pytest.param(name, other, id=f"{name}-{other}")


def configs_of(experiment, sweep, preset="smoke"):
    base = experiment.preset(preset)
    return [replace(base, point) for point in experiment.sweeps[sweep]]


def test_there_are_experiments():
    assert "classification.batch_norm" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_outline_is_the_modules(name):
    outline, module = registry.outline(name), module_of(name)
    assert outline.name == name
    assert outline.presets == tuple(module.PRESETS)
    assert outline.sweeps == tuple(module.SWEEPS)
    assert outline.figures == tuple(module.FIGURES)
    assert outline.topic == module.__doc__.splitlines()[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_begins_with_the_topic(name):
    first, second, *rest = module_of(name).__doc__.splitlines()
    assert len(first) > 20
    assert first.endswith(".")
    assert second == ""
    assert rest


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_docstring_work(name, tmp_path):
    text = module_of(name).__doc__.replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("python -m ")]
    assert any(f"--experiment={name}" in command for command in commands)
    for _, _, module, *flags in commands:
        if any(flag.startswith("--run=") for flag in flags):
            continue  # It reads a trained run, and there is none.
        assert f"--experiment={name}" in flags
        more = ["--dry_run", f"--workdir={tmp_path}"]
        result = processes.fork(module, *flags, *more).wait()
        if module == "launch.figures":
            assert "needs the whole sweep" in result.stderr
        else:
            assert result.code == 0, result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_builds_a_config(name):
    experiment = registry.load(name)
    assert {"default", "smoke", "paper"} <= set(experiment.presets)
    for preset, changes in experiment.presets.items():
        config = experiment.preset(preset)
        for path, value in changes.items():
            assert leaves(config)[path].value == value
        assert all(steps >= 1 for steps in experiment.steps(config))
    assert sum(experiment.steps(experiment.preset("smoke"))) <= 100


@pytest.mark.parametrize(("name", "sweep"), list(cases()))
def test_every_point_builds_a_config_of_its_own(name, sweep):
    experiment = registry.load(name)
    for preset in experiment.presets:
        configs = configs_of(experiment, sweep, preset)
        assert len({fingerprint(config) for config in configs}) == len(configs) > 1


def test_every_row_of_a_table_is_of_a_sweep_over_networks():
    for name in NAMES:
        experiment = registry.load(name)
        for row in experiment.table:
            points = configs_of(experiment, row.sweep, row.preset)
            fields = set(leaves(points[0]))
            assert {"model.name", "seed", *row.where} <= fields
            chosen = [p for p in points if _has(p, row.where)]
            assert {p.model.name for p in chosen} <= {"tcn", "lstm", "gru", "rnn"}
            assert chosen


def _has(config, where):
    return all(leaves(config)[path].value == value for path, value in where.items())


def test_every_figure_draws_a_sweep():
    for name in NAMES:
        experiment = registry.load(name)
        drawn = {draw.sweep for draw in experiment.figures.values()}
        assert drawn == set(experiment.sweeps)
        assert all(draw.__doc__ for draw in experiment.figures.values())


@pytest.mark.parametrize("name", NAMES)
def test_smoke_stops_resumes_and_finishes(name, tmp_path, data_dir):
    experiment = registry.load(name)
    config = experiment.preset("smoke")
    run = {tmp_path / "run": config}
    (outcome,) = tiny.train(experiment, run, tiny.After(2), data_dir=data_dir)
    assert (outcome.status, outcome.step) == (loop.STOPPED, 2)
    said = []
    (outcome,) = tiny.train(experiment, run, said=said, data_dir=data_dir)
    assert outcome.status == loop.DONE
    assert said == [f"resuming at step 2 ({experiment.stages[0].name})"]
    result = json.loads((tmp_path / "run/DONE").read_text())
    assert result["step"] == sum(experiment.steps(config))
    assert experiment.main_metric in result["metrics"]
    whole = {tmp_path / "whole": config}
    tiny.train(experiment, whole, data_dir=data_dir)
    tiny.assert_same_bits(experiment, tmp_path / "run", tmp_path / "whole", config)


# Figures.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("workdir")


@pytest.fixture(scope="module")
def folder_of(request, workdir, data_dir):
    """Returns the folder of a sweep: with `--slow` or if it is quick, trained whole.

    Of the others the first and the last point are trained, unless the program of one of
    them has trained another point before. The rest are given the results of the one of
    the two that has more metrics: right in form, which is what drawing needs.
    """
    slow = request.config.getoption("--slow")
    trained = {}

    @functools.cache
    def make(name, sweep):
        folder = workdir / name / "sweeps" / f"{sweep}-smoke"
        if slow or sweep == quick_sweep(name):
            flags = (f"--experiment={name}", "--preset=smoke", f"--workdir={workdir}")
            more = (f"--sweep={sweep}", "--executor=vmap", f"--data_dir={data_dir}")
            result = processes.fork("launch.sweep", *flags, *more).wait(1_200)
            assert result.code == 0, result.stderr
            first = configs_of(registry.load(name), sweep)[0]
            trained[name, group_key(first)] = min(folder.glob("0*"))
        else:
            if quick := quick_sweep(name):
                make(name, quick)
            train_both_ends(name, sweep, folder)
        return folder

    def train_both_ends(name, sweep, folder):
        experiment = registry.load(name)
        points, configs = experiment.sweeps[sweep], configs_of(experiment, sweep)
        paths = [folder / f"{i:04d}-{fingerprint(p)}" for i, p in enumerate(points)]
        for path, config in ((paths[0], configs[0]), (paths[-1], configs[-1])):
            key = name, group_key(config)
            if key in trained:
                give(trained[key], path, config)
                continue
            (outcome,) = tiny.train(experiment, {path: config}, data_dir=data_dir)
            assert outcome.status == loop.DONE
            trained[key] = path
        donor = max((paths[-1], paths[0]), key=metrics)
        for path, config in zip(paths[1:-1], configs[1:-1], strict=True):
            give(donor, path, config)

    def give(donor, path, config):
        shutil.copytree(donor, path, ignore=shutil.ignore_patterns("checkpoints"))
        saved = read_json(path / "config.json") | {"config": to_dict(config)}
        write_json(path / "config.json", saved)

    return make


def quick_sweep(name):
    """Returns the sweep of an experiment that one program runs, of the fewest points.

    None if its sweeps take several programs each.
    """
    experiment = registry.load(name)
    points = {sweep: configs_of(experiment, sweep) for sweep in experiment.sweeps}
    quick = [s for s in points if len({group_key(c) for c in points[s]}) == 1]
    return min(quick, key=lambda sweep: len(points[sweep]), default=None)


@pytest.fixture(scope="module")
def draw(folder_of, workdir):
    """Draws all figures of an experiment, once, as the command does."""

    @functools.cache
    def run(name):
        for sweep in registry.outline(name).sweeps:
            folder_of(name, sweep)
        flags = (f"--experiment={name}", f"--workdir={workdir}", "--preset=smoke")
        return processes.fork("launch.figures", *flags).wait()

    return run


def metrics(path):
    return len(set().union(*read_rows(path / "metrics.jsonl")))


def assert_drawn(folder, figure):
    image = plt.imread(folder / f"{figure}.png")
    assert min(image.shape[:2]) > 200
    assert image[..., :3].std() > 0.01
    svg = (folder / f"{figure}.svg").read_text()
    assert svg.count("<path") > 10
    made_by = json.loads((folder / f"{figure}.json").read_text())
    assert made_by["figure"] == figure
    assert len(made_by["runs"]) > 1


def assert_sentence(text):
    assert isinstance(text, str)
    assert len(text) > 20
    assert "\n" not in text
    assert text.endswith(".")
    assert re.search(r"\d", text)


def runs_of(folder):
    return Runs(Run.read(path) for path in sorted(folder.glob("[0-9]*")))


@pytest.mark.parametrize(("name", "figure"), list(cases(figures=True)))
def test_every_figure_is_drawn(draw, folder_of, name, figure):
    result = draw(name)
    assert result.code == 0, result.stderr
    folder = folder_of(name, registry.load(name).figures[figure].sweep)
    assert_drawn(folder / "figures", figure)


@pytest.mark.parametrize(("name", "sweep"), list(cases()))
def test_the_summary_is_a_sentence(folder_of, name, sweep):
    runs = runs_of(folder_of(name, sweep))
    assert_sentence(registry.load(name).summary(runs))


def diverged(run):
    result = {**run.result, "status": "diverged", "metrics": {}}
    return Run(run.config, run.rows[:1], result, run.folder)


@pytest.mark.parametrize(("name", "figure"), list(cases(figures=True)))
def test_figures_and_summary_survive_a_diverged_run(folder_of, name, figure):
    experiment = registry.load(name)
    draw = experiment.figures[figure]
    first, *rest = runs_of(folder_of(name, draw.sweep))
    runs = Runs([diverged(first), *rest])
    plt.close(draw(runs))
    assert_sentence(experiment.summary(runs))


@pytest.mark.parametrize(("name", "figure"), list(cases(figures=True)))
def test_figures_and_summary_survive_a_setting_that_always_diverges(
    folder_of, name, figure
):
    experiment = registry.load(name)
    draw = experiment.figures[figure]
    runs = runs_of(folder_of(name, draw.sweep))
    setting = runs[0].config | {"seed": None}
    runs = Runs(
        diverged(run) if run.config | {"seed": None} == setting else run for run in runs
    )
    plt.close(draw(runs))
    assert_sentence(experiment.summary(runs))
