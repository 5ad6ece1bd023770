"""The embedded text, the Penn Treebank's rules, and windows that lose no token."""

import hashlib
import lzma

import jax
import numpy as np
import pytest

from dl_core.data import load
from dl_core.data.text import (
    END,
    FOLDER,
    SPLITS,
    UNKNOWN,
    TextConfig,
    Windows,
    read_text,
    shakespeare,
)
from dl_core.errors import UserError

# What TFDS has registered for tiny_shakespeare.
_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

_LINES = {
    "train": " the cat <unk> N \n a cat sat \n",
    "valid": " the dog \n",
    "test": " a  N cat \n sat \n",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a treebank of five lines."""
    for name, text in _LINES.items():
        (tmp_path / f"ptb.{name}.txt").write_text(text)
    return tmp_path


def test_the_embedded_text_is_the_official_one():
    text = lzma.decompress((FOLDER / "input.txt.xz").read_bytes())
    assert hashlib.sha256(text).hexdigest() == _SHA256
    parts = shakespeare()
    assert "".join(parts[split] for split in SPLITS).encode() == text
    assert [len(parts[split]) for split in SPLITS] == [1_003_854, 55_770, 55_770]


def test_the_data_set_holds_the_same_text(tmp_path):
    for split, text in shakespeare().items():
        (written,) = load("shakespeare_small", split, tmp_path)["text"]
        assert written.decode() == text
    licence = (tmp_path / "shakespeare_small/1.0.0/LICENSE").read_text()
    assert "public domain" in licence


def test_characters_are_written_again_as_they_were():
    text = read_text(TextConfig())
    assert len(text.vocabulary) == 65
    for split, written in shakespeare().items():
        assert text.decode(text.tokens[split]) == written


def test_rare_words_are_unknown_and_the_commonest_kept():
    text = read_text(TextConfig(unit="words", vocabulary=50))
    assert len(text.vocabulary) == 50
    assert text.vocabulary[-1] == UNKNOWN
    assert {END, "the", ",", "and"} <= set(text.vocabulary)
    counts = np.bincount(text.tokens["train"], minlength=50)[:-1]
    assert (np.diff(counts) <= 0).all()
    whole = read_text(TextConfig(unit="words", vocabulary=20_000))
    start = "first citizen : \nbefore we proceed any further , hear me speak . \n"
    assert whole.decode(whole.tokens["train"][:15]) == start
    assert UNKNOWN in whole.vocabulary  # Of words in validation or test alone.


def test_treebank_words(folder):
    text = read_text(TextConfig(unit="words", path=str(folder)))
    assert set(text.vocabulary) == {"the", "cat", UNKNOWN, "N", END, "a", "sat"}
    for split, name in zip(SPLITS, _LINES, strict=True):
        expected = []
        for line in _LINES[name].splitlines():
            for word in line.split():
                expected.append(word if word in text.vocabulary else UNKNOWN)
            expected.append(END)
        assert [text.vocabulary[t] for t in text.tokens[split]] == expected


def test_treebank_characters_are_those_of_mikolovs_files(folder):
    text = read_text(TextConfig(path=str(folder)))
    for split, name in zip(SPLITS, _LINES, strict=True):
        # His files: characters and line ends with single spaces between them.
        spaced = " ".join(
            " ".join(line.strip().replace(" ", "_")) + " \n"
            for line in _LINES[name].splitlines()
        )
        expected = [c if c in text.vocabulary else UNKNOWN for c in spaced.split(" ")]
        assert [text.vocabulary[t] for t in text.tokens[split]] == expected


def test_a_missing_file_is_said_in_one_sentence(folder):
    (folder / "ptb.valid.txt").unlink()
    with pytest.raises(UserError, match=r"^--config.data.path=.*no ptb.valid.txt$"):
        read_text(TextConfig(unit="words", path=str(folder)))


@pytest.mark.parametrize(
    ("size", "streams", "length", "context"),
    [(30, 3, 5, 0), (31, 3, 4, 3), (29, 4, 3, 5), (7, 8, 2, 1), (23, 1, 7, 7)],
)
def test_windows_predict_every_token_once(size, streams, length, context):
    tokens, end = np.arange(100, 100 + size, dtype=np.int32), 7
    windows = Windows(tokens, end, streams, length, context)
    cut = jax.jit(windows.assemble, static_argnums=(0, 3))
    before = {**dict(zip(tokens[1:], tokens, strict=False)), tokens[0]: end}
    seen, rows = [], [[] for _ in range(streams)]
    for number, given in enumerate(windows.eval_inputs()):
        batch = jax.device_get(cut(None, windows.resident, given, None))
        assert batch["inputs"].shape == (streams, context + length)
        assert batch["targets"].shape == batch["weight"].shape == (streams, length)
        assert (batch["first"] == (number == 0)).all()
        for row in range(streams):
            read = batch["inputs"][row]
            for place in np.flatnonzero(batch["weight"][row]):
                target = batch["targets"][row, place]
                # All that is read before a target stands before it in the text.
                expected = target
                for token in read[context + place :: -1]:
                    expected = before.get(expected, end)
                    assert token == expected
                rows[row].append(target)
        seen.extend(batch["targets"][batch["weight"] > 0])
    assert sorted(seen) == tokens.tolist()
    assert np.concatenate(rows).tolist() == tokens.tolist()


def test_training_reads_the_windows_in_order_again_and_again():
    windows = Windows(np.arange(40, dtype=np.int32), 0, 2, 6)
    assert windows.count == 4
    numbers = windows.train_inputs(3, 2, 7)["window"]
    assert numbers.tolist() == [2, 3, 0, 1, 2, 3, 0]
