"""Vocabularies give sentences back, stay the same as bytes, and admit ignorance."""

import collections
import functools

import hypothesis
import pytest
import sentencepiece
from hypothesis import strategies as st
from sacremoses import MosesDetokenizer, MosesTokenizer

from dl_core.data.subwords import (
    BEGIN,
    END,
    PAD,
    SPECIAL,
    UNKNOWN,
    Vocabulary,
    normalise,
)

_LINES = (
    "The cat sat on the mat, didn't it?",
    "A cat's mat isn't the dog's: it's the cat's!",
    "Où est-ce qu'il dort ?  Là-bas, sur le  canapé.",
    "In 1999, 12 cats (and 3 dogs) slept; no-one knew why.",
)
_SIZES = {"bpe": 90, "unigram": 60, "words": 40}


@functools.cache
def vocabulary(unit, lower=False):
    return Vocabulary.train(_LINES, _SIZES[unit], unit, lower=lower)


@pytest.mark.parametrize("unit", ["bpe", "unigram"])
@hypothesis.given(text=st.text(st.sampled_from("".join(_LINES) + "\t\u202f▁")))
@hypothesis.settings(max_examples=80, deadline=None)
def test_subwords_give_back_any_text_of_known_characters(unit, text):
    ids = vocabulary(unit).encode(text)
    assert vocabulary(unit).decode(ids) == normalise(text)
    assert min(ids, default=9) > UNKNOWN
    assert vocabulary(unit).unknown(text) == []


@hypothesis.given(text=st.text(max_size=20), lower=st.booleans())
@hypothesis.settings(max_examples=60, deadline=None)
def test_normalising_again_changes_nothing(text, lower):
    once = normalise(text, lower)
    assert normalise(once, lower) == once
    assert once.split() == [word for word in once.split(" ") if word]


def test_accents_and_spaces_are_written_in_one_way():
    assert normalise(" Ou\u0300\u202f?\n ▁E\u0301te\u0301 ") == "Où ? Été"
    assert normalise("OÙ", lower=True) == "où"


@pytest.mark.parametrize("unit", list(_SIZES))
@hypothesis.given(text=st.text(st.characters(codec="utf-8")))
@hypothesis.settings(max_examples=50, deadline=None)
def test_any_text_can_be_read(unit, text):
    known = vocabulary(unit)
    ids = known.encode(text)
    assert all(BEGIN != i != END and PAD != i < len(known) for i in ids)
    assert len(known.unknown(text)) == ids.count(UNKNOWN)
    assert len(known.pieces(ids)) == len(ids)
    assert isinstance(known.decode(ids), str)


@pytest.mark.parametrize("unit", list(_SIZES))
def test_a_sentence_ends_at_its_end(unit):
    known = vocabulary(unit)
    cat, dog = known.encode("The cat"), known.encode("the dogs")
    assert known.decode([BEGIN, *cat, END, *dog, END, PAD, PAD]) == "The cat"
    assert known.decode([END]) == known.decode([]) == ""
    assert known.pieces([PAD, BEGIN, END, UNKNOWN]) == list(SPECIAL)
    assert "".join(known.pieces(cat)).replace("▁", "").startswith("The")


@pytest.mark.parametrize("unit", list(_SIZES))
def test_bytes_hold_all_and_are_the_same_every_time(unit):
    known = vocabulary(unit)
    again = Vocabulary.from_bytes(known.to_bytes())
    assert again == known
    assert hash(again) == hash(known)
    assert again.encode(_LINES[2]) == known.encode(_LINES[2])
    retrained = Vocabulary.train(iter(_LINES), _SIZES[unit], unit)
    assert retrained.to_bytes() == known.to_bytes()
    assert Vocabulary.train(_LINES[1:], 58, unit).to_bytes() != known.to_bytes()


@pytest.mark.parametrize(
    "stored",
    [b"", b"{}\n", b"\x08\xff", b'{"unit": "bpe"}\n', b"[1]\n", b"no\nvocabulary"],
)
def test_other_bytes_are_refused(stored):
    with pytest.raises(ValueError, match=r"^these bytes are no stored vocabulary: "):
        Vocabulary.from_bytes(stored)


def test_a_subword_model_cut_short_is_refused():
    with pytest.raises(ValueError, match=r"^these bytes are no stored vocabulary: "):
        Vocabulary.from_bytes(vocabulary("bpe").to_bytes()[:-20])


def test_subwords_are_those_of_sentencepiece():
    known = vocabulary("bpe")
    processor = sentencepiece.SentencePieceProcessor(model_proto=known.model)
    assert len(known) == processor.vocab_size() == _SIZES["bpe"]
    for line in _LINES:
        text = normalise(line)
        assert known.pieces(known.encode(line)) == processor.encode(text, out_type=str)


def test_words_are_mosess_from_the_commonest_on():
    whole = Vocabulary.train(_LINES, 1_000, "words")
    tokenise = MosesTokenizer("en").tokenize
    counts = collections.Counter(w for x in _LINES for w in tokenise(x, escape=False))
    assert len(whole) == len(counts) + 4
    words = whole.pieces(range(4, len(whole)))
    assert [counts[word] for word in words] == sorted(counts.values(), reverse=True)
    for line in _LINES:
        tokens = tokenise(normalise(line), escape=False)
        assert whole.pieces(whole.encode(line)) == tokens
        joined = MosesDetokenizer("en").detokenize(tokens, unescape=False)
        assert whole.decode(whole.encode(line)) == joined
    assert whole.decode(whole.encode(_LINES[0])) == _LINES[0]
    few = Vocabulary.train(_LINES, 10, "words")
    assert few.pieces(range(4, 10)) == words[:6]


def test_french_is_put_together_by_french_rules():
    line = "Où est-ce qu'il dort ? C'est l'heure : va !"
    known = Vocabulary.train([line], 100, "words", language="fr")
    assert known.decode(known.encode(line)) == line


def test_unknown_words_and_characters_are_named():
    assert vocabulary("bpe").unknown("the 中 cat, ж?") == ["中", "ж"]
    assert vocabulary("bpe").decode(vocabulary("bpe").encode("cat 中")) == "cat <unk>"
    whole = Vocabulary.train(_LINES, 1_000, "words")
    assert whole.unknown("The zebra sat, the gnu!") == ["zebra", "gnu"]
    assert whole.decode(whole.encode("The zebra sat")) == "The <unk> sat"


@pytest.mark.parametrize("unit", list(_SIZES))
def test_lower_case_is_part_of_the_vocabulary(unit):
    known = Vocabulary.from_bytes(vocabulary(unit, lower=True).to_bytes())
    assert known.encode("THE Cat") == known.encode("the cat")
    assert known.decode(known.encode("THE Cat")) == "the cat"


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (5_000, r"at most \d+ subwords, not 5000$"),
        (6, r"at least \d+ subwords, not 6$"),
    ],
)
def test_impossible_sizes_are_refused(size, why):
    with pytest.raises(ValueError, match=why):
        Vocabulary.train(_LINES, size, "bpe")
    with pytest.raises(ValueError, match="subwords"):
        Vocabulary.train([], size, "bpe")
