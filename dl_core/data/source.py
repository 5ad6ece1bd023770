"""Reading the examples of a prepared data set at random."""

import dataclasses
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from dl_core.data.folders import EMBEDDED, examples, find, parse, resolve
from dl_core.data.images import image_decoders
from dl_core.data.prepare import prepare
from dl_core.errors import UserError, nearest

Transform = Callable[[dict[str, Any]], dict[str, Any]]

_SAMPLE = 16


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of a split, read at random; made by `open_source`.

    It can be pickled (if `transform` can), and read by many threads at once.
    """

    folder: pathlib.Path
    """The prepared data set."""
    split: str
    """A TFDS split, `train` or `train[:90%]`."""
    name: str
    """The data set's TFDS name."""
    transform: Transform | None = None
    """Applied to each decoded example, which is nested as TFDS nests it."""

    def __len__(self) -> int:
        return len(_reader(self.folder, self.split))

    @property
    def features(self) -> Any:
        """What TFDS says of each field: shape, type, the names of classes."""
        return _builder(self.folder).info.features

    def examples(self, indices: Int[np.ndarray, " batch"]) -> list[dict[str, Any]]:
        """Reads, decodes and transforms some examples.

        Args:
          indices: positions in the split, from 0.

        Returns:
          An example each; the fields of nested ones are named `outer/inner`.

        Raises:
          IndexError: if a position lies outside the split.
        """
        positions = np.asarray(indices).tolist()
        if positions and not 0 <= min(positions) <= max(positions) < len(self):
            raise IndexError(
                f"{self.split} of {self.name} has examples 0 to {len(self) - 1}, not "
                f"{min(positions)} to {max(positions)}"
            )
        decoded = _reader(self.folder, self.split).__getitems__(positions)
        if self.transform is not None:
            decoded = map(self.transform, decoded)
        return [dict(_flat(example)) for example in decoded]

    def read(
        self, indices: Int[np.ndarray, " batch"]
    ) -> dict[str, Shaped[np.ndarray, "batch ..."]]:
        """Reads, decodes, transforms and stacks some examples.

        Args:
          indices: positions in the split, from 0; at least one.

        Returns:
          An array each field; texts are arrays of bytes, as wide as the longest.

        Raises:
          UserError: if a field's shape varies from example to example.
          IndexError: if a position lies outside the split.
        """
        rows = self.examples(indices)
        return {
            field: _stack([row[field] for row in rows], field, self)
            for field in rows[0]
        }


def open_source(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    *,
    offline: bool = False,
    transform: Transform | None = None,
) -> Source:
    """Opens a split of a data set, which is prepared first if it is not.

    Args:
      name: a TFDS name, `name[/config][:version]`.
      split: one of its splits, or a slice of one (`train[:90%]`), or a sum of these.
      data_dir: the root of the prepared data sets; `default_data_dir()` if None.
      offline: do not try the network.
      transform: applied to each decoded example.

    Raises:
      UserError: if there is no such data set or split, or it cannot be prepared.
    """
    folder = prepared_folder(name, resolve(data_dir), offline)
    source = Source(folder.resolve(), split, name, transform)
    try:
        len(source)
    except (KeyError, ValueError) as error:
        raise UserError(_bad_split(source, error)) from None
    return source


def decoded_bytes(source: Source) -> int:
    """Estimates what `source` takes when it is decoded into memory, from a sample."""
    count = len(source)
    sample = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int))
    rows = source.examples(sample)
    sizes = [np.asarray(value).nbytes for row in rows for value in _leaves(row)]
    return round(sum(sizes) / len(rows) * count)


def prepared_folder(name: str, root: pathlib.Path, offline: bool) -> pathlib.Path:
    """Returns the folder of a data set, which is prepared first if it is not.

    An embedded one is prepared silently, as it takes seconds.

    Args:
      name: a TFDS name.
      root: the root of the prepared data sets.
      offline: do not try the network.

    Raises:
      UserError: if it cannot be prepared.
    """
    folder = find(name, root)
    if folder is not None:
        return folder
    embedded = parse(name).dataset in EMBEDDED
    log = _silent if embedded else functools.partial(print, file=sys.stderr)
    return prepare(name, root, offline=offline, log=log)


def _silent(line: str) -> None:
    del line


# Kept open by process: a source is pickled afresh with every batch that a worker reads.
@functools.lru_cache(maxsize=32)
def _builder(folder: pathlib.Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder)


@functools.lru_cache(maxsize=64)
def _reader(folder: pathlib.Path, split: str) -> Any:
    builder = _builder(folder)
    decoders = image_decoders(builder.info.features)
    return builder.as_data_source(split, decoders=decoders)


def _bad_split(source: Source, error: Exception) -> str:
    known = examples(source.folder)
    names = [re.split(r"[\[\s]", part.strip())[0] for part in source.split.split("+")]
    listed = ", ".join(f"{name} ({count:,})" for name, count in known.items())
    for name in names:
        if name not in known and name != "all":
            return (
                f"{source.name!r} has no split {name!r} (it has {listed})"
                f"{nearest(name, known)}"
            )
    reason = str(error).partition("See format")[0].strip(" .\n")
    if "0 length" in reason:
        reason = "it holds no example"
    return (
        f"the split {source.split!r} of {source.name!r} ({listed}) cannot be read: "
        f"{reason}; write it as 'train', 'train[:90%]' or 'train[100:200]'"
    )


def _flat(example: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in example.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _leaves(row: Mapping[str, Any]) -> Iterator[Any]:
    for value in row.values():
        yield from value if isinstance(value, list) else [value]


def _stack(values: list[Any], field: str, source: Source) -> np.ndarray:
    try:
        arrays = [_array(value) for value in values]
        if not any(array.dtype == object for array in arrays):
            return np.stack(arrays)
    except ValueError:
        pass
    raise UserError(varying(field, source))


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    # TFDS gives a tensor of texts as an array of objects.
    return np.asarray(array.tolist()) if array.dtype == object else array


def varying(field: str, source: Source) -> str:
    """Returns the sentence for a field whose examples cannot be stacked."""
    return (
        f"the shape of {field!r} varies among the examples of {source.name!r}, so they "
        "cannot be stacked: give a transform that makes it one shape, or leaves it out"
    )
