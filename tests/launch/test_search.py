"""`python -m launch.sweep --search=…`: a sampler proposes the points, one at a time."""

import json
import shlex
import signal

import numpy as np
import optuna
import processes
import pytest
import tiny

from dl_core.errors import UserError
from launch.search import Search, Trial
from launch.search_space import Range, parse_space

NAME = "toy.tiny"
RATES = "--search=learning_rate=1e-6..1e-1:log"
FLAGS = (RATES, "--trials=5", "--direction=minimize", "--name=mine")


@pytest.fixture(scope="module")
def launch(toy):
    """Runs a command on the toy experiment under a workdir."""

    def run(workdir, *flags, wait=True):
        given = (f"--experiment={NAME}", f"--workdir={workdir}", *flags)
        command = processes.fork("launch.sweep", *given, **toy)
        return command.wait() if wait else command

    return run


@pytest.fixture(scope="module")
def searched(launch, tmp_path_factory):
    """A finished search, whose points were run one after another."""
    workdir = tmp_path_factory.mktemp("searched")
    for number in range(5):
        result = launch(workdir, *FLAGS, f"--index={number}")
        assert result.code == 0, result
    return workdir


def folder_of(workdir):
    return workdir / NAME / "sweeps" / "mine"


def spec_of(workdir):
    return json.loads((folder_of(workdir) / "sweep.json").read_text())


def trials_of(workdir):
    """What Optuna itself reads from the journal: {point: trial}."""
    journal = str(folder_of(workdir) / "search" / "journal.log")
    backend = optuna.storages.journal.JournalFileBackend(journal)
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name=NAME, storage=storage)
    return {trial.user_attrs["point"]: trial for trial in study.trials}


def losses_of(workdir):
    done = sorted(folder_of(workdir).glob("0*/DONE"))
    return [json.loads(path.read_text())["metrics"]["test/loss"] for path in done]


def rates_of(workdir):
    return {k: v.get("learning_rate") for k, v in spec_of(workdir)["points"].items()}


def test_all_files_tell_of_the_same_points(searched):
    trials, losses = trials_of(searched), losses_of(searched)
    assert sorted(trials) == [0, 1, 2, 3, 4]
    assert [trials[i].value for i in range(5)] == losses
    rates = rates_of(searched)
    for number, path in enumerate(sorted(folder_of(searched).glob("0*"))):
        assert path.name.startswith(f"{number:04d}-")
        config = json.loads((path / "config.json").read_text())["config"]
        assert config["learning_rate"] == rates[str(number)]
        assert trials[number].params == {"learning_rate": rates[str(number)]}
        assert 1e-6 <= rates[str(number)] <= 1e-1
    assert len(set(rates.values())) == 5


def test_the_best_point_is_better_than_the_worst_and_runs_alone(searched, launch, toy):
    told = launch(searched, *FLAGS)
    assert told.code == 0, told
    losses = losses_of(searched)
    best = int(np.argmin(losses))
    assert losses[best] < 0.9 * max(losses)
    *_, counts, found, run = told.stdout.splitlines()
    rate = rates_of(searched)[str(best)]
    assert counts == "5 done"
    assert found == (
        f"best: point {best}, learning_rate={rate}, test/loss {losses[best]:.4g}"
    )
    words = shlex.split(run.removeprefix("run it: "))
    assert words[:3] == ["python", "-m", "launch.run"]
    assert f"--workdir={searched}" in words
    dry = processes.fork(words[2], *words[3:], "--dry_run", **toy).wait()
    assert f"learning_rate = {rate}" in dry.stdout


def test_the_same_search_elsewhere_proposes_the_same(searched, launch, tmp_path):
    for number in range(2):
        launch(tmp_path, *FLAGS, f"--index={number}")
    again, rates = rates_of(tmp_path), rates_of(searched)
    assert [again[k] for k in "01"] == [rates[k] for k in "01"]
    assert again["2"] is None


def test_the_pool_runs_what_is_left_and_more_trials_can_be_added(launch, tmp_path):
    flags = (RATES, "--direction=minimize", "--name=mine")
    assert launch(tmp_path, *flags, "--trials=1", "--index=0").code == 0
    first = rates_of(tmp_path)
    result = launch(tmp_path, *flags, "--trials=2", "--slots=2")
    assert result.code == 0, result
    assert "2 done" in result.stdout
    rates = rates_of(tmp_path)
    assert (rates["0"], len(rates)) == (first["0"], 2)
    assert not (folder_of(tmp_path) / "logs" / "0000.log").exists()


def test_a_killed_point_keeps_its_values(launch, tmp_path):
    long = (*FLAGS, "--config.steps=1000000", "--config.checkpoint_every=100")

    def saved():
        names = [p.name for p in folder_of(tmp_path).glob("0*/checkpoints/*")]
        return any(name.isdecimal() for name in names)

    command = launch(tmp_path, *long, "--index=3", wait=False)
    processes.until(saved, command)
    command.send(signal.SIGKILL)
    command.wait()
    before = spec_of(tmp_path)
    command = launch(tmp_path, *long, "--index=3", wait=False)
    processes.until(lambda: "resuming at step" in command.told(), command)
    command.send(signal.SIGTERM)
    assert command.wait().code == 75
    assert spec_of(tmp_path) == before
    (number,) = trials_of(tmp_path)
    assert number == 3


