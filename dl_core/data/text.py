"""Texts as numbered characters or words, and the windows in which they are read.

`shakespeare_small` ships with the project and is read without importing TFDS. The Penn
Treebank as Mikolov et al. (2010) prepared it is read from its three files of words; its
characters are those of each line without the space at both ends, spaces written as _,
and the line's end. No other character or word counts as a token.
"""

import collections
import dataclasses
import functools
import lzma
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from dl_core.config import config, static
from dl_core.errors import UserError

FOLDER = pathlib.Path(__file__).with_name("shakespeare_small")
SPLITS = ("train", "validation", "test")
END = "\n"
"""The token at the end of a line."""
UNKNOWN = "<unk>"
"""The token for those that are not in the vocabulary."""

_FILES = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")


@config
class TextConfig:
    """Which text, and what a token is."""

    unit: Literal["characters", "words"] = static("characters", "What a token is.")
    path: str = static(
        "", f"Folder with {', '.join(_FILES)}; Shakespeare's plays without one."
    )
    vocabulary: int = static(
        2_000, "Most frequent words that are kept; others are <unk>.", at_least=2
    )

    @property
    def text(self) -> "Text":
        """The text, as `read_text` reads it."""
        names = [field.name for field in dataclasses.fields(TextConfig)]
        return read_text(TextConfig(**{name: getattr(self, name) for name in names}))


class Text(NamedTuple):
    """A text by split, its tokens as places in the vocabulary."""

    vocabulary: tuple[str, ...]
    """From the most frequent of the training split to the rarest."""
    tokens: Mapping[str, Int[np.ndarray, " tokens"]]
    separator: str
    """What stands between the tokens when they are written."""

    @property
    def end(self) -> int:
        """The place of the token that ends a line."""
        return self.vocabulary.index(END)

    def decode(self, tokens: Int[np.ndarray, " tokens"]) -> str:
        """Returns tokens as they are written."""
        written = self.separator.join(self.vocabulary[token] for token in tokens)
        return written.replace(f"{END} ", END) if self.separator else written


@functools.lru_cache(maxsize=4)
def read_text(chosen: TextConfig) -> Text:
    """Returns a text; the vocabulary is that of its training split.

    Raises:
      UserError: if there is a path, but not the three files in it.
    """
    in_words = chosen.unit == "words"
    if chosen.path:
        texts = treebank(chosen.path)
        split_up = _treebank_words if in_words else _treebank_characters
    else:
        texts, split_up = shakespeare(), _words if in_words else list
    written = {split: split_up(text) for split, text in texts.items()}
    vocabulary = _vocabulary(written, chosen.vocabulary if in_words else None)
    places = {token: place for place, token in enumerate(vocabulary)}
    other = places.get(UNKNOWN)
    tokens = {
        split: np.array([places.get(token, other) for token in tokens], np.int32)
        for split, tokens in written.items()
    }
    return Text(vocabulary, tokens, " " if in_words else "")


def shakespeare() -> dict[str, str]:
    """Returns the embedded text, the splits 90, 5 and 5 % of its characters."""
    text = lzma.decompress((FOLDER / "input.txt.xz").read_bytes()).decode("ascii")
    first = int(0.9 * len(text))
    second = first + int(0.5 * (len(text) - first))
    return dict(
        zip(SPLITS, (text[:first], text[first:second], text[second:]), strict=True)
    )


def treebank(path: str) -> dict[str, str]:
    """Returns the Penn Treebank's files of words in a folder.

    Raises:
      UserError: if one of them is not there.
    """
    files = [pathlib.Path(path).expanduser() / name for name in _FILES]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"--config.data.path={path}: expected a folder with {', '.join(_FILES)}, "
            f"found no {missing[0]}"
        )
    texts = [file.read_text(encoding="utf-8") for file in files]
    return dict(zip(SPLITS, texts, strict=True))


def _words(text: str) -> list[str]:
    """Returns lower-case words, marks of punctuation and ends of lines."""
    return re.findall(r"\n|\w+(?:['-]\w+)*|[^\w\s]", text.lower())


def _treebank_characters(text: str) -> list[str]:
    lines = (line.strip().replace(" ", "_") for line in text.splitlines())
    return list("".join(line + END for line in lines))


def _treebank_words(text: str) -> list[str]:
    return [token for line in text.splitlines() for token in (*line.split(), END)]


def _vocabulary(written: Mapping[str, list[str]], limit: int | None) -> tuple[str, ...]:
    """Returns the commonest tokens of the training split, `UNKNOWN` where it is used.

    Args:
      written: the tokens by split.
      limit: the largest size; None for any.
    """
    counts = collections.Counter(written["train"])
    kept = [token for token, _ in counts.most_common(limit)]
    if set().union(*written.values()) <= set(kept) or UNKNOWN in kept:
        return tuple(kept)
    return (*kept[: None if limit is None else limit - 1], UNKNOWN)


class Windows:
    """A text as streams side by side, read window after window, epoch after epoch.

    The text is cut into as many streams of one length as a batch has rows. Step s reads
    window s of every stream (modulo their number), whatever the seed, so a recurrent
    network can carry its state from a step to the next. Every token is predicted once
    an epoch, the first one from the end of a line; where the last window of a stream,
    or the last stream, is longer than the text, `weight` is 0.

    A batch has the fields
      inputs   rows, context + length: tokens
      targets  rows, length: those after the last `length` inputs
      weight   rows, length: 1 for each target, or 0
      first    rows: whether it is the first window of the streams
    """

    def __init__(
        self,
        tokens: Int[np.ndarray, " tokens"],
        end: int,
        batch_size: int,
        length: int,
        context: int = 0,
    ):
        """Args:
        tokens: the text.
        end: stands before the text.
        batch_size: streams.
        length: targets in a window.
        context: inputs before those, the end of the window before (in the first window
          that of the stream before), from which nothing is predicted.
        """
        before = np.full(context + 1, end, np.int32)
        self.resident = {"tokens": np.concatenate([before, tokens])}
        self.batch_size = batch_size
        self.assemble = _Cut(len(tokens), batch_size, length, context)
        self.count = -(-self.assemble.stream // length)

    def train_inputs(self, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Returns the numbers of the windows of `count` steps from step `first` on."""
        steps = np.arange(first, first + count)
        return {"window": (steps % self.count).astype(np.int32)}

    def eval_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the number of each window; `weight` is the mask."""
        for window in range(self.count):
            yield {"window": np.int32(window)}

    def close(self) -> None:
        """Does nothing: nothing is read ahead."""


@dataclasses.dataclass(frozen=True)
class _Cut:
    """Cuts one window out of every stream."""

    size: int
    streams: int
    length: int
    context: int

    @property
    def stream(self) -> int:
        return -(-self.size // self.streams)

    def __call__(
        self,
        config: Any,
        resident: dict[str, Array],
        inputs: dict[str, Array],
        key: Any,
    ) -> dict[str, Array]:
        tokens, window = resident["tokens"], inputs["window"]
        in_stream = window * self.length + jnp.arange(-self.context, self.length)
        in_text = in_stream + self.stream * jnp.arange(self.streams)[:, None]
        places = jnp.minimum(in_text, self.size - 1) + self.context + 1
        real = (in_stream < self.stream) & (in_text < self.size)
        return {
            "inputs": tokens[places - 1],
            "targets": tokens[places[:, self.context :]],
            "weight": real[:, self.context :].astype(jnp.float32),
            "first": jnp.full(self.streams, window == 0),
        }
