"""Pairs of sentences in two languages, as numbers, with what was left out counted.

`tatoeba_small` (English and French) ships with the project and is read without
importing TFDS. Others are read from a folder with two files for each split, a sentence
a line, the same line of both being a pair; they may be compressed by gzip. That is how
Multi30k lies in its own repository (Elliott, Frank, Sima'an & Specia, "Multi30K:
Multilingual English-German image descriptions", 2016; github.com/multi30k/dataset, in
data/task1/raw): train.de.gz and train.en.gz, val.de.gz, test_2016_flickr.de.gz, ….
"""

import functools
import gzip
import itertools
import lzma
import pathlib
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dl_core.config import config, static
from dl_core.data.subwords import END, PAD, UNKNOWN, Unit, Vocabulary, normalise
from dl_core.errors import UserError

FOLDER = pathlib.Path(__file__).with_name("tatoeba_small")
EMBEDDED = ("en", "fr")
"""The two languages that ship with the project."""
SPLITS = ("train", "validation", "test")

_STEMS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test_2016_flickr", "test"),
}
"""What the files of a split may be called, before the language."""


@config
class PairsConfig:
    """Which pairs of sentences, and what a token is."""

    path: str = static(
        "",
        "Folder with train, val and test_2016_flickr or test, each as NAME.LANGUAGE or "
        "NAME.LANGUAGE.gz; embedded English-French pairs without one.",
    )
    source: str = static("en", "Language to translate from, as files are called.")
    target: str = static("fr", "Language to translate to.")
    unit: Unit = static("bpe", "What a token is.")
    vocabulary: int = static(
        2_000, "Tokens of each language, the four special ones included.", at_least=5
    )
    longest: int = static(
        64, "Tokens of the longest sentence that is kept, its end included.", at_least=2
    )
    lower: bool = static(False, "Read and write sentences in lower case.")
    pairs: int = static(
        0, "Training pairs that are read, chosen at random; 0 for all.", at_least=0
    )


