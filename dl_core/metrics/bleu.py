"""BLEU of translations through sacrebleu, with its signature.

Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002;
Post, "A call for clarity in reporting BLEU scores", 2018 (arXiv:1804.08771). The second
is why a score comes with its signature: numbers of two signatures cannot be compared.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from sacrebleu.metrics import BLEU

_ORDERS = 4


@dataclasses.dataclass(frozen=True)
class Bleu:
    """A score of 0 to 100, and how it was computed.

    Attributes:
      score: BLEU.
      precisions: of n-grams of 1 to 4 words, in per cent.
      brevity_penalty: of 0 to 1.
      signature: what another one needs to compute the same.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    signature: str

    def __str__(self) -> str:
        return f"{self.score:.2f} ({self.signature})"


@dataclasses.dataclass(frozen=True)
class Bin:
    """The score of sentences whose length is from `low` to below `high`."""

    low: int
    high: int
    count: int
    bleu: float


def corpus_bleu(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    lower: bool = False,
    tokenize: str = "13a",
) -> Bleu:
    """Returns the score of translations, each with one reference.

    Args:
      hypotheses: the translations.
      references: one for each.
      lower: whether upper and lower case are the same.
      tokenize: sacrebleu's tokeniser, for detokenised text; "none" if the sentences are
        tokens with spaces between them.

    Raises:
      ValueError: if there are no sentences, or not one reference for each.
    """
    _check(hypotheses, references)
    metric = _metric(lower, tokenize)
    result = metric.corpus_score(list(hypotheses), [list(references)])
    signature = metric.get_signature().format()
    return Bleu(result.score, tuple(result.precisions), result.bp, signature)


def by_length(
    hypotheses: Sequence[str],
    references: Sequence[str],
    lengths: Sequence[int] | Int[np.ndarray, " n"],
    edges: Sequence[int],
    *,
    lower: bool = False,
    tokenize: str = "13a",
) -> list[Bin]:
    """Returns the scores of the sentences of each range of lengths.

    A range without sentences has the score NaN.

    Args:
      hypotheses: as for `corpus_bleu`.
      references: as for `corpus_bleu`.
      lengths: of the sentences, usually of their sources.
      edges: where ranges begin, and the last one ends.
      lower: as for `corpus_bleu`.
      tokenize: as for `corpus_bleu`.

    Raises:
      ValueError: if there is not one reference and one length for each translation, or
        the edges do not increase.
    """
    _check(hypotheses, references)
    if len(lengths) != len(hypotheses) or any(np.diff(edges) <= 0) or len(edges) < 2:
        raise ValueError(
            f"by_length: expected {len(hypotheses)} lengths and two or more increasing "
            f"edges, got {len(lengths)} and {list(edges)}"
        )
    bins = []
    for low, high in itertools.pairwise(edges):
        chosen = [i for i, n in enumerate(lengths) if low <= n < high]
        score = np.nan
        if chosen:
            picked = [[texts[i] for i in chosen] for texts in (hypotheses, references)]
            score = corpus_bleu(*picked, lower=lower, tokenize=tokenize).score
        bins.append(Bin(low, high, len(chosen), score))
    return bins


def interval(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    lower: bool = False,
    tokenize: str = "13a",
    level: float = 0.95,
    samples: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the range of the score over sentences drawn again, with replacement.

    The bootstrap of Koehn, "Statistical significance tests for machine translation
    evaluation", 2004: it says how far the score depends on which sentences were tested,
    not on the seed of a training.

    Args:
      hypotheses: as for `corpus_bleu`.
      references: as for `corpus_bleu`.
      lower: as for `corpus_bleu`.
      tokenize: as for `corpus_bleu`.
      level: the share of the draws within the range.
      samples: how many draws.
      seed: of the draws.

    Raises:
      ValueError: if there are no sentences, or not one reference for each.
    """
    _check(hypotheses, references)
    metric = _metric(lower, tokenize)
    # Changes the score of a sentence, which is not used, not its counts.
    metric.effective_order = True
    pairs = zip(hypotheses, references, strict=True)
    each = [metric.sentence_score(ours, [theirs]) for ours, theirs in pairs]
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in each])
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(samples):
        drawn = counts[rng.integers(0, len(counts), len(counts))].sum(0)
        matches, totals = drawn[:_ORDERS], drawn[_ORDERS : 2 * _ORDERS]
        sums = matches.tolist(), totals.tolist(), *drawn[2 * _ORDERS :].tolist()
        scores.append(BLEU.compute_bleu(*sums, smooth_method="exp").score)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _metric(lower: bool, tokenize: str) -> BLEU:
    # Forced, it does not warn of text that is tokenised where that is meant to be.
    return BLEU(lowercase=lower, tokenize=tokenize, force=tokenize == "none")


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not len(hypotheses):
        raise ValueError(
            "BLEU: expected one reference for each translation and at least one, got "
            f"{len(references)} for {len(hypotheses)}"
        )
