"""The embedded novels: facts, sentences, and the blocks in which they are read."""

import tarfile

import numpy as np
import pytest

from dl_core.data import novels
from dl_core.errors import UserError


def test_the_embedded_novels_are_what_they_are_said_to_be():
    texts = novels.read_texts()
    assert len(texts) == 9
    assert 1.2e6 < sum(len(text.split()) for text in texts.values()) < 1.21e6
    assert novels.ARCHIVE.stat().st_size < 2.6e6
    licence = (novels.FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert all(name in licence for name in texts)
    read = novels.read_novels(novels.NovelsConfig(vocabulary=500))
    assert read.vocabulary[0] == "the"
    assert len(read.vocabulary) == 500
    train, test = read.words["train"], read.words["test"]
    np.testing.assert_array_equal(np.bincount(train), read.counts)
    assert len(test) / len(train) == pytest.approx(1 / 98, rel=0.1)


def test_sentences_end_at_marks_but_not_after_mr():
    text = "Mr. Brown's dog—a well-known one—barked. Why? \n\nBecause"
    assert list(novels.sentences_of(text)) == [
        ["mr", "brown's", "dog", "a", "well-known", "one", "barked"],
        ["why"],
        ["because"],
    ]


def test_a_folder_and_an_archive_of_it_are_read_alike(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "B_Two_1900.txt").write_text("one two", encoding="utf-8-sig")
    (folder / "A_One_1800.txt").write_text("three", encoding="utf-8")
    with tarfile.open(tmp_path / "texts.tar.xz", "w:xz") as archive:
        archive.add(folder, "texts")
    found = novels.read_texts(str(folder))
    assert list(found.items()) == [("A_One_1800", "three"), ("B_Two_1900", "one two")]
    assert novels.read_texts(str(tmp_path / "texts.tar.xz")) == found


def test_a_path_without_novels_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"--config\.data\.path"):
            novels.read_texts(str(path))


def blocks(keep, size=4, window=2):
    words = np.arange(10, dtype=np.int32)
    return novels.Blocks(words, words // 4, np.full(10, keep), size, window)


def test_blocks_hold_every_kept_word_of_each_epoch_once_in_order():
    made = blocks(1.0).train_inputs(3, 0, 10)
    inner = made["tokens"][:, 2:-2].ravel()
    np.testing.assert_array_equal(inner, np.tile(np.arange(10), 4))
    assert (made["sentences"][0, :2] == -1).all()
    np.testing.assert_array_equal(made["tokens"][1, :2], made["tokens"][0, -4:-2])
    # The last sentence of an epoch is not the first one of the next.
    sentences = made["sentences"][:, 2:-2].ravel()
    assert sentences[9] != sentences[10]
    assert set(np.unique(made["radius"])) == {1, 2}


def test_a_block_depends_on_nothing_but_seed_and_step():
    whole = blocks(0.6).train_inputs(1, 0, 12)
    late = blocks(0.6).train_inputs(1, 9, 2)
    for name, values in late.items():
        np.testing.assert_array_equal(values, whole[name][9:11])


def test_evaluation_reads_every_word_once():
    parts = list(blocks(0.1).eval_inputs())
    tokens = np.concatenate([p["tokens"][2:-2] for p in parts])
    real = np.concatenate([p["sentences"][2:-2] for p in parts]) >= 0
    np.testing.assert_array_equal(tokens[real], np.arange(10))
