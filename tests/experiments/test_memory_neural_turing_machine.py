"""The NTM's experiment: cuts to buckets, the update rule against torch, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace
from dl_core.errors import UserError
from experiments.memory import neural_turing_machine as experiment

SMALL = {
    "memory.slots": 6,
    "memory.width": 3,
    "memory.hidden": 5,
    "lstm.hidden": 5,
    "task.longest": 5,
    "task.buckets": 2,
    "batch_size": 2,
}


@pytest.mark.parametrize("network", ["ntm", "lstm"])
def test_a_step_on_tapes_cut_to_their_bucket_is_that_on_whole_tapes(network):
    config = replace(experiment.Config(), {**SMALL, "network": network})
    whole = replace(config, {"task.buckets": 1})
    assert len(config.task.edges) == 2
    state = jax.jit(experiment.init)(config, jax.random.key(0))
    key = jax.random.key(2)
    batch = experiment.make_batch(config, key)
    assert batch["bucket"] == 0
    uncut = experiment.make_batch(whole, key)
    np.testing.assert_array_equal(batch["inputs"], uncut["inputs"])
    step = jax.jit(experiment.train_step)
    short, short_metrics = step(config, state, batch, key)
    long, long_metrics = step(whole, state, uncut, key)
    close = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), short, long)
    for name in ("loss", "bits", "gradient_norm"):
        np.testing.assert_allclose(short_metrics[name], long_metrics[name], rtol=1e-5)


def test_longer_tapes_are_measured_by_size():
    config = replace(
        experiment.Config(), {**SMALL, "network": "lstm", "longer": (2, 7)}
    )
    state = jax.jit(experiment.init)(config, jax.random.key(0))
    batch = experiment.make_longer_batch(config, jax.random.key(1))
    assert batch["inputs"].shape == (20, 15, 9)
    metrics = jax.jit(experiment.eval_step)(
        config, state, {**batch, "mask": jnp.ones(20)}
    )
    variables = {"params": state.params, **state.collections}
    logits = jax.jit(experiment.predict)(config, variables, batch["inputs"])
    wrong = ((logits > 0) != (batch["targets"] > 0.5)).sum(-1) * batch["weight"]
    for rows, size in ((slice(10), 2), (slice(10, 20), 7)):
        expected = np.asarray(wrong[rows].sum(1)).mean()
        assert metrics[f"error_bits_{size}"].compute() == pytest.approx(expected)
        assert batch["weight"][rows].sum() == 10 * size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.name": "ngrams", "task.longest": 5, "longer": ()}, "at least 6"),
        ({"task.name": "priority_sort"}, "longer=.* to be empty"),
        ({"task.name": "associative_recall", "longer": (1, 8)}, "sizes of at least 2"),
    ],
)
def test_sizes_that_do_not_suit_the_task_are_refused(changes, message):
    config = replace(experiment.Config(), changes)
    with pytest.raises(UserError, match=message):
        experiment.data(config, None)


def test_the_lstm_is_of_the_size_of_the_ntm():
    def size(config):
        state = jax.eval_shape(experiment.init, config, jax.random.key(0))
        return sum(x.size for x in jax.tree.leaves(state.params))

    ours = experiment.Config()
    assert size(dataclasses.replace(ours, network="lstm")) == pytest.approx(
        size(ours), rel=0.01
    )
