"""BLEU against sacrebleu itself and an example by hand; its ranges and interval."""

import math

import numpy as np
import pytest
import sacrebleu

from dl_core.metrics.bleu import Bin, by_length, corpus_bleu, interval

WORDS = ["the", "The", "cat", "cats,", "a", "mat", ".", "dog's", "red-hot", "3.5", "!"]


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    references = [" ".join(rng.choice(WORDS, rng.integers(3, 20))) for _ in range(40)]
    hypotheses = []
    for line in references:
        words = [w if rng.random() < 0.8 else rng.choice(WORDS) for w in line.split()]
        hypotheses.append(" ".join(words[: rng.integers(2, 20)]))
    return hypotheses, references


@pytest.mark.parametrize("tokenize", ["13a", "none"])
@pytest.mark.parametrize("lower", [False, True])
def test_as_sacrebleu_has_it(corpus, lower, tokenize):
    hypotheses, references = corpus
    options = {"lowercase": lower, "tokenize": tokenize}
    wanted = sacrebleu.corpus_bleu(hypotheses, [references], **options)
    found = corpus_bleu(hypotheses, references, lower=lower, tokenize=tokenize)
    assert found.score == wanted.score
    assert found.precisions == tuple(wanted.precisions)
    assert found.brevity_penalty == wanted.bp
    for part in (f"case:{'lc' if lower else 'mixed'}", f"tok:{tokenize}", "version:"):
        assert part in found.signature
        assert part in str(found)


def test_an_example_by_hand():
    # Of 5 words 4, of 4 pairs 3, of 3 triples 2 and of 2 quadruples 1 are right, and
    # the translation is a word shorter than its reference.
    found = corpus_bleu(["a b c d x"], ["a b c d e f"], tokenize="none")
    wanted = 100 * math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert found.score == pytest.approx(wanted)
    assert found.brevity_penalty == pytest.approx(math.exp(-0.2))


def test_ranges_of_lengths(corpus):
    lengths = [len(line.split()) for line in corpus[1]]
    bins = by_length(*corpus, lengths, [0, 8, 20, 30], lower=True)
    assert [(b.low, b.high) for b in bins] == [(0, 8), (8, 20), (20, 30)]
    short = [i for i, n in enumerate(lengths) if n < 8]
    chosen = [[lines[i] for i in short] for lines in corpus]
    score = corpus_bleu(*chosen, lower=True).score
    assert bins[0] == Bin(0, 8, len(short), score)
    assert sum(b.count for b in bins) == len(lengths)
    assert bins[2].count == 0
    assert math.isnan(bins[2].bleu)


def test_the_interval_is_sacrebleus(corpus, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "1")
    metric = sacrebleu.metrics.BLEU(tokenize="none")
    theirs = metric.corpus_score(corpus[0], [corpus[1]], n_bootstrap=1_000)
    low, high = interval(*corpus, tokenize="none")
    assert low < corpus_bleu(*corpus, tokenize="none").score < high
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=0.15)
    assert (low + high) / 2 == pytest.approx(theirs._mean, rel=0.05)
    assert interval(*corpus, tokenize="none") == (low, high)
    perfect = interval(corpus[1], corpus[1], samples=10)
    assert perfect == pytest.approx((100, 100))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="got 1 for 2"):
        corpus_bleu(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        interval([], [])
    with pytest.raises(ValueError, match="increasing"):
        by_length(["a"], ["a"], [1], [5, 5])
    with pytest.raises(ValueError, match="1 lengths"):
        by_length(["a"], ["a"], [1, 2], [0, 5])
