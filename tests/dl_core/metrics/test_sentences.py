"""Scores of translations against sacrebleu, in whatever order batches come."""

import gzip

import numpy as np
import pytest
import sacrebleu

from dl_core.data.subwords import END
from dl_core.data.translation import PairsConfig, read_pairs
from dl_core.metrics.sentences import Translations, first_example

LONGEST = 12
SOURCES = ("A dog runs in the park.", "Two Cats sleep on it.", "A man has a red hat.")
TARGETS = (
    "Un chien court dans le parc.",
    "Deux Chats y dorment encore ensemble.",
    "Un homme porte un chapeau rouge.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs that are other ones in validation and in test."""
    folder = tmp_path_factory.mktemp("pairs")
    turns = {"train": 0, "val": 1, "test": 2}
    for name, turn in turns.items():
        for language, lines in (("en", SOURCES), ("fr", TARGETS)):
            turned = "\n".join((*lines[turn:], *lines[:turn]))
            file = folder / f"{name}.{language}.gz"
            file.write_bytes(gzip.compress(turned.encode()))
    return str(folder)


def translations(data, name, texts):
    """What a network wrote for all pairs of a set, as one batch."""
    vocabulary = read_pairs(data).target
    tokens = np.full((len(texts), LONGEST), END)
    for row, text in zip(tokens, texts, strict=True):
        numbers = vocabulary.encode(text)
        row[: len(numbers)] = numbers
    first = first_example(data, name)
    examples = np.arange(first, first + len(texts))
    return Translations(tokens, examples, np.ones(len(texts)), data)


def part(made, rows):
    return made.replace(
        tokens=made.tokens[rows], example=made.example[rows], mask=made.mask[rows]
    )


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize("lower", [False, True])
def test_bleu_is_sacrebleus_of_each_sentence_and_its_own_reference(folder, lower, name):
    data = PairsConfig(path=folder, unit="words", vocabulary=50, lower=lower)
    theirs = read_pairs(data).splits[name].targets
    # A word less, and another one: as good as these three are, no two are alike.
    ours = [text.replace("chien", "homme").replace("encore ", "") for text in theirs]
    made = translations(data, name, ours)
    found = made.compute()
    wanted = sacrebleu.corpus_bleu(ours, [list(theirs)], lowercase=lower).score
    assert 10 < wanted < 95
    assert found["bleu"] == pytest.approx(wanted)
    # The full stop is a word of its own.
    spaced = [[text.replace(".", " .") for text in texts] for texts in (ours, theirs)]
    wanted = sacrebleu.corpus_bleu(
        spaced[0], [spaced[1]], lowercase=lower, tokenize="none", force=True
    ).score
    assert found["bleu_words"] == pytest.approx(wanted)
    assert found["unended"] == 0
    assert sum(found["sentences_by_length"]) == 3
    # What is padded does not count, nor in which order the batches come.
    padded = part(made, [0, 0, 1]).replace(mask=np.array([1, 0, 0]))
    padded.tokens[1:] = 4
    again = part(made, [2, 1]).merge(padded).compute()
    for metric, value in found.items():
        np.testing.assert_allclose(again[metric], value)


def test_a_translation_without_an_end_is_counted(folder):
    data = PairsConfig(path=folder, unit="words", vocabulary=50)
    made = translations(data, "test", TARGETS)
    made.tokens[1] = 4
    assert made.compute()["unended"] == pytest.approx(1 / 3)


def test_the_signature_says_whether_case_counts(folder):
    data = {"path": folder, "vocabulary": 50}
    plain = Translations.signatures(PairsConfig(**data))
    version = f"version:{sacrebleu.__version__}"
    assert plain == f"bleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}\n"
    words = PairsConfig(**data, unit="words", lower=True)
    assert Translations.signatures(words) == (
        f"bleu nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|{version}\n"
        f"bleu_words nrefs:1|case:lc|eff:no|tok:none|smooth:exp|{version}\n"
    )
