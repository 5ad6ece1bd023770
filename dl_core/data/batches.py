"""Batches: what a step reads is a function of (seed, step), whatever happened before.

A batch is made in two halves. On the host, `train_inputs(seed, first, count)` gives the
little that the steps `first … first + count - 1` need: indices, or examples that were
read from disk. On the device, inside the compiled step, `assemble` turns one step's
inputs and the resident arrays into the batch. So a killed run sees the same data when
it resumes, with nothing to store but the step, and small data sets never leave the
device.

Evaluation gives every example exactly once: the last batch is padded, and `mask` says
which rows count.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from dl_core.errors import UserError

Batch = Mapping[str, Shaped[Array, "batch ..."]]
Prepare = Callable[[Any, Batch, Any], Batch]


class Batches(Protocol):
    """A source of training or evaluation batches."""

    batch_size: int
    resident: PyTree[np.ndarray]
    """Arrays that stay on the device during a run; the same for every seed."""
    assemble: Hashable
    """Traced `(config, resident, inputs, key) -> batch`; equal for equal programs."""

    def train_inputs(self, seed: int, first: int, count: int) -> PyTree[np.ndarray]:
        """Returns the host's part of `count` training batches, stacked."""

    def eval_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the host's part of each evaluation batch, `mask` included."""

    def close(self) -> None:
        """Lets go of threads and processes that read ahead."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What a stage reads: training batches, and evaluation sets by name."""

    train: Batches
    evaluation: Mapping[str, Batches]
    shown: Mapping[str, Shaped[np.ndarray, "shown ..."]] | None = None
    """Examples that `observe` is given, where it needs any."""


