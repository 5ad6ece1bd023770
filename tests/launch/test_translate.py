"""Translating sentences with a trained run, from the command line."""

import shutil

import processes
import pytest
import tiny

from dl_core.config import replace
from dl_core.data.subwords import Vocabulary
from dl_core.errors import UserError
from dl_core.models.translation import Vocabularies
from experiments.attention import translation
from launch import registry
from launch import translate as command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny trained run."""
    folder = tmp_path_factory.mktemp("translate") / "run"
    experiment = registry.load("attention.translation")
    config = replace(experiment.preset("smoke"), {"steps": 2, "evaluated": 2})
    tiny.train(experiment, {folder: config})
    (folder / "assets").mkdir(exist_ok=True)
    for name, content in translation.assets(config).items():
        (folder / "assets" / name).write_bytes(content)
    return folder


def told(run, *flags):
    result = processes.fork("launch.translate", f"--run={run}", *flags).wait()
    assert result.code in (0, 2), result.stderr
    return result


def test_it_translates_and_counts_unknown_words(run):
    result = told(run, "--text=Where is the ☃?", "--beam=2")
    assert result.code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "1 unknown word: ☃" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the sentence is empty: there is nothing to translate"),
        ("word " * 200, "tokens: expected at most 63"),
    ],
)
def test_it_says_what_is_wrong_with_a_sentence(run, text, said):
    config = command.read_config(run)
    known = command.read_vocabularies(run)
    with pytest.raises(UserError, match=said):
        translation.translate(config, None, known, [text])
    with pytest.raises(UserError, match="line 2"):
        translation.translate(config, None, known, ["A dog.", text])


def test_it_says_that_a_run_is_missing_or_another_experiments(run, tmp_path):
    result = told(tmp_path, "--text=A dog.")
    assert result.code == 2
    assert "there is no run in it" in result.stderr
    (tmp_path / "config.json").write_text('{"experiment": "sequences.adding"}')
    with pytest.raises(UserError, match=r"is of sequences\.adding, not of"):
        command.read_config(tmp_path)


@pytest.mark.parametrize("size", [200, 210])
def test_it_refuses_another_runs_vocabulary(run, tmp_path, size):
    config = command.read_config(run)
    known = translation.vocabularies(config)
    other = Vocabulary.train(
        [f"les mots {i} d'autres phrases {chr(97 + i % 26)}" * 3 for i in range(400)],
        len(known.target) if size == 200 else 60,
        "words",
    )
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    with pytest.raises(UserError, match="belong"):
        command.restore(moved, config, Vocabularies(known.source, other))


def test_it_says_that_nothing_was_saved(run, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run, moved, ignore=shutil.ignore_patterns("checkpoints"))
    config, known = command.read_config(moved), command.read_vocabularies(moved)
    with pytest.raises(UserError, match="has not saved a checkpoint"):
        command.restore(moved, config, known)