class Split(NamedTuple):
    """Pairs as numbers, each sentence followed by `END`, then by `PAD`."""

    source: Int[np.ndarray, "pairs longest"]
    source_length: Int[np.ndarray, " pairs"]
    """Tokens, the end included."""
    target: Int[np.ndarray, "pairs longest"]
    target_length: Int[np.ndarray, " pairs"]
    sources: tuple[str, ...]
    """The sentences as they were read, with plain spaces, in lower case if chosen."""
    targets: tuple[str, ...]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the numbers and lengths by their names, as batches hold them."""
        return {k: x for k, x in self._asdict().items() if isinstance(x, np.ndarray)}


class Dropped(NamedTuple):
    """What of a split was left out, and what of the rest is unknown."""

    empty: tuple[int, ...]
    """Lines, from 1 on, of pairs of which a sentence is empty."""
    long: tuple[int, ...]
    """Lines of pairs of which a sentence has too many tokens."""
    unknown: tuple[int, int]
    """Tokens of the kept sources, and targets, that are not in the vocabularies."""


class Pairs(NamedTuple):
    """Pairs of sentences by split, their vocabularies, and what was left out."""

    splits: Mapping[str, Split]
    source: Vocabulary
    target: Vocabulary
    dropped: Mapping[str, Dropped]
    longest: int

    def report(self) -> str:
        """Returns a line for each split: what was kept, dropped, and is unknown."""
        return "\n".join(self._report(split) for split in self.splits)

    def _report(self, name: str) -> str:
        split, dropped = self.splits[name], self.dropped[name]
        parts = [f"{name}: {len(split.sources):,} pairs"]
        if dropped.empty:
            parts.append(f"dropped {_count(dropped.empty)} with an empty sentence")
        if dropped.long:
            over = f"with a sentence of over {self.longest} tokens"
            parts.append(f"dropped {_count(dropped.long)} {over}")
        source = dropped.unknown[0] / split.source_length.sum()
        target = dropped.unknown[1] / split.target_length.sum()
        parts.append(f"unknown tokens {source:.2%} of sources, {target:.2%} of targets")
        return "; ".join(parts)


def _count(lines: Sequence[int]) -> str:
    """Returns "3 (lines 5, 17, …)"."""
    shown = ", ".join(map(str, lines[:3])) + (", …" if len(lines) > 3 else "")
    return f"{len(lines):,} (line{'s' if len(lines) > 1 else ''} {shown})"


@functools.lru_cache(maxsize=4)
def read_pairs(chosen: PairsConfig) -> Pairs:
    """Returns the pairs of a config; the vocabularies are those of the training split.

    Pairs with an empty or too long sentence are left out and counted (`Pairs.report`).

    Raises:
      UserError: if a file is missing, unreadable, or not paired with its partner, if
        the vocabulary has an impossible size, or if nothing is left.
    """
    languages = (chosen.source, chosen.target)
    if chosen.path:
        texts = from_folder(chosen.path, languages)
    elif sorted(languages) == sorted(EMBEDDED):
        step = 1 if languages == EMBEDDED else -1
        texts = {name: [pair[::step] for pair in x] for name, x in tatoeba().items()}
    else:
        raise UserError(
            f"--config.data.source={chosen.source} and "
            f"--config.data.target={chosen.target}: the embedded languages are en and "
            "fr; give the folder of others by --config.data.path"
        )
    numbered = {
        name: [
            (line, *(normalise(text, chosen.lower) for text in pair))
            for line, pair in enumerate(pairs, 1)
        ]
        for name, pairs in texts.items()
    }
    numbered["train"] = _some(numbered["train"], chosen.pairs)
    source, target = (
        _vocabulary(chosen, language, [pair[side] for pair in numbered["train"]])
        for side, language in enumerate(languages, 1)
    )
    splits, dropped = {}, {}
    for name, pairs in numbered.items():
        splits[name], dropped[name] = _encode(pairs, source, target, chosen.longest)
        if not splits[name].sources:
            raise UserError(
                f"{chosen.path or 'the embedded pairs'}: no pair of {name} has two "
                f"sentences of at most --config.data.longest={chosen.longest} tokens"
            )
    return Pairs(splits, source, target, dropped, chosen.longest)


@functools.cache
def report_once(chosen: PairsConfig) -> None:
    """Prints on standard error, once in a process, what `Pairs.report` says."""
    print(read_pairs(chosen).report(), file=sys.stderr)


@functools.cache
def tatoeba() -> dict[str, list[tuple[str, str]]]:
    """Returns the embedded pairs of each split, English first."""
    text = lzma.decompress((FOLDER / "pairs.tsv.xz").read_bytes()).decode()
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for line in text.splitlines():
        split, english, french = line.split("\t")
        pairs[split].append((english, french))
    return pairs


def from_folder(
    path: str, languages: tuple[str, str]
) -> dict[str, list[tuple[str, str]]]:
    """Returns the pairs of each split, line by line, the empty ones too.

    Raises:
      UserError: if a file is missing, cannot be read, or has another number of lines
        than its partner.
    """
    folder = pathlib.Path(path).expanduser()
    pairs = {}
    for split in SPLITS:
        files = [_find(folder, split, language) for language in languages]
        first, second = map(_lines, files)
        if len(first) != len(second):
            raise UserError(
                f"{files[0]} has {len(first):,} lines and {files[1].name} "
                f"{len(second):,}, so line {min(len(first), len(second)) + 1:,} has no "
                "partner: each line must be the translation of the other's"
            )
        pairs[split] = list(zip(first, second, strict=True))
    return pairs


def _find(folder: pathlib.Path, split: str, language: str) -> pathlib.Path:
    names = [f"{stem}.{language}{end}" for stem in _STEMS[split] for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"--config.data.path={folder}: found none of {', '.join(names)} in it"
    )


def _lines(file: pathlib.Path) -> list[str]:
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(line.decode())
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}, line {number:,}: expected text in UTF-8 ({error.reason} at "
                f"byte {error.start + 1})"
            ) from None
    return decoded


def _some(pairs: list, count: int) -> list:
    """Returns `count` pairs chosen at random, more of them containing the fewer."""
    if not count or count >= len(pairs):
        return pairs
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[i] for i in sorted(order[:count])]


def _vocabulary(chosen: PairsConfig, language: str, lines: list[str]) -> Vocabulary:
    try:
        return Vocabulary.train(
            lines,
            chosen.vocabulary,
            chosen.unit,
            language=language,
            lower=chosen.lower,
        )
    except ValueError as error:
        raise UserError(
            f"--config.data.vocabulary={chosen.vocabulary}: {error} ({language}, "
            f"{len(lines):,} lines)"
        ) from None


def _encode(
    pairs: Sequence[tuple[int, str, str]],
    source: Vocabulary,
    target: Vocabulary,
    longest: int,
) -> tuple[Split, Dropped]:
    """Returns the pairs as numbers, and what was left out of them."""
    kept, texts, empty, long = ([], []), ([], []), [], []
    for line, *pair in pairs:
        if not all(pair):
            empty.append(line)
            continue
        tokens = [
            [*vocabulary.encode(text), END]
            for vocabulary, text in zip((source, target), pair, strict=True)
        ]
        if max(map(len, tokens)) > longest:
            long.append(line)
            continue
        for side in range(2):
            kept[side].append(tokens[side])
            texts[side].append(pair[side])
    arrays = [x for side in kept for x in _padded(side, longest)]
    unknown = tuple(int((x == UNKNOWN).sum()) for x in arrays[::2])
    split = Split(*arrays, *map(tuple, texts))
    return split, Dropped(tuple(empty), tuple(long), unknown)


def _padded(
    sentences: Sequence[Sequence[int]], longest: int
) -> tuple[Int[np.ndarray, "pairs longest"], Int[np.ndarray, " pairs"]]:
    lengths = np.array([len(tokens) for tokens in sentences], np.int32)
    padded = np.full((len(sentences), longest), PAD, np.int32)
    tokens = np.fromiter(itertools.chain.from_iterable(sentences), np.int32)
    padded[np.arange(longest) < lengths[:, None]] = tokens
    return padded, lengths