def test_processes_at_once_share_one_study(launch, tmp_path):
    flags = (*FLAGS, "--preset=smoke")
    started = [launch(tmp_path, *flags, f"--index={i}", wait=False) for i in (0, 1, 1)]
    codes = [command.wait().code for command in started]
    assert codes[0] == 0
    assert sorted(codes[1:]) in ([0, 0], [0, 76])
    trials = trials_of(tmp_path)
    assert sorted(trials) == [0, 1]
    assert [trials[i].value for i in (0, 1)] == losses_of(tmp_path)
    assert len({trial.params["learning_rate"] for trial in trials.values()}) == 2


def test_a_point_that_diverges_is_told_as_failed(launch, tmp_path):
    flags = (*FLAGS[1:], "--search=nan_at=2,3", "--index=1")
    assert launch(tmp_path, *flags).code == 0
    assert trials_of(tmp_path)[1].state == optuna.trial.TrialState.FAIL


# What is proposed, without training.


def search(folder, sampler="tpe", trials=8, space=None):
    base = tiny.Config()
    space = space or {"learning_rate": Range(1e-3, 1e-1, log=False)}
    points = [
        Trial(i, {}, base, folder / f"{i:04d}-00000000", tuple(space))
        for i in range(trials)
    ]
    about = (space, sampler, "test/loss", "minimize")
    return Search(tiny.TINY, "mine", folder, base, points, points, *about)


MIXED = {
    "learning_rate": Range(1e-4, 1e-1, log=True),
    "width": Range(3, 9, log=False),
    "batch_size": (4, 8),
}


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_what_is_proposed_is_in_the_space_and_stays(tmp_path, sampler):
    found = search(tmp_path, sampler, space=MIXED)
    configs = [found.begin(point).config for point in found.points]
    for config in configs:
        assert 1e-4 <= config.learning_rate <= 1e-1
        assert 3 <= config.width <= 9
        assert config.batch_size in (4, 8)
    assert len({config.learning_rate for config in configs}) == 8
    later = search(tmp_path, sampler, space=MIXED)
    assert [later.begin(point).config for point in later.points] == configs


def test_a_sequence_is_even_although_nothing_has_ended(tmp_path):
    found = search(tmp_path, "qmc")
    rates = [found.begin(point).config.learning_rate for point in found.points]
    eighths = (np.array(rates) - 1e-3) / (1e-1 - 1e-3) * 8
    assert sorted(np.floor(eighths)) == list(range(8))


def test_a_proposal_that_was_cut_short_is_given_up(tmp_path):
    found = search(tmp_path)
    first = found.begin(found.points[0])
    journal = tmp_path / "search" / "journal.log"
    lines = journal.read_text().splitlines(keepends=True)
    # The process is killed once Optuna knows of its trial, before it has a number ...
    (asked,) = (line for line in lines if '"op_code":4' in line)
    journal.write_text("".join([*lines, asked]))
    # ... and another while it writes.
    with journal.open("a") as file:
        file.write(asked[:20])
    second = found.begin(found.points[1])
    assert found.begin(found.points[0]) == first
    assert found.begin(found.points[1]) == second
    assert second.changes != first.changes


# Mistakes.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate", "expected FIELD=LOW..HIGH"),
        ("learning_rat=1..2", "no such field; did you mean 'learning_rate'?"),
        ("learning_rate=2..1", "2.0 is not less than 1.0"),
        ("learning_rate=0..1", "expected a number above 0"),
        ("nan_at=0..5:log", "a logarithmic range is above 0, and 0 is not"),
        ("learning_rate=low..high", "expected a number"),
        ("learning_rate=nan..1", "expected a number"),
        ("width=1.5..3", "expected a whole number"),
        ("width=4", "expected a range or several values, each once"),
        ("width=4,4", "expected a range or several values, each once"),
        ("width=4,x", "expected a whole number"),
        ("width=", "expected a whole number"),
    ],
)
def test_a_space_that_does_not_fit_is_refused(text, words):
    with pytest.raises(UserError) as refused:
        parse_space(tiny.Config(), [text])
    assert str(refused.value).startswith(f"--search={text}: ")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((RATES, "--trials=2"), "--direction is missing"),
        ((RATES, "--direction=minimize"), "--trials is missing"),
        (("--sampler=tpe", "--sweep=rates"), "--sampler needs --search"),
        ((*FLAGS, "--sweep=rates"), "--search and --sweep exclude each other"),
        ((*FLAGS, RATES), "learning_rate is searched twice"),
        ((*FLAGS, "--config.learning_rate=1"), "a field that --search looks through"),
        ((*FLAGS, "--executor=vmap"), "--executor=vmap"),
        ((*FLAGS, "--index=5"), "--index=5"),
    ],
)
def test_a_mistake_is_one_sentence(launch, tmp_path, flags, words):
    result = launch(tmp_path, *flags)
    assert (result.code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())


def test_a_metric_that_there_is_not_names_the_nearest(launch, tmp_path):
    result = launch(tmp_path, *FLAGS, "--objective=test/los", "--index=0")
    assert result.code == 2
    assert "did you mean 'test/loss'?" in result.stderr.splitlines()[-1]
    whole = launch(tmp_path, *FLAGS, "--objective=test/los", "--points=0")
    assert (whole.code, whole.stdout.split()[:2]) == (2, ["point", "status"])
    assert "did you mean 'test/loss'?" in whole.stderr.splitlines()[-1]


def test_another_search_under_the_same_name_is_refused(searched, launch):
    before = spec_of(searched)
    result = launch(searched, *FLAGS, "--sampler=random", "--index=0")
    assert result.code == 2
    assert "search.sampler: 'tpe', now 'random'" in result.stderr
    assert spec_of(searched) == before
