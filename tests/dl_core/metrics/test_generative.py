"""The metric of experiments: its parts, and however it is split, padded or mapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.metrics.classifier_score import classifier_score
from dl_core.metrics.frechet import frechet_distance
from dl_core.metrics.generative import Generative
from dl_core.metrics.kernel import kernel_distance
from dl_core.metrics.moments import gaussian
from dl_core.metrics.precision_recall import precision_recall
from dl_core.train.loop import _compute
from dl_core.train.metrics import Mean

NAMES = [
    *("frechet", "kernel", "kernel_low", "kernel_high", "score", "score_real"),
    *("precision", "recall", "diversity", "collapsed"),
]


def outputs(seed, n=50, dims=6, classes=4, shift=0.0):
    random = np.random.default_rng(seed)
    drawn = shift + random.normal(size=(n, dims)), 3 * random.normal(size=(n, classes))
    return tuple(x.astype(np.float32) for x in drawn)


def whole(real, generated):
    real, generated = jax.tree.map(jnp.asarray, (real, generated))
    return Generative.of(real, generated, jnp.ones(len(real[0]))).compute()


def batches(real, generated, size):
    """Parts as a compiled evaluation returns them; padding is broken on purpose."""
    of, parts, count = jax.jit(Generative.of), [], len(real[0])
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        mask = (rows < count).astype(np.float32)
        padded = jax.tree.map(
            lambda x, rows=rows: np.where(
                rows[:, None] < count, x[np.minimum(rows, count - 1)], np.nan
            ),
            (real, generated),
        )
        parts.append(jax.device_get(of(*padded, mask)))
    return parts


def test_it_is_made_of_the_parts():
    real, generated = outputs(0), outputs(1, shift=0.5)
    found = whole(real, generated)
    assert list(found) == NAMES
    x, y = (np.float64(part[0]) for part in (real, generated))
    assert found["frechet"] == frechet_distance(*gaussian(x), *gaussian(y))
    kernel = kernel_distance(x, y)
    assert [found[f"kernel{name}"] for name in ("", "_low", "_high")] == [*kernel]
    assert found["score"] == classifier_score(generated[1])[0]
    assert found["score_real"] == classifier_score(real[1])[0]
    assert (found["precision"], found["recall"]) == precision_recall(x, y)
    assert found["collapsed"] == 0
    assert all(isinstance(value, float) for value in found.values())


@pytest.mark.parametrize("size", [7, 16, 64])
def test_batches_and_padding_change_nothing(size):
    real, generated = outputs(2), outputs(3, shift=0.2)
    parts = batches(real, generated, size)
    found = functools.reduce(lambda a, b: a.merge(b), parts).compute()
    assert found == pytest.approx(whole(real, generated), rel=1e-12)


def test_the_loop_writes_each_measure_of_a_mapped_evaluation():
    points = [(outputs(seed), outputs(seed + 1)) for seed in (4, 6)]
    real, generated = (
        jax.tree.map(lambda *xs: np.stack(xs), *(point[i] for point in points))
        for i in range(2)
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def evaluate(real, generated, mask):
        count = Mean.of(mask, mask)
        return {"quality": Generative.of(real, generated, mask), "one": count}

    parts = jax.device_get([evaluate(real, generated, jnp.ones(50))])
    for i, point in enumerate(points):
        mine = jax.tree.map(lambda x, i=i: x[i], parts)
        row = _compute({"test": mine})
        assert row.keys() == {f"test/{name}" for name in (*NAMES, "one")}
        assert row["test/one"] == 1
        for name, value in whole(*point).items():
            assert row[f"test/{name}"] == pytest.approx(value, rel=1e-12)


def test_two_metrics_of_one_name_are_refused():
    arrays = jax.tree.map(jnp.asarray, (outputs(8), outputs(9)))
    part = Generative.of(*arrays, jnp.ones(50))
    twice = {"quality": part, "recall": Mean.of(jnp.ones(2), jnp.ones(2))}
    with pytest.raises(ValueError, match="two metrics compute test/recall"):
        _compute({"test": [twice]})


def test_a_collapsed_generator_is_told_in_finite_numbers():
    real, one = outputs(10), outputs(11)
    same = tuple(np.repeat(x[:1], 50, axis=0) for x in one)
    found = whole(real, same)
    assert all(np.isfinite(value) for value in found.values())
    assert found["collapsed"] == 1
    assert found["diversity"] == pytest.approx(0, abs=1e-6)
    assert found["recall"] == 0
    assert found["score"] == pytest.approx(1)


def test_a_generator_that_has_diverged_gives_no_number():
    real, generated = outputs(12), outputs(13)
    generated[0][3, 2] = np.inf
    found = whole(real, generated)
    assert list(found) == NAMES
    assert all(np.isnan(value) for value in found.values())
