"""The five tasks on tapes, step by step in NumPy, and the n-grams' best estimator."""

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from dl_core.data import tapes
from dl_core.data.tapes import Task

generate = jax.jit(tapes.generate, static_argnums=(0, 4, 5))
best = jax.jit(tapes.bayes_optimal)


def tape_of(name, longest, size=None, seed=0, repeats=1, most_repeats=None):
    """Returns one tape as NumPy arrays (steps, channels)."""
    task = Task(name=name, longest=longest)
    size = longest if size is None else size
    sizes, times = np.array([[size], [repeats]])
    made = generate(task, jax.random.key(seed), sizes, times, longest, most_repeats)
    tape = {key: np.asarray(x[0]) for key, x in made.items()}
    length = tapes.steps(task, size, repeats)
    assert (tape["inputs"][length:] == 0).all()
    for key in ("targets", "weight"):
        assert (tape[key][length:] == 0).all()
    assert tape["weight"].sum() == tapes.said(task, size, repeats)
    assert (tape["targets"][tape["weight"] == 0] == 0).all()
    cut = (tape[key][:length] for key in ("inputs", "targets", "weight"))
    return task, *cut


@pytest.mark.parametrize("size", [1, 3, 5])
def test_copy(size):
    task, inputs, targets, weight = tape_of("copy", 5, size)
    assert (task.inputs, task.outputs) == (9, 8) == (inputs.shape[1], targets.shape[1])
    vectors = inputs[:size, :8]
    mark = np.eye(9)[8]
    np.testing.assert_array_equal(inputs[:size, 8], 0)
    np.testing.assert_array_equal(inputs[size], mark)
    np.testing.assert_array_equal(inputs[size + 1 :], 0)
    np.testing.assert_array_equal(targets, [*np.zeros((size + 1, 8)), *vectors])
    np.testing.assert_array_equal(weight, [0] * (size + 1) + [1] * size)


@pytest.mark.parametrize(("size", "repeats"), [(1, 1), (2, 3), (4, 4), (3, 6)])
def test_repeat_copy(size, repeats):
    made = tape_of("repeat_copy", 4, size, repeats=repeats, most_repeats=6)
    task, inputs, targets, weight = made
    assert (task.inputs, task.outputs) == (8, 7) == (inputs.shape[1], targets.shape[1])
    vectors = inputs[:size, :6]
    number = (repeats - np.mean([1, 2, 3, 4])) / np.std([1, 2, 3, 4])
    np.testing.assert_allclose(inputs[size], [0] * 6 + [1, number], rtol=1e-6)
    np.testing.assert_array_equal(inputs[:size, 6:], 0)
    np.testing.assert_array_equal(inputs[size + 1 :], 0)
    said = targets[weight == 1]
    np.testing.assert_array_equal(said[:-1, :6], np.tile(vectors, (repeats, 1)))
    np.testing.assert_array_equal(said[:, 6], [0] * (size * repeats) + [1])
    np.testing.assert_array_equal(said[-1, :6], 0)
    assert (np.flatnonzero(weight) == np.arange(size + 1, len(weight))).all()


def test_associative_recall_answers_with_the_item_after_the_one_asked_for():
    asked = set()
    for seed in range(20):
        task, inputs, targets, weight = tape_of("associative_recall", 6, 4, seed)
        assert (task.inputs, task.outputs) == (8, 6)
        begins, around = inputs[:, 6], inputs[:, 7]
        np.testing.assert_array_equal(np.flatnonzero(begins), [0, 4, 8, 12])
        np.testing.assert_array_equal(np.flatnonzero(around), [16, 20])
        assert (inputs[(begins + around) > 0, :6] == 0).all()
        items = [inputs[4 * i + 1 : 4 * i + 4, :6].tolist() for i in range(4)]
        query = items.index(inputs[17:20, :6].tolist())
        asked.add(query)
        np.testing.assert_array_equal(np.flatnonzero(weight), [21, 22, 23])
        assert targets[21:].tolist() == items[query + 1]
        assert (inputs[21:] == 0).all()
    assert asked == {0, 1, 2}


def test_priority_sort_says_four_of_five_vectors_the_highest_priority_first():
    task, inputs, targets, weight = tape_of("priority_sort", 20)
    assert (task.inputs, task.outputs) == (10, 8)
    priorities = inputs[:20, 8]
    assert priorities.min() >= -1
    assert priorities.max() < 1
    order = sorted(range(20), key=lambda i: priorities[i], reverse=True)[:16]
    np.testing.assert_array_equal(targets[weight == 1], inputs[order, :8])
    np.testing.assert_array_equal(np.flatnonzero(weight), np.arange(21, 37))
    np.testing.assert_array_equal(np.flatnonzero(inputs[:, 9]), [20])


