"""English novels as sentences of numbered words, and the blocks in which they are read.

Nine novels ship with the project (`novels_small`) and are read without importing TFDS.
Other collections are read from a path, such as the archive of a hundred English novels
from which they are: a .tar.xz, or a folder, of .txt files.

A word is lower-case letters, with what stands between apostrophes or hyphens in it. A
sentence ends at a full stop, but not one after Mr. and the like, at a question or
exclamation mark, or at an empty line. Words rarer than `min_count` are left out, as in
word2vec, so that their neighbours become each other's.
"""

import bisect
import collections
import dataclasses
import functools
import pathlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from dl_core.config import config, static
from dl_core.errors import UserError

FOLDER = pathlib.Path(__file__).with_name("novels_small")
ARCHIVE = FOLDER / "novels.tar.xz"
SPLITS = ("train", "validation", "test")

_TITLES = r"\b(mr|mrs|dr|st|messrs|m)\."
_HELD_OUT = 100
"""One sentence of so many is for validation, and another one for testing."""


@config
class NovelsConfig:
    """Which novels, and which words of them."""

    path: str = static(
        "", "A .tar.xz, or folder, of .txt files; the embedded novels without one."
    )
    min_count: int = static(5, "Rarer words are left out.", at_least=1)
    vocabulary: int = static(
        3_000, "Most frequent words that are kept; 0 for all.", at_least=0
    )


class Novels(NamedTuple):
    """Texts as words by split, each a place in the vocabulary, with their sentences."""

    vocabulary: tuple[str, ...]
    """From the most frequent word of the training split to the rarest."""
    counts: Int[np.ndarray, " vocabulary"]
    """In the training split."""
    words: Mapping[str, Int[np.ndarray, " words"]]
    sentences: Mapping[str, Int[np.ndarray, " words"]]
    """The number of the sentence of each word, rising."""
    left_out: int
    """Words of the training split that are not in the vocabulary."""

    def report(self) -> str:
        """Returns a line that says how many words of the training split are kept."""
        kept = int(self.counts.sum())
        share = self.left_out / (kept + self.left_out)
        return (
            f"novels: {kept:,} words to train on, {len(self.vocabulary):,} different "
            f"ones; left out {self.left_out:,} ({share:.1%}) rarer ones"
        )


