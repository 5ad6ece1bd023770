"""Makes pairs.tsv.xz from the archive fra-eng.zip that manythings.org offers.

    (FOLDER / "pairs.tsv.xz").write_bytes(subset(pathlib.Path("fra-eng.zip")))

The archive's file fra.txt (that of 2017-09-29, 142,787 pairs) is cut down so:

- White space of any kind is one plain space, soft hyphens and spaces without width are
  left out, characters are composed (NFC), and ’ and ‘ are '. French has exactly one
  space before ! ? ; and : and inside « », where people type a narrow, an unbreakable,
  a plain one or none.
- Pairs with a sentence of more than `LONGEST` characters are left out.
- Sentences are the same if they differ in capitals, punctuation and spaces only. Each
  English sentence is kept once, with the first of its translations in the file.
- Test and validation hold sentences of each range of English words in equal numbers
  (`RANGES`, `TEST`, `VALIDATION`), those with the smallest SHA-256. No sentence of
  theirs, English or French, is in another split, or twice in their own.
- Training holds all that are left of at least 11 English words, and of the shorter ones
  those with the smallest SHA-256, so that it has `TRAIN` pairs in all.

In the file, a line is a split, an English and a French sentence, between tabs, sorted.
"""

import hashlib
import lzma
import pathlib
import re
import unicodedata
import zipfile

RANGES = ((1, 4), (5, 6), (7, 8), (9, 10), (11, 13), (14, 10_000))
"""Words of the English sentences in test and validation."""
TEST, VALIDATION = 240, 85
"""Sentences of each range."""
TRAIN = 38_000
LONGEST = 160

_LONG = 11
_INVISIBLE = str.maketrans("’‘", "''", "\u00ad\u200b")


def subset(archive: pathlib.Path) -> bytes:
    """Returns the content of pairs.tsv.xz; the same archive gives the same bytes.

    Args:
      archive: fra-eng.zip.
    """
    with zipfile.ZipFile(archive) as opened:
        text = opened.read("fra.txt").decode()
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        english, french = map(_plain, line.split("\t")[:2])
        pair = english, _french_spaces(french)
        if max(map(len, pair)) <= LONGEST:
            found.setdefault(key(english), pair)
    pairs = sorted(found.values(), key=lambda pair: _digest(pair[0]))
    splits, taken = {}, set()
    for split, count in (("test", TEST), ("validation", VALIDATION)):
        splits[split] = [
            pair
            for shortest, longest in RANGES
            for pair in _first(pairs, shortest, longest, count, taken)
        ]
    rest = [pair for pair in pairs if taken.isdisjoint(map(key, pair))]
    rest.sort(key=lambda pair: len(pair[0].split()) < _LONG)  # Stable.
    splits["train"] = rest[:TRAIN]
    lines = sorted(
        "\t".join((split, *pair)) for split in splits for pair in splits[split]
    )
    return lzma.compress("".join(f"{line}\n" for line in lines).encode(), preset=9)


def key(sentence: str) -> str:
    """Returns what sentences share that count as the same."""
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _first(
    pairs: list[tuple[str, str]],
    shortest: int,
    longest: int,
    count: int,
    taken: set[str],
) -> list[tuple[str, str]]:
    """Returns the first pairs of a range of words, and adds their keys to `taken`."""
    chosen = []
    for pair in pairs:
        fits = shortest <= len(pair[0].split()) <= longest
        if len(chosen) < count and fits and taken.isdisjoint(map(key, pair)):
            chosen.append(pair)
            taken.update(map(key, pair))
    return chosen


def _plain(sentence: str) -> str:
    sentence = unicodedata.normalize("NFC", sentence.translate(_INVISIBLE))
    return " ".join(sentence.split())


def _french_spaces(sentence: str) -> str:
    sentence = re.sub(r"(?<=[^\s!?;:])\s*([!?;]|:(?=\s|$))", r" \1", sentence)
    return re.sub(r"«\s*", "« ", re.sub(r"\s*»", " »", sentence))


def _digest(sentence: str) -> str:
    return hashlib.sha256(sentence.encode()).hexdigest()