def test_ngrams_ask_for_the_next_bit_from_the_fifth_on():
    task, inputs, targets, weight = tape_of("ngrams", 60)
    assert (task.inputs, task.outputs) == (1, 1)
    assert len(inputs) == 59
    np.testing.assert_array_equal(np.flatnonzero(weight), np.arange(4, 59))
    np.testing.assert_array_equal(targets[4:-1], inputs[5:])


def test_ngrams_have_a_chance_for_each_context_drawn_from_a_beta_distribution():
    task, sizes = Task(name="ngrams", longest=2_000), np.full(64, 2_000)
    made = generate(task, jax.random.key(0), sizes, sizes, 2_000, None)
    shares = []
    for inputs, targets in zip(made["inputs"], made["targets"], strict=True):
        bits = np.concatenate([inputs, targets[-1:]])[:, 0].astype(int)
        contexts = np.convolve(bits, 2 ** np.arange(5), "valid")[:-1]
        seen = np.bincount(contexts, minlength=32)
        ones = np.bincount(contexts, bits[5:], 32)
        shares.extend((ones / np.maximum(seen, 1))[seen >= 100])
    # Beta(1/2, 1/2) is near 0 or 1 more often than not.
    assert stats.kstest(shares, stats.beta(0.5, 0.5).cdf).pvalue > 0.01
    assert stats.kstest(shares, stats.uniform.cdf).pvalue < 1e-4


def test_the_best_estimator_is_the_mean_of_the_posterior():
    bits = (np.random.default_rng(0).random((1, 80)) < 0.7).astype(np.float32)
    chances = np.asarray(best(bits))[0]
    assert chances.shape == (76,)
    row = bits[0].astype(int).tolist()
    for i in (0, 3, 20, 75):
        context, ones, zeros = row[i : i + 5], 0, 0
        for j in range(i):
            if row[j : j + 5] == context:
                ones, zeros = ones + row[j + 5], zeros + 1 - row[j + 5]

        def likelihood(a, ones=ones, zeros=zeros):
            # With the chance sin²(a), Beta(1/2, 1/2) is uniform in a.
            return np.sin(a) ** (2 * ones) * np.cos(a) ** (2 * zeros)

        whole = integrate.quad(likelihood, 0, np.pi / 2)[0]
        mean = integrate.quad(lambda a: np.sin(a) ** 2 * likelihood(a), 0, np.pi / 2)[0]
        assert chances[i] == pytest.approx(mean / whole, rel=1e-5)


def test_the_best_estimator_costs_what_its_chances_do():
    task = Task(name="ngrams", longest=200)
    sizes = np.full(50, 200)
    made = generate(task, jax.random.key(1), sizes, sizes, 200, None)
    cost = np.asarray(jax.jit(tapes.bayes_bits)(made))
    said = np.asarray(made["targets"][:, 4:, 0], int)
    chances = np.asarray(best(made["inputs"][..., 0]), float)
    by_hand = -stats.bernoulli.logpmf(said, chances).sum(1) / np.log(2)
    np.testing.assert_allclose(cost, by_hand, rtol=1e-5)
    assert 120 < cost.mean() < 150


@pytest.mark.parametrize(
    ("name", "sizes", "last"),
    [
        ("copy", (1, 20), 41),
        ("repeat_copy", (1, 10), 112),
        ("associative_recall", (2, 6), 32),
        ("ngrams", (200, 200), 199),
        ("priority_sort", (20, 20), 37),
    ],
)
def test_a_batch_is_of_one_size_and_its_bucket_is_the_shortest_that_holds_it(
    name, sizes, last
):
    task = Task(name=name)
    assert task.sizes == sizes
    assert task.edges[-1] == last
    draw = jax.jit(lambda key: tapes.draw(task, key, 3))
    seen = set()
    for seed in range(12):
        batch = jax.tree.map(np.asarray, draw(jax.random.key(seed)))
        (size,) = set(batch["size"])
        seen.add(size)
        assert sizes[0] <= size <= sizes[1]
        assert batch["inputs"].shape == (3, last, task.inputs)
        used = 1 + np.flatnonzero(batch["weight"].any(0))[-1]
        edges = [0, *task.edges]
        assert edges[batch["bucket"]] < used <= edges[batch["bucket"] + 1]
        assert len({x.tobytes() for x in batch["inputs"]}) > 1 or size == 1
    assert (len(seen) > 1) == (sizes[0] < sizes[1])
