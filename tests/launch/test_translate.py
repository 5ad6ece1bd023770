"""Translating sentences with a trained run, from the command line."""

import functools
import io

import jax
import processes
import pytest
from absl.testing import flagsaver

from dl_core.config import replace
from dl_core.data.subwords import Vocabulary
from dl_core.errors import UserError
from dl_core.models.translation import Translation, Vocabularies
from dl_core.train.checkpoints import Checkpoints
from dl_core.train.run_directory import open_run
from experiments.attention import translation
from launch import registry
from launch import translate as command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny run that has saved its state as it begins."""
    folder = tmp_path_factory.mktemp("translate") / "run"
    config = registry.load("attention.translation").preset("smoke")
    config = replace(config, {"model.recurrent.score": "additive"})
    with open_run(folder, "attention.translation", config):
        (folder / "assets").mkdir(exist_ok=True)
        for name, content in translation.assets(config).items():
            (folder / "assets" / name).write_bytes(content)
    state = jax.jit(functools.partial(translation.init, config))(jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, state, {})
    checkpoints.close()
    return folder


@pytest.fixture(autouse=True)
def parsed():
    command.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def known(run):
    return command.read_vocabularies(run)


def test_it_translates_and_counts_unknown_words(run):
    penalties = ("--length_penalty=0.9", "--coverage_penalty=0.2")
    flags = (f"--run={run}", "--text=Where is the ☃?", "--beam=2", *penalties)
    result = processes.fork("launch.translate", *flags).wait()
    assert result.code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "1 unknown word: ☃" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: there is nothing to translate"),
        ("word " * 200, "tokens: expected at most 63"),
    ],
)
def test_it_says_what_is_wrong_with_a_sentence(run, known, text, said):
    config = command.read_config(run)
    state = command.restore(run, config, known)
    with pytest.raises(UserError, match=f"the sentence .*{said}"):
        translation.translate(config, state, known, [text])
    with pytest.raises(UserError, match=f"line 2 .*{said}"):
        translation.translate(config, state, known, ["A dog.", text])


def test_it_says_that_a_run_is_missing_or_another_experiments(tmp_path):
    with pytest.raises(UserError, match="there is no run in it"):
        command.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"experiment": "sequences.adding"}')
    with pytest.raises(UserError, match=r"is of sequences\.adding, not of"):
        command.read_config(tmp_path)
    for content in ("[]", '{"experiment": "attention.translation"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="is damaged: it holds no config"):
            command.read_config(tmp_path)
    (tmp_path / "config.json").write_text("no JSON")
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        command.read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("caf\udce9", b"", r"--text='caf\\udce9': expected text in UTF-8"),
        (None, b"A dog.\ncaf\xe9", "standard input: expected text in UTF-8 .*byte 11"),
        (None, b"", "there is no sentence"),
    ],
)
def test_it_reads_sentences_in_utf8_only(text, given, said, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    with pytest.raises(UserError, match=said):
        command.read_lines(text)


def test_it_says_that_a_penalty_is_of_a_beam_search(run):
    with flagsaver.flagsaver(run=str(run), text="A dog."):
        command.FLAGS["coverage_penalty"].present = 1
        with pytest.raises(UserError, match=r"_penalty=0 is of a beam search"):
            command.main([])
        command.FLAGS["coverage_penalty"].present = 0


def test_it_says_that_a_translation_was_cut(run, known, monkeypatch, capsys):
    cut = Translation("Un chien", (), False)
    monkeypatch.setattr(command, "restore", lambda *args: None)
    monkeypatch.setattr(translation, "translate", lambda *args, **how: [cut, cut])
    with flagsaver.flagsaver(run=str(run), text="A dog."):
        command.main([])
    assert "2 translations were cut at 64 tokens" in capsys.readouterr().err


def test_it_refuses_a_damaged_or_missing_vocabulary(tmp_path):
    (tmp_path / "assets").mkdir()
    with pytest.raises(UserError, match=r"source\.vocabulary cannot be read"):
        command.read_vocabularies(tmp_path)
    (tmp_path / "assets" / "source.vocabulary").write_bytes(b"\x00 no vocabulary")
    with pytest.raises(UserError, match=r"source\.vocabulary is damaged"):
        command.read_vocabularies(tmp_path)


def test_it_refuses_another_runs_vocabulary(run, known):
    config = command.read_config(run)
    assert len(known.source) == len(known.target)
    with pytest.raises(UserError, match=r"target\.vocabulary does not belong to the"):
        command.restore(run, config, Vocabularies(known.source, known.source))
    lines = [f"les mots {i} d'autres phrases" for i in range(60)]
    other = Vocabulary.train(lines, 60, "words")
    with pytest.raises(UserError, match="do the vocabularies in assets, of 200 and"):
        command.restore(run, config, Vocabularies(known.source, other))


def test_it_says_that_nothing_was_saved(run, known, tmp_path):
    with pytest.raises(UserError, match="has not saved a checkpoint"):
        command.restore(tmp_path, command.read_config(run), known)
