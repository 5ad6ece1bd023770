"""Vocabularies of subwords or words: sentences to numbers and back, stored as bytes.

Subwords are byte-pair encoding (Sennrich, Haddow & Birch, "Neural machine translation
of rare words with subword units", ACL 2016) or the unigram model (Kudo, "Subword
regularization", ACL 2018), both by SentencePiece (Kudo & Richardson, EMNLP 2018 demos).
Words, with the marks of punctuation apart, are those of Moses's tokeniser, and
sentences are put together again by its detokeniser (both through sacremoses).
"""

import collections
import dataclasses
import functools
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Self, SupportsIndex

import sentencepiece

Unit = Literal["bpe", "unigram", "words"]

PAD, BEGIN, END, UNKNOWN = range(4)
"""Places in every vocabulary: of filling, a sentence's two ends, anything unknown."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""How those four are written."""

_LONGEST_LINE = 1 << 24  # SentencePiece leaves out longer lines without a word.


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which numbers stand for which pieces of text; equal if the contents are.

    `train` makes one from text, `from_bytes` reads one that was stored.
    """

    unit: Unit
    language: str
    """Two letters: whose rules of punctuation apply to words."""
    lower: bool
    """Whether sentences are read in lower case."""
    model: bytes
    """SentencePiece's model; or the words, each in a line, from the commonest on."""

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        size: int,
        unit: Unit = "bpe",
        *,
        language: str = "en",
        lower: bool = False,
    ) -> Self:
        """Returns the vocabulary of a text; the same text gives the same bytes.

        Args:
          lines: sentences.
          size: pieces, the four special ones included. Words may be fewer, where the
            text has no more; subwords are exactly as many, and every character of the
            text is one.
          unit: what a piece is.
          language: that of the sentences, as two letters.
          lower: read sentences in lower case.

        Raises:
          ValueError: if the text has too few subwords, or too many characters, for the
            size; the message says how many it may be.
        """
        prepared = (normalise(line, lower) for line in lines)
        if unit == "words":
            model = _commonest(prepared, size - len(SPECIAL), language)
        else:
            model = _sentencepiece_model(prepared, size, unit)
        return cls(unit, language, lower, model)

    def __len__(self) -> int:
        return len(self._units)

    def encode(self, text: str) -> list[int]:
        """Returns a sentence's numbers, without those of its two ends."""
        return self._units.encode(normalise(text, self.lower))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the sentence up to the first `END`; what is unknown as <unk>."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(END)] if END in ids else ids
        text = self._units.decode([i for i in ids if i not in (PAD, BEGIN)])
        return normalise(text)

    def pieces(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Returns each number's piece; ▁ stands for the space before a word."""
        return [self._units.piece(int(i)) for i in ids]

    def split(self, text: str) -> list[str]:
        """Returns the words, or pieces, of a sentence, known or not."""
        return list(self._units.split(normalise(text, self.lower)))

    def unknown(self, text: str) -> list[str]:
        """Returns the words, or characters, of a sentence that are not known."""
        return [
            piece
            for piece, place in zip(self.split(text), self.encode(text), strict=True)
            if place == UNKNOWN
        ]

    def to_bytes(self) -> bytes:
        """Returns the whole vocabulary: a line of JSON, then the model."""
        header = {"unit": self.unit, "language": self.language, "lower": self.lower}
        return json.dumps(header, sort_keys=True).encode() + b"\n" + self.model

    @classmethod
    def from_bytes(cls, stored: bytes) -> Self:
        """Returns the vocabulary that `to_bytes` stored.

        Raises:
          ValueError: if it is something else.
        """
        header, _, model = stored.partition(b"\n")
        try:
            vocabulary = cls(model=model, **json.loads(header))
            len(vocabulary)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"these bytes are no stored vocabulary: {error}") from None
        return vocabulary

    @functools.cached_property
    def _units(self) -> "_Subwords | _Words":
        if self.unit == "words":
            return _Words(self.model.decode(), self.language)
        return _Subwords(self.model)


def normalise(text: str, lower: bool = False) -> str:
    """Returns a text with composed characters (NFC) and one plain space between words.

    Any white space counts as a space, as does ▁, by which subwords mark one.
    """
    text = unicodedata.normalize("NFC", text.lower() if lower else text)
    return " ".join(text.replace("▁", " ").split())


class _Subwords:
    """Pieces of SentencePiece."""

    def __init__(self, model: bytes):
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __len__(self) -> int:
        return len(self.processor)

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def split(self, text: str) -> Sequence[str]:
        return self.processor.encode(text, out_type=str)

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def piece(self, place: int) -> str:
        return self.processor.id_to_piece(place)


class _Words:
    """Words and marks of punctuation of Moses's tokeniser."""

    def __init__(self, model: str, language: str):
        # Takes a while to import, and only words need it.
        from sacremoses import MosesDetokenizer

        self.words = (*SPECIAL, *model.split("\n"))
        self.places = {word: place for place, word in enumerate(self.words)}
        self.split = _tokeniser(language)
        self.join = MosesDetokenizer(language).detokenize

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        return [self.places.get(word, UNKNOWN) for word in self.split(text)]

    def decode(self, ids: list[int]) -> str:
        return self.join([self.words[place] for place in ids], unescape=False)

    def piece(self, place: int) -> str:
        return self.words[place]


@functools.cache
def _tokeniser(language: str) -> Callable[[str], tuple[str, ...]]:
    """Returns Moses's tokeniser, which remembers the sentences it has seen."""
    from sacremoses import MosesTokenizer

    tokenise = MosesTokenizer(language).tokenize
    return functools.lru_cache(1 << 16)(
        lambda text: tuple(tokenise(text, escape=False))
    )


def _commonest(lines: Iterable[str], limit: int, language: str) -> bytes:
    counts = collections.Counter()
    for line in lines:
        counts.update(_tokeniser(language)(line))
    return "\n".join(word for word, _ in counts.most_common(limit)).encode()


def _sentencepiece_model(lines: Iterable[str], size: int, unit: str) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=unit,
            vocab_size=size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=_LONGEST_LINE,
            num_threads=1,
            minloglevel=2,
            pad_id=PAD,
            bos_id=BEGIN,
            eos_id=END,
            unk_id=UNKNOWN,
            unk_surface=f" {SPECIAL[UNKNOWN]} ",
        )
    except RuntimeError as error:
        raise ValueError(_why(str(error), size)) from None
    return model.getvalue()


def _why(message: str, size: int) -> str:
    """Returns SentencePiece's message in a reader's words."""
    if most := re.search(r"a value <= (\d+)", message):
        return f"the text gives at most {most[1]} subwords, not {size}"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"the text takes at least {least[1]} subwords, not {size}"
    return f"no {size} subwords can be made of the text: {message}"
