"""Analogies and similarity of word vectors are gensim's."""

import pathlib

import numpy as np
import pytest
from gensim.models import KeyedVectors
from gensim.test.utils import datapath

from dl_core.errors import UserError
from dl_core.metrics import word_vectors


@pytest.fixture(scope="module")
def made():
    """Returns half of the words of both files, with vectors that answer some."""
    rng = np.random.default_rng(0)
    questions = word_vectors.read_questions(datapath("questions-words.txt"))
    words = sorted({w for of in questions.values() for q in of for w in q})
    pairs = word_vectors.read_pairs(datapath("wordsim353.tsv"))
    words = sorted({*words, *(w for a, b, _ in pairs for w in (a, b))})
    words = [w for i, w in enumerate(words) if i % 5]
    vectors = dict(zip(words, rng.normal(size=(len(words), 20)), strict=True))
    for number, of in enumerate(questions.values()):
        shift = 3 * np.random.default_rng(number).normal(size=20)
        for a, b, *_ in of:
            if a in vectors and b in vectors:
                vectors[b] = vectors[a] + shift + rng.normal(size=20)
    array = np.array(list(vectors.values()), np.float32)
    keyed = KeyedVectors(20)
    keyed.add_vectors(words, array)
    return words, array, keyed, questions


def test_analogies_are_gensims(made):
    words, vectors, keyed, questions = made
    _, sections = keyed.evaluate_word_analogies(datapath("questions-words.txt"))
    found = word_vectors.analogies(words, vectors, questions)
    wanted = {
        s["section"]: (len(s["correct"]), len(s["correct"]) + len(s["incorrect"]))
        for s in sections[:-1]
    }
    assert {name: tuple(a) for name, a in found.items() if a.asked} == {
        name: pair for name, pair in wanted.items() if pair[1]
    }
    assert (
        0 < sum(a.right for a in found.values()) < sum(a.asked for a in found.values())
    )


@pytest.mark.parametrize("name", ["wordsim353.tsv", "simlex999.txt"])
def test_similarity_is_gensims(made, name):
    words, vectors, keyed, _ = made
    _, spearman, unknown = keyed.evaluate_word_pairs(datapath(name))
    found = word_vectors.similarity(
        words, vectors, word_vectors.read_pairs(datapath(name))
    )
    np.testing.assert_allclose(found.correlation, spearman[0], atol=1e-6)
    np.testing.assert_allclose(
        100 * found.unknown / (found.pairs + found.unknown), unknown
    )


def test_two_pairs_make_two_questions():
    found = word_vectors.questions_of({"family": [("man", "woman"), ("boy", "girl")]})
    expected = [("man", "woman", "boy", "girl"), ("boy", "girl", "man", "woman")]
    assert found == {"family": expected}


def test_nothing_known_is_no_number():
    vectors = np.eye(2, dtype=np.float32)
    answers = word_vectors.analogies(["a", "b"], vectors, {"x": [("c", "d", "e", "f")]})
    assert answers["x"] == (0, 0)
    assert np.isnan(answers["x"].accuracy)
    assert np.isnan(word_vectors.similarity("ab", vectors, [("a", "c", 1.0)])[0])


@pytest.mark.parametrize("text", ["a b c d", ": x\na b c"])
def test_bad_questions_are_refused(tmp_path: pathlib.Path, text):
    path = tmp_path / "questions.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=r"expected ': category'"):
        word_vectors.read_questions(str(path))


@pytest.mark.parametrize(("judged", "second"), [([1, 1, 1], 2.0), ([1, 2, 3], 1.0)])
def test_a_constant_has_no_correlation(judged, second):
    vectors = np.array([[1, 1], [1, second], [1, 1]], np.float32)
    pairs = [(*two, of) for two, of in zip(("ab", "bc", "ac"), judged, strict=True)]
    assert np.isnan(word_vectors.similarity("abc", vectors, pairs).correlation)
    assert word_vectors.correlation("x", "abc", vectors, pairs) == {}


@pytest.mark.parametrize("bad", ["a b 1", "a\tb\tnan", "a\tb\tinf", "a\tb"])
def test_bad_pairs_are_refused(tmp_path: pathlib.Path, bad):
    path = tmp_path / "pairs.tsv"
    path.write_text(f"# judged\n\na\tb\t1\n{bad}")
    with pytest.raises(UserError, match=r"pairs\.tsv, line 4: .* finite number"):
        word_vectors.read_pairs(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        word_vectors.read_pairs(str(tmp_path / "none.tsv"))