def order(
    seed: int, size: int, batch_size: int, first: int, count: int
) -> Int[np.ndarray, "count batch"]:
    """Returns the examples that `count` steps from step `first` on read.

    Epochs are permutations of all `size` examples, laid end to end, so every example
    is read exactly once an epoch even where the batch does not divide it.

    Args:
      seed: chooses the permutations.
      size: number of examples.
      batch_size: examples a step.
      first: the first step, from 0.
      count: number of steps.
    """
    start, stop = first * batch_size, (first + count) * batch_size
    taken = np.concatenate(
        [
            _permutation(seed, epoch, size)[
                max(start - epoch * size, 0) : stop - epoch * size
            ]
            for epoch in range(start // size, (stop - 1) // size + 1)
        ]
    )
    return taken.reshape(count, batch_size).astype(np.int32)


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def padded_order(
    size: int, batch_size: int
) -> Iterator[tuple[Int[np.ndarray, " batch"], Float[np.ndarray, " batch"]]]:
    """Yields (indices, mask) of batches that hold each of `size` examples once."""
    for start in range(0, size, batch_size):
        positions = np.arange(start, start + batch_size)
        mask = (positions < size).astype(np.float32)
        yield np.minimum(positions, size - 1).astype(np.int32), mask


@dataclasses.dataclass(frozen=True)
class _Finish:
    """Adds the mask where there is one and applies the experiment's `prepare`."""

    prepare: Prepare | None

    def __call__(self, config, resident, inputs, key):
        inputs = dict(inputs)
        batch = self.gather(resident, inputs)
        if self.prepare is not None:
            batch = self.prepare(config, batch, key)
        return {**batch, "mask": inputs["mask"]} if "mask" in inputs else batch

    def gather(self, resident, inputs):
        return {name: x for name, x in inputs.items() if name != "mask"}


class Gather(_Finish):
    """Gathers the rows of the resident arrays that the inputs' indices name."""

    def gather(self, resident, inputs):
        """Returns the fields of the batch."""
        return {name: x[inputs["indices"]] for name, x in resident.items()}


@dataclasses.dataclass(frozen=True)
class _Generate:
    generate: Callable[[Any, Any], Batch]

    def __call__(self, config, resident, inputs, key):
        if "mask" not in inputs:
            return self.generate(config, key)
        fixed = jax.random.fold_in(jax.random.key(0x5EED), inputs["number"])
        batch = self.generate(config, fixed)
        return {**batch, "mask": jnp.broadcast_to(inputs["mask"], _rows(batch))}


def _rows(batch: Batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


class InMemory:
    """Examples that fit in memory, kept on the device and gathered there."""

    def __init__(
        self,
        arrays: Mapping[str, Shaped[np.ndarray, "examples ..."]],
        batch_size: int,
        prepare: Prepare | None = None,
    ):
        """Args:
        arrays: the examples, field by field.
        batch_size: examples in a batch.
        prepare: traced `(config, batch, key) -> batch`, run in the compiled step
          (normalisation, augmentation); a module-level function.

        Raises:
          UserError: if a training batch would hold more than all examples.
        """
        self.resident = dict(arrays)
        self.batch_size = batch_size
        self.assemble = Gather(prepare)
        self.size = len(next(iter(self.resident.values())))
        if not self.size:
            raise UserError("the data set holds no examples")

    def train_inputs(self, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Returns the indices of `count` batches from step `first` on."""
        return {"indices": order(seed, self.size, self.batch_size, first, count)}

    def eval_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the indices of each evaluation batch, and the mask."""
        for indices, mask in padded_order(self.size, self.batch_size):
            yield {"indices": indices, "mask": mask}

    def close(self) -> None:
        """Does nothing: nothing is read ahead."""


class Generated:
    """Examples made on the device from a key: synthetic tasks of unlimited size.

    Evaluation generates `eval_batches` batches from keys of its own, the same for every
    seed and every run.
    """

    def __init__(
        self,
        generate: Callable[[Any, Any], Batch],
        batch_size: int,
        eval_batches: int = 1,
    ):
        """Args:
        generate: traced `(config, key) -> batch`; a module-level function.
        batch_size: examples in a batch that `generate` returns.
        eval_batches: batches in the evaluation set.
        """
        self.resident: dict[str, np.ndarray] = {}
        self.batch_size = batch_size
        self.assemble = _Generate(generate)
        self.eval_batches = eval_batches

    def train_inputs(self, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Returns the numbers of the steps."""
        return {"number": np.arange(first, first + count, dtype=np.int32)}

    def eval_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the number of each evaluation batch, and the mask."""
        for number in range(self.eval_batches):
            yield {"number": np.int32(number), "mask": np.float32(1)}

    def close(self) -> None:
        """Does nothing: nothing is read ahead."""


class Streamed:
    """Examples that do not fit in memory: read ahead of the step that needs them.

    Each process of a distributed run reads only its slice of every batch.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        prepare: Prepare | None = None,
        *,
        workers: int = 4,
        processes: bool = False,
        ahead: int = 4,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Args:
        source: has `len` and `read(indices) -> {field: array}`; picklable where
          `processes` is set.
        batch_size: examples in a batch, of all processes together.
        prepare: traced `(config, batch, key) -> batch`, as for `InMemory`.
        workers: threads, or worker processes, that read.
        processes: read in worker processes, for decoding that holds Python's lock.
        ahead: batches that are read ahead.
        process_index: which slice of each batch this process reads.
        process_count: number of slices.

        Raises:
          UserError: if the batch cannot be split evenly.
        """
        if batch_size % process_count:
            raise UserError(
                f"a batch of {batch_size} cannot be split over "
                f"{process_count} processes"
            )
        self.resident: dict[str, np.ndarray] = {}
        self.batch_size = batch_size
        self.assemble = _Finish(prepare)
        self._source = source
        self._ahead = ahead
        rows = batch_size // process_count
        self._slice = slice(process_index * rows, (process_index + 1) * rows)
        self._pool = _pool(source, workers, processes)
        self._reads: collections.OrderedDict = collections.OrderedDict()

    def train_inputs(self, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Returns the examples of `count` batches from step `first` on."""
        wanted = range(first, first + count)
        for step in range(first, first + count + self._ahead):
            if (seed, step) not in self._reads:
                (indices,) = order(seed, len(self._source), self.batch_size, step, 1)
                self._reads[seed, step] = self._submit(indices)
        rows = [self._reads.pop((seed, step)).result() for step in wanted]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def eval_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the examples of each evaluation batch, and the mask."""
        queue: collections.deque = collections.deque()
        for indices, mask in padded_order(len(self._source), self.batch_size):
            queue.append((self._submit(indices), mask[self._slice]))
            if len(queue) > self._ahead:
                yield _masked(*queue.popleft())
        while queue:
            yield _masked(*queue.popleft())

    def close(self) -> None:
        """Ends the reading threads or processes."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, indices: np.ndarray) -> concurrent.futures.Future:
        return self._pool.submit(_read, self._source, indices[self._slice])


def _masked(read: concurrent.futures.Future, mask: np.ndarray) -> dict[str, np.ndarray]:
    return {**read.result(), "mask": mask}


def _pool(source: Any, workers: int, processes: bool) -> concurrent.futures.Executor:
    if not processes:
        return concurrent.futures.ThreadPoolExecutor(workers)
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_ignore_accelerators
    )


def _ignore_accelerators() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"


def _read(source: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
    return source.read(indices)
