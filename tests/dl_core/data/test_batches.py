"""Batches: a step's data is a function of (seed, step), and every example counts."""

import collections
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.data.batches import Generated, InMemory, Streamed, order, padded_order
from dl_core.errors import UserError

SIZES = st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 40), st.integers(1, 60))
SIZE, BATCH = 23, 6
ARRAYS = {
    "image": np.arange(SIZE * 4, dtype=np.uint8).reshape(SIZE, 2, 2),
    "label": np.arange(SIZE, dtype=np.int32),
}


class Source:
    """The same examples, read from somewhere; picklable, and safe between threads."""

    def __len__(self):
        return SIZE

    def read(self, indices):
        return {name: x[indices] for name, x in ARRAYS.items()}


def blur(config, batch, key):
    image = batch["image"].astype(jnp.float32) * config
    if key is not None:
        image += jax.random.uniform(key, image.shape)
    return {**batch, "image": image}


def generate(config, key):
    return {"x": config + jax.random.normal(key, (BATCH, 2))}


def open_streamed(**options):
    return Streamed(Source(), BATCH, blur, **options)


@pytest.fixture
def streamed():
    batches = open_streamed(workers=3)
    yield batches
    batches.close()


def one_step(batches, inputs, config=2.0):
    """Assembles the batch of inputs that have a leading axis of one step."""
    key = jax.random.key(7)
    first = jax.tree.map(lambda x: x[0], inputs)
    return jax.device_get(batches.assemble(config, batches.resident, first, key))


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


# The order of training.


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 4))
def test_every_epoch_is_a_permutation(sizes, epochs):
    seed, size, batch_size = sizes
    steps = -(-epochs * size // batch_size)
    taken = order(seed, size, batch_size, 0, steps)
    assert taken.shape == (steps, batch_size)
    assert taken.dtype == np.int32
    flat = taken.ravel()
    for epoch in range(epochs):
        part = flat[epoch * size : (epoch + 1) * size]
        np.testing.assert_array_equal(np.sort(part), np.arange(size))


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(0, 50), st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_any_split_into_calls_gives_the_same_order(sizes, first, counts):
    whole = order(*sizes, first, sum(counts))
    parts, step = [], first
    for count in counts:
        parts.append(order(*sizes, step, count))
        step += count
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    one_by_one = [order(*sizes, s, 1)[0] for s in range(first, step)]
    np.testing.assert_array_equal(one_by_one, whole)


def test_epochs_and_seeds_differ():
    epochs = order(3, 50, 50, 0, 20)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert len({tuple(order(seed, 50, 50, 0, 1)[0]) for seed in range(20)}) == 20


def test_every_example_is_as_likely_at_any_place():
    firsts = [order(seed, 5, 5, 0, 1)[0, 0] for seed in range(1_000)]
    counts = np.bincount(firsts, minlength=5)
    # Five binomial standard deviations, sqrt(1000 · 0.2 · 0.8) each.
    assert np.abs(counts - 200).max() < 5 * np.sqrt(160)


# Evaluation.


@given(st.integers(1, 40), st.integers(1, 60))
def test_padded_order_holds_each_example_once(size, batch_size):
    counted = []
    for indices, mask in padded_order(size, batch_size):
        assert indices.shape == mask.shape == (batch_size,)
        assert set(np.unique(mask)) <= {0.0, 1.0}
        assert indices.min() >= 0
        assert indices.max() < size
        assert mask.any()
        counted.extend(indices[mask > 0])
    assert counted == list(range(size))


def evaluated(batches):
    """The labels that count, in the order of the evaluation."""
    labels = []
    for inputs in batches.eval_inputs():
        batch = batches.assemble(2.0, batches.resident, inputs, None)
        assert batch["image"].shape == (BATCH, 2, 2)
        mask = np.asarray(batch["mask"])
        images = np.asarray(batch["image"])[mask > 0]
        kept = np.asarray(batch["label"])[mask > 0]
        np.testing.assert_array_equal(images, 2.0 * ARRAYS["image"][kept])
        labels.extend(kept.tolist())
    return labels


@pytest.mark.parametrize("kind", ["memory", "threads", "processes"])
def test_evaluation_holds_each_example_once(kind):
    if kind == "memory":
        assert evaluated(InMemory(ARRAYS, BATCH, blur)) == list(range(SIZE))
        return
    batches = open_streamed(workers=2, processes=kind == "processes")
    assert evaluated(batches) == list(range(SIZE))
    assert evaluated(batches) == list(range(SIZE))
    batches.close()


# Training.


@pytest.mark.parametrize("processes", [False, True])
def test_streamed_batches_are_those_in_memory(processes):
    memory = InMemory(ARRAYS, BATCH, blur)
    streamed = open_streamed(workers=2, processes=processes)
    for step in (0, 1, 2, 7, 3, 0):  # A resumed run jumps.
        wanted = one_step(memory, memory.train_inputs(5, step, 1))
        assert_equal(one_step(streamed, streamed.train_inputs(5, step, 1)), wanted)
        chosen = order(5, SIZE, BATCH, step, 1)[0]
        np.testing.assert_array_equal(wanted["label"], chosen)
    streamed.close()


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([3, 4])), min_size=1),
    st.integers(0, 5),
)
def test_any_split_of_streamed_steps_is_the_same(first, calls, ahead):
    memory = InMemory(ARRAYS, BATCH)
    streamed = Streamed(Source(), BATCH, workers=2, ahead=ahead)
    steps = collections.Counter({3: first, 4: first})
    for count, seed in calls:  # Two runs that take turns.
        wanted = memory.train_inputs(seed, steps[seed], count)["indices"]
        found = streamed.train_inputs(seed, steps[seed], count)
        np.testing.assert_array_equal(found["label"], ARRAYS["label"][wanted])
        np.testing.assert_array_equal(found["image"], ARRAYS["image"][wanted])
        steps[seed] += count
    streamed.close()


