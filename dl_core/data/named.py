"""Batches of a data set by its name: kept in memory where it fits, else streamed."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dl_core.data.batches import InMemory, Prepare, Streamed
from dl_core.data.folders import resolve
from dl_core.data.memory import load
from dl_core.data.source import Source, decoded_bytes, open_source, prepared_folder
from dl_core.errors import UserError

_FITS = 2**31
"""Bytes, decoded, up to which a split is kept in memory."""
_PACKED = 64
"""How many times smaller than decoded a data set on disk is at the most."""

Shapes = Mapping[str, tuple[int, ...]]


def named_batches(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None,
    batch_size: int,
    shapes: Shapes,
    prepare: Prepare | None = None,
    *,
    fits: int = _FITS,
) -> InMemory | Streamed:
    """Returns batches of a split of a data set, which is prepared first if it is not.

    Args:
      name: a TFDS name.
      split: one of its splits, or a slice of one.
      data_dir: the root of the prepared data sets.
      batch_size: examples in a batch.
      shapes: the fields to read, and the shape that each must have.
      prepare: traced `(config, batch, key) -> batch`, run in the compiled step.
      fits: bytes, decoded, up to which the split is kept in memory.

    Raises:
      UserError: if there is no such data set or split, it cannot be prepared, or its
        examples lack a field or have another shape.
    """
    folder = prepared_folder(name, resolve(data_dir), offline=False)
    on_disk = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if on_disk * _PACKED > fits:  # It may be too large; a look at examples tells.
        source = open_source(name, split, data_dir)
        if decoded_bytes(source) > fits:
            _require(shapes, source.examples(np.array([0]))[0], name)
            chosen = Source(source.folder, split, name, _Choose(tuple(shapes)))
            return Streamed(
                chosen,
                batch_size,
                prepare,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
    arrays = load(name, split, data_dir)
    _require(shapes, {field: array[0] for field, array in arrays.items()}, name)
    return InMemory({field: arrays[field] for field in shapes}, batch_size, prepare)


class _Choose:
    """Leaves only some fields of an example; can be sent to worker processes."""

    def __init__(self, fields: tuple[str, ...]):
        self._fields = fields

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return {field: example[field] for field in self._fields}


def _require(shapes: Shapes, example: Mapping[str, Any], name: str) -> None:
    found = {field: np.shape(value) for field, value in example.items()}
    if any(found.get(field) != shape for field, shape in shapes.items()):
        raise UserError(
            f"the data set {name!r} does not fit: expected examples with "
            f"{_words(shapes)}, found {_words(found)}"
        )


def _words(shapes: Shapes) -> str:
    def size(shape: tuple[int, ...]) -> str:
        return "×".join(map(str, shape)) or "a number"

    return ", ".join(f"{field} ({size(shape)})" for field, shape in shapes.items())
