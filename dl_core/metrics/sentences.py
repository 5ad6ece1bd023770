"""How good translations are, gathered over batches: BLEU, also by length of source."""

from typing import Self

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from dl_core.data.subwords import END
from dl_core.data.translation import PairsConfig, read_pairs
from dl_core.metrics import bleu

LENGTHS = (1, 5, 7, 9, 11, 13, 16, 21, 1_000)
"""Where ranges of words in a source begin, and the last one ends."""
SETS = ("validation", "test")


def first_example(data: PairsConfig, name: str) -> int:
    """Returns the number of a set's first pair, counted through all of `SETS`."""
    before = SETS[: SETS.index(name)]
    return sum(len(read_pairs(data).splits[other].sources) for other in before)


def before_end(row: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " written"]:
    """Returns the tokens before the end."""
    return row[: np.argmax(np.append(row, END) == END)]


@struct.dataclass
class Translations:
    """Translations of validation or test pairs."""

    tokens: Int[Array, "batch longest"]
    example: Int[Array, " batch"]
    """Of which pair, counted as by `first_example`."""
    mask: Float[Array, " batch"]
    """0 for padded examples."""
    data: PairsConfig = struct.field(pytree_node=False)

    def merge(self, other: Self) -> Self:
        """Returns the translations of both."""
        return self.replace(
            tokens=np.concatenate([self.tokens, other.tokens]),
            example=np.concatenate([self.example, other.example]),
            mask=np.concatenate([self.mask, other.mask]),
        )

    @staticmethod
    def signatures(data: PairsConfig) -> str:
        """Returns a line for each kind of BLEU: its name, and sacrebleu's signature."""
        names = {"bleu": "13a"} | (
            {"bleu_words": "none"} if data.unit == "words" else {}
        )
        lines = ""
        for name, tokenize in names.items():
            # A signature is of a score, but the same for all.
            any_score = bleu.corpus_bleu(
                ["a"], ["a"], lower=data.lower, tokenize=tokenize
            )
            lines += f"{name} {any_score.signature}\n"
        return lines

    def compute(self) -> dict[str, float | list[float]]:
        """Returns scores against the sentences as they are, detokenised.

        "bleu", "bleu_by_length" and "sentences_by_length" for the ranges of `LENGTHS`,
        "unended", the share that was cut before its end, and, where tokens are words,
        "bleu_words" of the sentences as tokenised. A range without sentences has the
        score 0. Case counts where the data are not in lower case (`signatures`).
        """
        pairs = read_pairs(self.data)
        splits = [pairs.splits[name] for name in SETS]
        sources = [text for split in splits for text in split.sources]
        targets = [text for split in splits for text in split.targets]
        kept = np.asarray(self.mask) > 0
        rows, examples = np.asarray(self.tokens)[kept], np.asarray(self.example)[kept]
        ours = [pairs.target.decode(row) for row in rows]
        theirs = [targets[i] for i in examples]
        words = [len(sources[i].split()) for i in examples]
        lower = self.data.lower
        ranges = bleu.by_length(ours, theirs, words, LENGTHS, lower=lower)
        found = {
            "bleu": bleu.corpus_bleu(ours, theirs, lower=lower).score,
            "unended": float(np.mean(~(rows == END).any(axis=1))),
            # A number that is not finite would end the run.
            "bleu_by_length": [each.bleu if each.count else 0.0 for each in ranges],
            "sentences_by_length": [float(each.count) for each in ranges],
        }
        if self.data.unit == "words":
            ours = [" ".join(pairs.target.pieces(before_end(row))) for row in rows]
            theirs = [" ".join(pairs.target.split(text)) for text in theirs]
            score = bleu.corpus_bleu(ours, theirs, lower=lower, tokenize="none")
            found["bleu_words"] = score.score
        return found
