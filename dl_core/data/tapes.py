"""Five tasks on tapes of bits: copy, repeat copy, recall, dynamic n-grams, sort.

Graves, Wayne & Danihelka, "Neural Turing Machines", 2014 (arXiv:1410.5401), section 4.
A tape is read from its first step to its last; at the steps whose weight is 1 the bits
of the target are to be said. Of a tape whose size is below the task's longest, the rest
is zeros, without weight.

copy                `size` vectors, a mark; then the vectors again
repeat_copy         `size` vectors, a mark with the number of repeats beside it; then
                    the vectors that many times, and an end mark
associative_recall  `size` items of three vectors, a mark before each, then one of them
                    between two marks of another kind; then the item that followed it
ngrams              `size` bits whose chances are a table's, by the five bits before;
                    at each bit from the fifth on, the next one
priority_sort       `size` vectors, each with its priority, a mark; then the vectors of
                    the highest priorities, four of five, the highest first
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dl_core.config import config, static

Tape = dict[str, Float[Array, "..."]]
ITEM = 3
"""Vectors of an item of the recall."""
CONTEXT = 5
"""Bits that the chances of the next bit of the n-grams depend on."""
OF_ONE_SIZE = ("ngrams", "priority_sort")
"""Tasks whose tapes are all of the greatest size."""
TITLES = {
    "copy": "copy",
    "repeat_copy": "repeat copy",
    "associative_recall": "associative recall",
    "ngrams": "dynamic n-grams",
    "priority_sort": "priority sort",
}
"""What the tasks are called in figures."""
_WIDTHS = {
    "copy": 8,
    "repeat_copy": 6,
    "associative_recall": 6,
    "ngrams": 1,
    "priority_sort": 8,
}
_MARKS = {
    "copy": 1,
    "repeat_copy": 2,
    "associative_recall": 2,
    "ngrams": 0,
    "priority_sort": 2,
}
_SIZES = {
    "copy": (1, 20),
    "repeat_copy": (1, 10),
    "associative_recall": (2, 6),
    "ngrams": (1, 200),
    "priority_sort": (1, 20),
}


@config
class Task:
    """One of the five tasks, and how long its tapes are in training."""

    name: Literal[
        "copy", "repeat_copy", "associative_recall", "ngrams", "priority_sort"
    ] = static("copy", "Which task.")
    longest: int = static(
        0,
        "Greatest size in training: vectors, items of the recall, bits of the n-grams; "
        "0 for the paper's.",
        at_least=0,
    )
    buckets: int = static(
        3, "Lengths to which training tapes are cut, to save time.", at_least=1
    )

    @property
    def sizes(self) -> tuple[int, int]:
        """The least and the greatest size in training, all as likely."""
        least, most = _SIZES[self.name]
        longest = self.longest or most
        return (longest if self.name in OF_ONE_SIZE else least), longest

    @property
    def repeats(self) -> tuple[int, int]:
        """The least and the greatest number of repeats in training."""
        return 1, (self.sizes[1] if self.name == "repeat_copy" else 1)

    @property
    def inputs(self) -> int:
        """Numbers at a step of a tape: a vector's, and a channel for each mark."""
        return _WIDTHS[self.name] + _MARKS[self.name]

    @property
    def outputs(self) -> int:
        """Bits to be said at a step: a vector's, and the end mark of repeat copy."""
        return _WIDTHS[self.name] + (self.name == "repeat_copy")

    @property
    def edges(self) -> tuple[int, ...]:
        """Lengths in steps to which training tapes are cut, the last for all."""
        low, high = (
            steps(self, size, repeats)
            for size, repeats in zip(self.sizes, self.repeats, strict=True)
        )
        count = self.buckets
        cuts = {low + -(-(high - low) * (i + 1) // count) for i in range(count)}
        return tuple(sorted(cuts))

    def fault(self) -> str | None:
        """Returns what is wrong with the longest size, in words, or None."""
        least = {"associative_recall": 2, "ngrams": CONTEXT + 1, "priority_sort": 2}
        needed = least.get(self.name, 1)
        if self.sizes[1] >= needed:
            return None
        return f"{self.longest}: {self.name} needs at least {needed}"

    def expected(self, longer: tuple[int, ...]) -> str | None:
        """Returns what sizes beyond the training's must be, in words, or None."""
        if longer and self.name in OF_ONE_SIZE:
            return "to be empty"
        if longer and min(longer) < self.sizes[0]:
            return f"sizes of at least {self.sizes[0]}"
        return None


def steps(task: Task, size: int | Array, repeats: int | Array = 1) -> int | Array:
    """Returns the length of a tape of a size, in steps."""
    return {
        "copy": 2 * size + 1,
        "repeat_copy": size + 2 + size * repeats,
        "associative_recall": (ITEM + 1) * size + 2 * ITEM + 2,
        "ngrams": size - 1,
        "priority_sort": size + 1 + kept(size),
    }[task.name]


def said(task: Task, size: int, repeats: int = 1) -> int:
    """Returns at how many steps of a tape of a size bits are to be said."""
    return {
        "copy": size,
        "repeat_copy": size * repeats + 1,
        "associative_recall": ITEM,
        "ngrams": size - CONTEXT,
        "priority_sort": kept(size),
    }[task.name]


def kept(size: int | Array) -> int | Array:
    """Returns how many of the vectors of a sort are to be said: 16 of 20."""
    return size * 4 // 5


def draw(task: Task, key: Array, count: int) -> dict[str, Array]:
    """Makes a training batch: tapes of one size and one number of repeats, drawn.

    Args:
      task: which.
      key: random numbers.
      count: tapes.

    Returns:
      As `generate`, and "bucket" (): which of the task's edges the tapes end at or
      before.
    """
    for_size, for_repeats, for_tapes = jax.random.split(key, 3)
    size = _between(for_size, task.sizes)
    repeats = _between(for_repeats, task.repeats)
    sizes, times = jnp.full(count, size), jnp.full(count, repeats)
    tapes = generate(task, for_tapes, sizes, times)
    length = steps(task, size, repeats)
    bucket = jnp.searchsorted(jnp.array(task.edges), length)
    return tapes | {"bucket": bucket.astype(jnp.int32)}


def draw_mixed(task: Task, key: Array, count: int) -> dict[str, Array]:
    """Makes tapes, each of a size and a number of repeats of its own, as in training.

    Args and returns: as `draw`, but without "bucket".
    """
    for_size, for_repeats, for_tapes = jax.random.split(key, 3)
    sizes = _between(for_size, task.sizes, (count,))
    repeats = _between(for_repeats, task.repeats, (count,))
    return generate(task, for_tapes, sizes, repeats)


def _between(key: Array, bounds: tuple[int, int], shape: tuple[int, ...] = ()) -> Array:
    return jax.random.randint(key, shape, bounds[0], bounds[1] + 1)


def generate(
    task: Task,
    key: Array,
    sizes: Int[Array, " count"],
    repeats: Int[Array, " count"],
    longest: int | None = None,
    most_repeats: int | None = None,
) -> Tape:
    """Makes tapes of given sizes.

    Args:
      task: which.
      key: random numbers.
      sizes: at most `longest`; of n-grams and of the sort equal to it.
      repeats: at most `most_repeats`; of repeat copy alone.
      longest: size that the arrays have room for; the greatest of training where None.
      most_repeats: likewise.

    Returns:
      "inputs" (count, time, inputs), "targets" (count, time, outputs), bits; "weight"
      (count, time), 1 where the targets are to be said; "size" (count,).
    """
    longest = longest or task.sizes[1]
    most_repeats = most_repeats or task.repeats[1]
    length = steps(task, longest, most_repeats)
    keys = jax.random.split(key, len(sizes))
    make = {
        "copy": _copy,
        "repeat_copy": _repeat_copy,
        "associative_recall": _associative_recall,
        "ngrams": _ngrams,
        "priority_sort": _priority_sort,
    }[task.name]

    def one(key, size, times):
        inputs, targets, weight = make(task, key, size, times, longest, length)
        return {"inputs": inputs, "targets": targets, "weight": weight}

    return jax.vmap(one)(keys, sizes, repeats) | {"size": sizes}


def bayes_optimal(
    bits: Float[Array, "batch time"],
) -> Float[Array, "batch time-4"]:
    """Returns the chance of a 1 after each bit from the fifth on, by what came before.

    With chances drawn from Beta(½, ½) it is (N₁ + ½) / (N + 1), where of the N times
    that the last five bits stood before, N₁ were followed by a 1 (Murphy, 2012). No
    estimator has a smaller expected loss.

    Args:
      bits: of the n-grams.
    """
    contexts = jax.nn.one_hot(_contexts(bits), 2**CONTEXT)
    followed = contexts[:, :-1] * bits[:, CONTEXT:, None]

    def before(x):
        sums = jnp.cumsum(x, axis=1)
        return jnp.concatenate([jnp.zeros_like(sums[:, :1]), sums], axis=1)

    ones, seen = before(followed), before(contexts[:, :-1])
    return (((ones + 0.5) / (seen + 1)) * contexts).sum(-1)


def bayes_bits(tape: Tape) -> Float[Array, " count"]:
    """Returns the bits that `bayes_optimal` needs for n-grams that `generate` made."""
    chances = bayes_optimal(tape["inputs"][..., 0])
    said = tape["targets"][:, CONTEXT - 1 :, 0] > 0.5
    return -jnp.log2(jnp.where(said, chances, 1 - chances)).sum(1)


def _contexts(bits: Float[Array, "batch time"]) -> Int[Array, "batch time-4"]:
    """Returns the number that the last five bits are, the latest the least digit."""
    time = bits.shape[1] - CONTEXT + 1
    digits = [2 ** (CONTEXT - 1 - i) * bits[:, i : i + time] for i in range(CONTEXT)]
    return sum(digits).astype(jnp.int32)


def _copy(task, key, size, repeats, longest, length):
    vectors = _bits(key, longest, task)
    read, said = _at(vectors, 0, size, length), _at(vectors, size + 1, size, length)
    inputs = jnp.concatenate([read, _mark(size, length)], axis=1)
    return inputs, said, _span(size + 1, size, length)


def _repeat_copy(task, key, size, repeats, longest, length):
    vectors = _bits(key, longest, task)
    _, most = task.repeats
    # Of mean 0 and variance 1 over the training tapes, as in the paper.
    number = (repeats - (1 + most) / 2) / max((most**2 - 1) / 12, 1 / 12) ** 0.5
    mark = _mark(size, length)
    read = _at(vectors, 0, size, length)
    first, said = size + 1, size * repeats
    places = jnp.arange(length) - first
    copies = vectors[places % size] * _span(first, said, length)[:, None]
    targets = jnp.concatenate([copies, _mark(first + said, length)], axis=1)
    inputs = jnp.concatenate([read, mark, number * mark], axis=1)
    return inputs, targets, _span(first, said + 1, length)


def _associative_recall(task, key, size, repeats, longest, length):
    for_bits, for_query = jax.random.split(key)
    vectors = _bits(for_bits, ITEM * longest, task)
    asked = jax.random.randint(for_query, (), 0, size - 1)
    places, stride = jnp.arange(length), ITEM + 1
    listed = places < stride * size
    item, within = places // stride, places % stride - 1
    read = vectors[jnp.clip(ITEM * item + within, 0, ITEM * longest - 1)]
    read = read * (listed & (within >= 0))[:, None]
    end = stride * size
    query = jax.lax.dynamic_slice_in_dim(vectors, ITEM * asked, ITEM)
    answer = jax.lax.dynamic_slice_in_dim(vectors, ITEM * (asked + 1), ITEM)
    read += _at(query, end + 1, ITEM, length)
    begins = (listed & (within < 0)).astype(jnp.float32)[:, None]
    around = _mark(end, length) + _mark(end + ITEM + 1, length)
    inputs = jnp.concatenate([read, begins, around], axis=1)
    first = end + ITEM + 2
    return inputs, _at(answer, first, ITEM, length), _span(first, ITEM, length)


def _ngrams(task, key, size, repeats, longest, length):
    for_table, for_first, for_bits = jax.random.split(key, 3)
    # Beta(½, ½) is the arcsine law.
    table = jnp.sin(jnp.pi / 2 * jax.random.uniform(for_table, (2**CONTEXT,))) ** 2
    first = jax.random.bernoulli(for_first, 0.5, (CONTEXT,)).astype(jnp.int32)
    digits = 2 ** jnp.arange(CONTEXT)[::-1]

    def next_bit(context, uniform):
        bit = (uniform < table[context]).astype(jnp.int32)
        return (2 * context + bit) % 2**CONTEXT, bit

    uniforms = jax.random.uniform(for_bits, (longest - CONTEXT,))
    _, rest = jax.lax.scan(next_bit, (digits * first).sum(), uniforms)
    bits = jnp.concatenate([first, rest]).astype(jnp.float32)[:, None]
    weight = _span(CONTEXT - 1, length, length)
    return bits[:-1], bits[1:] * weight[:, None], weight


def _priority_sort(task, key, size, repeats, longest, length):
    for_bits, for_priorities = jax.random.split(key)
    vectors = _bits(for_bits, longest, task)
    priorities = jax.random.uniform(for_priorities, (longest,), minval=-1.0)
    ordered = vectors[jnp.argsort(-priorities)]
    read = _at(jnp.column_stack([vectors, priorities]), 0, size, length)
    inputs = jnp.concatenate([read, _mark(size, length)], axis=1)
    said = _at(ordered, size + 1, kept(size), length)
    return inputs, said, _span(size + 1, kept(size), length)


def _bits(key, count, task):
    shape = (count, _WIDTHS[task.name])
    return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)


def _at(vectors, first, count, length):
    """Returns zeros (length, width) with `count` of the vectors from step `first`."""
    places = jnp.arange(length) - first
    return vectors.at[places].get(mode="clip") * _span(first, count, length)[:, None]


def _span(first, count, length):
    """Returns 1 at `count` steps from step `first`, 0 elsewhere."""
    places = jnp.arange(length) - first
    return ((places >= 0) & (places < count)).astype(jnp.float32)


def _mark(step, length):
    """Returns a channel (length, 1) with 1 at one step."""
    return _span(step, 1, length)[:, None]
