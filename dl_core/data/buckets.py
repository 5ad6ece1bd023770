"""Sequences of unlike lengths: batches of similar ones, short programs, packing.

A batch is as slow as its longest sequence. `Bucketed` makes batches of sequences of
similar lengths, and `at_length` computes on no more positions than a batch needs, in
one compiled program. `pack` lays sequences end to end instead.
"""

import bisect
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from dl_core.data.batches import Gather, Prepare, padded_order
from dl_core.errors import UserError

T = TypeVar("T")


class Bucketed:
    """Examples in memory, in batches whose sequences have similar lengths.

    Bucket b holds the examples longer than `edges[b - 1]` and at most `edges[b]`. Each
    epoch the examples are shuffled, sorted by bucket and cut into batches, which come
    in random order. So every example is read once an epoch; where a bucket does not
    fill its last batch, examples of the next one do, and that batch counts as one of
    the longer bucket; the very last batch is filled by some of its bucket again.

    Which bucket a step has does not depend on the seed, so runs that are stacked for a
    sweep (`at_length`) have the same. A batch has the given fields, and `bucket`, the
    same number in every row.
    """

    def __init__(
        self,
        arrays: Mapping[str, Shaped[np.ndarray, "examples ..."]],
        lengths: Int[np.ndarray, " examples"],
        edges: Sequence[int],
        batch_size: int,
        prepare: Prepare | None = None,
    ):
        """Args:
        arrays: the examples, field by field.
        lengths: positions that each needs: of the longest of its sequences.
        edges: the buckets' longest lengths, ascending.
        batch_size: examples in a batch.
        prepare: traced `(config, batch, key) -> batch`, run in the compiled step.

        Raises:
          UserError: if there are no examples.
          ValueError: if the edges do not ascend, or an example is longer than all.
        """
        self.resident = dict(arrays)
        self.batch_size = batch_size
        self.assemble = _Gather(prepare)
        self.size = len(lengths)
        if not self.size:
            raise UserError("the data set holds no examples")
        if list(edges) != sorted(set(edges)):
            raise ValueError(f"the edges {tuple(edges)} do not ascend")
        if lengths.max() > edges[-1]:
            raise ValueError(
                f"example {int(lengths.argmax())} has length {lengths.max()}, "
                f"more than the last edge, {edges[-1]}"
            )
        self._buckets = np.searchsorted(edges, lengths).astype(np.int32)
        self._sorted = np.argsort(self._buckets, kind="stable")
        last_of_batch = np.arange(
            batch_size - 1, self.size + batch_size - 1, batch_size
        )
        ends = self._sorted[np.minimum(last_of_batch, self.size - 1)]
        self._bucket_of_batch = self._buckets[ends]
        self._epoch = functools.lru_cache(maxsize=64)(self._cut_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every example is read once."""
        return len(self._bucket_of_batch)

    def train_inputs(self, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Returns the indices and buckets of `count` batches from step `first` on."""
        places = [divmod(s, self.steps_per_epoch) for s in range(first, first + count)]
        batches = [_order(epoch, self.steps_per_epoch)[i] for epoch, i in places]
        indices = [
            self._epoch(seed, epoch)[batch]
            for (epoch, _), batch in zip(places, batches, strict=True)
        ]
        return {"indices": np.stack(indices), "bucket": self._bucket_of_batch[batches]}

    def eval_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the indices of each evaluation batch, its bucket, and the mask.

        The batches hold the examples by bucket, and in their own order within.
        """
        order = padded_order(self.size, self.batch_size)
        for bucket, (places, mask) in zip(self._bucket_of_batch, order, strict=True):
            indices = self._sorted[places].astype(np.int32)
            yield {"indices": indices, "bucket": bucket, "mask": mask}

    def close(self) -> None:
        """Does nothing: nothing is read ahead."""

    def _cut_epoch(self, seed: int, epoch: int) -> Int[np.ndarray, "batches batch"]:
        shuffled = np.random.default_rng([seed, epoch]).permutation(self.size)
        by_bucket = shuffled[np.argsort(self._buckets[shuffled], kind="stable")]
        missing = self.steps_per_epoch * self.batch_size - self.size
        longest = by_bucket[self._buckets[by_bucket] == self._buckets[by_bucket[-1]]]
        filled = np.concatenate([by_bucket, np.resize(longest, missing)])
        return filled.reshape(-1, self.batch_size).astype(np.int32)


@functools.lru_cache(maxsize=64)
def _order(epoch: int, count: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng([0xB0CE7, epoch]).permutation(count)


class _Gather(Gather):
    """Gathers the examples of a batch and says in every row which bucket it is."""

    def gather(self, resident, inputs):
        bucket = jnp.full(inputs["indices"].shape, inputs["bucket"])
        return {**super().gather(resident, inputs), "bucket": bucket}


def at_length(
    function: Callable[[dict[str, Array]], T],
    edges: Sequence[int],
    bucket: Int[Array, "*_"],
    batch: Mapping[str, Shaped[Array, "rows ..."]],
) -> T:
    """Returns `function` of a batch cut to the positions that its bucket needs.

    One program holds a branch for each edge, and runs one of them. So it does under
    `vmap` as well, over runs of one sweep: that of the longest bucket among them. Every
    edge is compiled, and gradients taken outside of `function` carry zeros for the
    branches that did not run: `jax.value_and_grad` is best called inside it.

    Args:
      function: traced `batch -> result`, of one shape whatever the positions, and the
        same whether or not padding follows the sequences.
      edges: the buckets' longest lengths, ascending.
      bucket: which edge; a number, or the same one in every row.
      batch: arrays of rows by `edges[-1]` positions (and more axes), which are cut, and
        arrays of rows alone, which are not.

    Raises:
      ValueError: if an array has another number of positions.
    """
    for name, x in batch.items():
        if x.ndim > 1 and x.shape[1] != edges[-1]:
            raise ValueError(
                f"{name} has shape {x.shape}: expected {edges[-1]} positions, the last "
                f"of the edges {tuple(edges)}"
            )

    def on_cut(length: int, batch: dict[str, Array]) -> T:
        return function(
            {name: x[:, :length] if x.ndim > 1 else x for name, x in batch.items()}
        )

    branches = [functools.partial(on_cut, length) for length in edges]
    index = _common(jnp.asarray(bucket).ravel()[0])
    return jax.lax.switch(index, branches, dict(batch))


@jax.custom_batching.custom_vmap
def _common(index: Int[Array, ""]) -> Int[Array, ""]:
    """Returns an index, the largest where there are several under `vmap`."""
    return index


@_common.def_vmap
def _largest(axis_size, in_batched, index):
    # A switch between branches by several indices at once would run them all.
    return _common(index.max(0)), False


class Packed(NamedTuple):
    """Sequences laid end to end in rows of one length."""

    tokens: Int[np.ndarray, "rows length"]
    """0 where a row is not full."""
    segments: Int[np.ndarray, "rows length"]
    """Which of the row's sequences, from 1 on, a token is of; 0 where there is none."""
    positions: Int[np.ndarray, "rows length"]
    """The token's place in its sequence, from 0 on."""


def pack(sequences: Sequence[Sequence[int]], length: int) -> Packed:
    """Packs whole sequences into few rows: the longest first, each where it fits best.

    Args:
      sequences: tokens.
      length: of a row.

    Raises:
      ValueError: if a sequence is longer than a row.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    if order and len(sequences[order[0]]) > length:
        raise ValueError(
            f"sequence {order[0]} has {len(sequences[order[0]])} tokens, more than a "
            f"row's {length}"
        )
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (free places, row), ascending.
    for number in order:
        size = len(sequences[number])
        place = bisect.bisect_left(open_rows, (size, 0))
        if place == len(open_rows):
            rows.append([])
            free, row = length, len(rows) - 1
        else:
            free, row = open_rows.pop(place)
        rows[row].append(number)
        bisect.insort(open_rows, (free - size, row))
    packed = Packed(*np.zeros((3, len(rows), length), np.int32))
    for row, numbers in enumerate(rows):
        start = 0
        for segment, number in enumerate(numbers, 1):
            stop = start + len(sequences[number])
            packed.tokens[row, start:stop] = sequences[number]
            packed.segments[row, start:stop] = segment
            packed.positions[row, start:stop] = np.arange(stop - start)
            start = stop
    return packed


def segment_mask(
    segments: Int[Array, "rows length"],
) -> Bool[Array, "rows 1 length length"]:
    """Returns the attention mask of packed rows: a token sees its own sequence only."""
    same = segments[:, :, None] == segments[:, None, :]
    return (same & (segments > 0)[:, None, :])[:, None]


def restarting(segments: Int[Array, "rows length"]) -> Int[Array, "rows length"]:
    """Returns the places of packed tokens, from 0 on in each sequence (`Packed`)."""
    places = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    begun = jnp.where(segments != before, places, 0)
    return places - jax.lax.cummax(begun, axis=1)