@functools.lru_cache(maxsize=4)
def read_novels(chosen: NovelsConfig) -> Novels:
    """Returns the words of novels by split; two sentences of a hundred are held out.

    Raises:
      UserError: if there is a path without novels, or no word is frequent enough.
    """
    texts = read_texts(chosen.path)
    every = [sentence for text in texts.values() for sentence in sentences_of(text)]
    split = {name: [] for name in SPLITS}
    for number, sentence in enumerate(every):
        place = {0: "test", _HELD_OUT // 2: "validation"}.get(number % _HELD_OUT)
        split[place or "train"].append(sentence)
    counts = collections.Counter(word for line in split["train"] for word in line)
    total = counts.total()
    kept = [
        (word, count)
        for word, count in counts.most_common(chosen.vocabulary or None)
        if count >= chosen.min_count
    ]
    if len(kept) < 2:
        raise UserError(
            f"--config.data.min_count={chosen.min_count}: expected at least two words "
            f"that occur so often, found {len(kept)}"
        )
    places = {word: place for place, (word, _) in enumerate(kept)}
    numbered = {name: _numbered(lines, places) for name, lines in split.items()}
    occurrences = np.array([count for _, count in kept])
    return Novels(
        tuple(places),
        occurrences,
        {name: words for name, (words, _) in numbered.items()},
        {name: numbers for name, (_, numbers) in numbered.items()},
        total - int(occurrences.sum()),
    )


def _numbered(
    lines: list[list[str]], places: Mapping[str, int]
) -> tuple[Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    pairs = [
        (places[word], number)
        for number, line in enumerate(lines)
        for word in line
        if word in places
    ]
    words, sentences = np.array(pairs, np.int32).reshape(-1, 2).T
    return np.ascontiguousarray(words), np.ascontiguousarray(sentences)


def read_texts(path: str = "") -> dict[str, str]:
    """Returns the texts by name, such as Dickens_Oliver_1839, in the names' order.

    Args:
      path: a .tar.xz, or a folder, of .txt files; the embedded novels if empty.

    Raises:
      UserError: if there is no such file or folder, or no text in it.
    """
    source = pathlib.Path(path).expanduser() if path else ARCHIVE
    try:
        if source.is_dir():
            found = {file.stem: file.read_bytes() for file in source.glob("*.txt")}
        else:
            found = _unpack(source)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(
            f"--config.data.path={path}: expected a .tar.xz, or a folder, of .txt "
            f"files ({error})"
        ) from None
    if not found:
        raise UserError(f"--config.data.path={path}: found no .txt file in it")
    try:
        return {name: found[name].decode("utf-8-sig") for name in sorted(found)}
    except UnicodeDecodeError as error:
        raise UserError(
            f"--config.data.path={path}: expected texts in UTF-8 ({error})"
        ) from None


def _unpack(archive: pathlib.Path) -> dict[str, bytes]:
    with tarfile.open(archive, "r:*") as opened:
        return {
            pathlib.PurePosixPath(member.name).stem: opened.extractfile(member).read()
            for member in opened
            if member.isfile() and member.name.endswith(".txt")
        }


def sentences_of(text: str) -> Iterator[list[str]]:
    """Yields the words of each sentence that has any."""
    text = re.sub(_TITLES, r"\1", text.lower().replace("’", "'"))
    for sentence in re.split(r"[.!?]+|\n\s*\n", text):
        if words := re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", sentence):
            yield words


class Blocks:
    """A text as blocks of words in a row, without most of the frequent ones.

    Every epoch drops words anew (`dl_core.ops.embeddings.keep_probability`); what is
    left of the epochs, laid end to end, is cut into blocks. So each step has as many
    words, and every word that is kept is read once. A batch has the fields

      tokens     window + batch_size + window: words
      sentences  the same: of each word; -1 where there is none
      radius     batch_size: of each word's window, drawn from 1 to `window`

    In evaluation nothing is dropped and every window is the widest; the last block is
    filled up with -1.
    """

    def __init__(
        self,
        words: Int[np.ndarray, " words"],
        sentences: Int[np.ndarray, " words"],
        keep: Float[np.ndarray, " vocabulary"],
        batch_size: int,
        window: int,
    ):
        """Args:
        words: the text.
        sentences: of each word.
        keep: how likely each word of the vocabulary is kept.
        batch_size: words of a block, without those around it.
        window: words on either side of a block.

        Raises:
          UserError: if there is no word.
        """
        if not len(words):
            raise UserError("the novels hold no sentence of words that are frequent")
        self.batch_size = batch_size
        self.resident: dict[str, np.ndarray] = {}
        self.assemble = _Block()
        self._words, self._sentences, self._keep = words, sentences, keep
        self._window = window
        self._epoch = functools.lru_cache(maxsize=16)(self._read_epoch)
        self._ends: dict[int, list[int]] = {}

    def train_inputs(self, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Returns the blocks of `count` steps from step `first` on."""
        steps = range(first, first + count)
        blocks = [self._block(seed, step * self.batch_size) for step in steps]
        return _fields(np.stack(blocks), self._window)

    def eval_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields each block of the whole text."""
        window, size = self._window, self.batch_size
        text = np.stack(
            [self._words, self._sentences, np.full_like(self._words, window)]
        )
        text = np.pad(
            text,
            ((0, 0), (window, window + -text.shape[1] % size)),
            constant_values=_NOTHING,
        )
        for start in range(0, text.shape[1] - 2 * window, size):
            yield _fields(text[:, start : start + size + 2 * window], window)

    def close(self) -> None:
        """Does nothing: nothing is read ahead."""

    def _read_epoch(self, seed: int, epoch: int) -> Int[np.ndarray, "3 words"]:
        random = np.random.default_rng([seed, epoch])
        kept = random.random(len(self._words)) < self._keep[self._words]
        words = self._words[kept]
        # No sentence has the number of one of the epoch before.
        numbers = 2 * self._sentences[kept] + epoch % 2
        radius = random.integers(1, self._window, len(words), np.int32, endpoint=True)
        return np.stack([words, numbers, radius])

    def _block(self, seed: int, start: int) -> Int[np.ndarray, "3 padded"]:
        """Returns the block of the words from place `start` of all epochs on."""
        begin, stop = start - self._window, start + self.batch_size + self._window
        parts = [np.full((3, max(-begin, 0)), _NOTHING, np.int32)]
        begin = max(begin, 0)
        ends = self._ends.setdefault(seed, [0])
        while ends[-1] < stop:
            ends.append(ends[-1] + self._epoch(seed, len(ends) - 1).shape[1])
        epoch = bisect.bisect_right(ends, begin) - 1
        while begin < stop:
            here = slice(begin - ends[epoch], stop - ends[epoch])
            parts.append(self._epoch(seed, epoch)[:, here])
            epoch += 1
            begin = ends[epoch]
        return np.concatenate(parts, axis=1)


_NOTHING = np.int32(-1)


def _fields(
    blocks: Int[np.ndarray, "*steps 3 padded"], window: int
) -> dict[str, Int[np.ndarray, "*steps words"]]:
    words, sentences, radius = np.moveaxis(blocks, -2, 0)
    radius = radius[..., window : radius.shape[-1] - window]
    return {"tokens": np.maximum(words, 0), "sentences": sentences, "radius": radius}


@dataclasses.dataclass(frozen=True)
class _Block:
    """The block as it is."""

    def __call__(
        self, config: Any, resident: Any, inputs: dict[str, Array], key: Any
    ) -> dict[str, Array]:
        return inputs
