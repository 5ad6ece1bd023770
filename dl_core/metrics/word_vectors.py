"""How good word vectors are: analogies by category, and similarity as people judge it.

Both are what gensim's `evaluate_word_analogies` and `evaluate_word_pairs` give for the
same vectors of lower-case words. The question files of others (Google's
questions-words.txt; WordSim-353, SimLex-999) are read from a path.
"""

import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dl_core.errors import UserError

Question = tuple[str, str, str, str]
"""a is to b as c is to d; the last is asked."""
Vectors = Float[np.ndarray, "vocabulary dimension"]


class Answers(NamedTuple):
    """How many questions were answered right, of how many whose words are known."""

    right: int
    asked: int

    @property
    def accuracy(self) -> float:
        """The share of right answers; NaN where nothing was asked."""
        return self.right / self.asked if self.asked else float("nan")


class Similarity(NamedTuple):
    """Spearman's correlation with people's judgements, and the pairs it is of."""

    correlation: float
    """NaN where fewer than two pairs are known, or where either side is constant."""
    pairs: int
    unknown: int
    """Pairs left out, as a word of them is not in the vocabulary."""


def analogies(
    vocabulary: Sequence[str],
    vectors: Vectors,
    questions: Mapping[str, Iterable[Question]],
) -> dict[str, Answers]:
    """Answers "a is to b as c is to …": the word of the largest cosine with b - a + c.

    The vectors are scaled to length 1 first; a, b and c are no answers. Questions with
    an unknown word are left out.

    Args:
      vocabulary: the words.
      vectors: of each word.
      questions: by category.
    """
    places = {word: place for place, word in enumerate(vocabulary)}
    scaled = unit(vectors)
    answers = {}
    for category, asked in questions.items():
        known = [q for q in asked if all(word in places for word in q)]
        if not known:
            answers[category] = Answers(0, 0)
            continue
        a, b, c, d = np.array([[places[word] for word in q] for q in known]).T
        scores = (scaled[b] - scaled[a] + scaled[c]) @ scaled.T
        rows = np.arange(len(known))
        for given in (a, b, c):
            scores[rows, given] = -np.inf
        answers[category] = Answers(int((scores.argmax(1) == d).sum()), len(known))
    return answers


def similarity(
    vocabulary: Sequence[str],
    vectors: Vectors,
    pairs: Iterable[tuple[str, str, float]],
) -> Similarity:
    """Compares the cosine of two words with how similar people find them.

    Args:
      vocabulary: the words.
      vectors: of each word.
      pairs: two words and a judgement; those with an unknown word are left out.
    """
    # Takes a while to import, and only this function needs it.
    from scipy.stats import spearmanr

    pairs = list(pairs)
    places = {word: place for place, word in enumerate(vocabulary)}
    known = [
        (places[first], places[second], judged)
        for first, second, judged in pairs
        if first in places and second in places
    ]
    unknown = len(pairs) - len(known)
    nothing = Similarity(float("nan"), len(known), unknown)
    if len(known) < 2:
        return nothing
    first, second, judged = zip(*known, strict=True)
    scaled = unit(vectors)
    cosines = np.einsum("nd,nd->n", scaled[list(first)], scaled[list(second)])
    if not (np.ptp(judged) and np.ptp(cosines)):
        return nothing
    return Similarity(float(spearmanr(judged, cosines)[0]), len(known), unknown)


def accuracies(
    name: str,
    vocabulary: Sequence[str],
    vectors: Vectors,
    questions: Mapping[str, Iterable[Question]],
) -> dict[str, float]:
    """Returns the share of questions that are answered right, and by category.

    Args:
      name: of the questions.
      vocabulary: the words.
      vectors: of each word.
      questions: as for `analogies`.

    Returns:
      NAME, NAME/asked, and NAME/CATEGORY of each category with a question whose words
      are known; nothing where there is no such question.
    """
    answers = analogies(vocabulary, vectors, questions)
    known = {f"{name}/{of}": a.accuracy for of, a in answers.items() if a.asked}
    if not known:
        return {}
    right, asked = (sum(numbers) for numbers in zip(*answers.values(), strict=True))
    return {name: right / asked, f"{name}/asked": asked} | known


def correlation(
    name: str,
    vocabulary: Sequence[str],
    vectors: Vectors,
    pairs: Iterable[tuple[str, str, float]],
) -> dict[str, float]:
    """Returns the correlation with people's judgements, and of how many pairs it is.

    Args:
      name: of the pairs.
      vocabulary: the words.
      vectors: of each word.
      pairs: as for `similarity`.

    Returns:
      NAME and NAME/pairs; nothing where there is no correlation: of fewer than two
      known pairs, of equal judgements, or of equal cosines.
    """
    found = similarity(vocabulary, vectors, pairs)
    if np.isnan(found.correlation):
        return {}
    return {name: found.correlation, f"{name}/pairs": found.pairs}


def unit(vectors: Vectors) -> Vectors:
    """Returns vectors of length 1, in float32; those of 0 stay so."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def questions_of(
    pairs: Mapping[str, Sequence[tuple[str, str]]],
) -> dict[str, list[Question]]:
    """Returns the questions that every two pairs of a category make.

    Args:
      pairs: two words that belong together in the same way, by category.
    """
    return {
        category: [(*first, *second) for first, second in itertools.permutations(of, 2)]
        for category, of in pairs.items()
    }


def read_questions(path: str) -> dict[str, list[Question]]:
    """Reads analogies in the form of questions-words.txt, in lower case.

    Args:
      path: a file whose lines are ": category" or four words.

    Raises:
      UserError: if the file cannot be read, or a line is neither.
    """
    questions: dict[str, list[Question]] = {}
    for number, line in _lines(path):
        if line.startswith(":"):
            questions[line[1:].strip()] = found = []
            continue
        words = line.lower().split()
        if len(words) != 4 or not questions:
            raise UserError(
                f"{path}, line {number}: expected ': category', then lines of four "
                f"words, found {line!r}"
            )
        found.append(tuple(words))
    return questions


def read_pairs(path: str) -> list[tuple[str, str, float]]:
    """Reads judged pairs in the form of WordSim-353's file of gensim, in lower case.

    Args:
      path: a file whose lines are two words and a number, with tabs between; lines that
        begin with # are left out.

    Raises:
      UserError: if the file cannot be read, or a line is something else.
    """
    pairs = []
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        try:
            first, second, judged = line.lower().split("\t")
            judgement = float(judged)
        except ValueError:
            judgement = math.nan
        if not math.isfinite(judgement):
            raise UserError(
                f"{path}, line {number}: expected two words and a finite number with "
                f"tabs between, found {line!r}"
            )
        pairs.append((first.strip(), second.strip(), judgement))
    return pairs


def _lines(path: str) -> list[tuple[int, str]]:
    """Returns the lines that are not blank, with their numbers in the file."""
    try:
        text = pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