def test_no_more_is_read_ahead_than_asked_for():
    reads = []

    class Counting(Source):
        def read(self, indices):
            reads.append(len(indices))
            return super().read(indices)

    streamed = Streamed(Counting(), BATCH, workers=1, ahead=2)
    for step in range(5):
        streamed.train_inputs(0, step, 1)
    streamed.close()
    assert 5 <= len(reads) <= 5 + 2


def test_streamed_closes_its_threads():
    before = set(threading.enumerate())
    batches = open_streamed(workers=2)
    batches.train_inputs(0, 0, 1)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("count", [2, 3])
def test_slices_of_processes_are_the_whole_batch(count):
    whole = InMemory(ARRAYS, BATCH).train_inputs(9, 4, 3)["indices"]
    slices = [
        Streamed(Source(), BATCH, workers=1, process_index=i, process_count=count)
        for i in range(count)
    ]
    parts = [batches.train_inputs(9, 4, 3)["label"] for batches in slices]
    assert [part.shape for part in parts] == [(3, BATCH // count)] * count
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    evaluations = zip(*(batches.eval_inputs() for batches in slices), strict=True)
    labels = []
    for inputs in evaluations:
        mask = np.concatenate([x["mask"] for x in inputs])
        labels.extend(np.concatenate([x["label"] for x in inputs])[mask > 0])
    assert labels == list(range(SIZE))
    for batches in slices:
        batches.close()


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"a batch of 6 .* over 4 processes"):
        Streamed(Source(), BATCH, process_count=4)


def test_no_examples_are_refused():
    with pytest.raises(UserError, match="no examples"):
        InMemory({"x": np.zeros((0, 3))}, 2)


def test_a_batch_may_be_larger_than_the_data():
    batches = InMemory(ARRAYS, 50)
    labels = one_step(batches, batches.train_inputs(0, 0, 1))["label"]
    np.testing.assert_array_equal(np.bincount(labels[:46], minlength=SIZE), 2)


def test_steps_are_stacked(streamed):
    for batches in (InMemory(ARRAYS, BATCH, blur), streamed):
        inputs = batches.train_inputs(1, 0, 2)
        assert {len(x) for x in jax.tree.leaves(inputs)} == {2}
        batch = one_step(batches, inputs)
        assert batch["image"].shape == (BATCH, 2, 2)
        assert "mask" not in batch


def test_errors_of_a_source_come_through():
    class Broken(Source):
        def read(self, indices):
            raise UserError("a file is damaged")

    batches = Streamed(Broken(), BATCH, workers=1)
    with pytest.raises(UserError, match="a file is damaged"):
        batches.train_inputs(0, 0, 1)
    batches.close()


# Generated batches.


def test_generated_batches_are_made_from_the_key():
    batches = Generated(generate, BATCH)
    inputs = jax.tree.map(lambda x: x[0], batches.train_inputs(0, 3, 1))
    for key in (jax.random.key(1), jax.random.key(2)):
        found = batches.assemble(10.0, batches.resident, inputs, key)
        assert_equal(jax.device_get(found), jax.device_get(generate(10.0, key)))


def test_generated_inputs_of_any_split_are_the_same():
    batches = Generated(generate, BATCH)
    whole = batches.train_inputs(0, 3, 5)
    parts = [batches.train_inputs(0, 3, 2), batches.train_inputs(0, 5, 3)]
    assert_equal(jax.tree.map(lambda *x: np.concatenate(x), *parts), whole)


def test_generated_evaluation_is_fixed_and_its_batches_differ():
    batches = Generated(generate, BATCH, eval_batches=3)
    sets = []
    for key in (None, jax.random.key(4)):
        found = [
            jax.device_get(batches.assemble(0.0, {}, inputs, key))
            for inputs in batches.eval_inputs()
        ]
        assert [batch["mask"].tolist() for batch in found] == [[1.0] * BATCH] * 3
        sets.append(np.stack([batch["x"] for batch in found]))
    np.testing.assert_array_equal(*sets)
    assert len(np.unique(sets[0])) == sets[0].size


def test_batches_of_equal_functions_share_a_program():
    one, other = InMemory(ARRAYS, BATCH, blur), InMemory(ARRAYS, BATCH, blur)
    assert one.assemble == other.assemble
    assert hash(one.assemble) == hash(other.assemble)
    assert one.assemble != InMemory(ARRAYS, BATCH).assemble
    assert one.assemble != open_streamed().assemble
    assert Generated(generate, 3).assemble == Generated(generate, 3).assemble
