"""Batches of similar lengths lose nothing, and cutting them changes no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.data.buckets import Bucketed, at_length, pack, segment_mask
from dl_core.errors import UserError

_EDGES = (3, 5, 9)


def bucketed(lengths, batch_size=4, prepare=None):
    lengths = np.array(lengths)
    tokens = np.arange(len(lengths) * 9, dtype=np.int32).reshape(-1, 9) + 1
    tokens[np.arange(9) >= lengths[:, None]] = 0
    arrays = {"tokens": tokens, "length": lengths}
    return Bucketed(arrays, lengths, _EDGES, batch_size, prepare)


_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=40)


@given(_lengths, st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_epoch_reads_each_example_once_up_to_a_full_batch(lengths, size, seed):
    batches = bucketed(lengths, size)
    steps = batches.steps_per_epoch
    assert steps == -(-len(lengths) // size)
    for epoch in range(2):
        inputs = batches.train_inputs(seed, epoch * steps, steps)
        assert inputs["indices"].shape == (steps, size)
        counts = np.bincount(inputs["indices"].ravel(), minlength=len(lengths))
        assert (counts >= 1).all()
        # What fills the last batch is of the longest bucket.
        longest = np.searchsorted(_EDGES, lengths) == np.searchsorted(
            _EDGES, max(lengths)
        )
        assert (counts[~longest] == 1).all()
        assert np.ptp(counts[longest]) <= 1
        needed = np.searchsorted(_EDGES, np.array(lengths)[inputs["indices"]])
        assert (needed <= inputs["bucket"][:, None]).all()
        # Only where a bucket does not fill its last batch is there another one in it.
        mixed = (needed != inputs["bucket"][:, None]).any(1)
        assert mixed.sum() < len(_EDGES)


@given(_lengths, st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_batch_depends_on_the_seed_and_the_step_alone(lengths, size, seed):
    whole = bucketed(lengths, size).train_inputs(seed, 0, 12)
    other = bucketed(lengths, size)
    for step in (7, 11, 0, 3):
        one = other.train_inputs(seed, step, 1)
        for name in ("indices", "bucket"):
            np.testing.assert_array_equal(one[name][0], whole[name][step])
    again = other.train_inputs(seed + 1, 0, 12)
    np.testing.assert_array_equal(again["bucket"], whole["bucket"])


def test_epochs_and_seeds_are_shuffled():
    batches = bucketed(np.arange(200) % 9 + 1)
    steps = batches.steps_per_epoch
    first, second = (batches.train_inputs(0, k * steps, steps) for k in range(2))
    other = batches.train_inputs(1, 0, steps)
    assert (first["indices"] != second["indices"]).any()
    assert (first["indices"] != other["indices"]).any()
    assert (first["bucket"] != second["bucket"]).any()
    assert (np.diff(first["bucket"]) < 0).any()


def _double(config, batch, key):
    return {**batch, "tokens": config * batch["tokens"]}


def test_evaluation_gives_each_example_once_in_a_bucket_that_holds_it():
    lengths = np.random.default_rng(0).integers(1, 10, 30)
    batches = bucketed(lengths, 8, _double)
    assemble, seen = jax.jit(batches.assemble), []
    for inputs in batches.eval_inputs():
        batch = assemble(2, batches.resident, inputs, None)
        real = np.asarray(batch["mask"]) > 0
        assert batch["bucket"].shape == (8,)
        assert (batch["length"] <= np.array(_EDGES)[batch["bucket"]]).all()
        np.testing.assert_array_equal(
            batch["tokens"], 2 * batches.resident["tokens"][inputs["indices"]]
        )
        seen.extend(inputs["indices"][real])
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [((3, 3, 9), "do not ascend"), ((3, 5), "example 1 has length 9, more than the")],
)
def test_unfit_edges_are_refused(edges, sentence):
    with pytest.raises(ValueError, match=sentence):
        Bucketed({"x": np.zeros((2, 9))}, np.array([2, 9]), edges, 1)


def test_no_examples_are_refused():
    with pytest.raises(UserError, match="no examples"):
        Bucketed({"x": np.zeros((0, 9))}, np.zeros(0, int), _EDGES, 1)


def _loss(weights, batch):
    """A sum over the positions within each length, as padding should be treated."""
    within = jnp.arange(batch["tokens"].shape[1]) < batch["length"][:, None]
    values = jnp.tanh(weights[0] * batch["tokens"] / 50 + weights[1])
    return jnp.where(within, values, 0).sum()


def _cut_loss(weights, batch):
    bucket = batch["bucket"]
    rest = {name: x for name, x in batch.items() if name != "bucket"}
    return at_length(lambda b: _loss(weights, b), _EDGES, bucket, rest)


def _cut_gradient(weights, batch):
    """The gradient taken inside the cut, as is cheapest."""
    gradient = jax.value_and_grad(_loss)
    return at_length(lambda b: gradient(weights, b), _EDGES, batch["bucket"], batch)


def _batches(lengths=(2, 1, 3, 4, 5, 5, 9, 7, 8, 6, 6, 6)):
    """Batches of each bucket, stacked."""
    batches = bucketed(lengths, 3)
    return jax.tree.map(
        lambda *xs: jnp.stack(xs),
        *(
            batches.assemble(None, batches.resident, x, None)
            for x in batches.eval_inputs()
        ),
    )


def _close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


_WEIGHTS = jnp.array([0.7, -1.3])


@pytest.mark.parametrize("cut", [jax.value_and_grad(_cut_loss), _cut_gradient])
def test_a_cut_batch_gives_the_same_values_and_gradients(cut):
    stacked = _batches()
    assert sorted(set(stacked["bucket"][:, 0].tolist())) == [0, 1, 2]

    @jax.jit
    def every_way(weights, stacked):
        def one(function):
            return lambda carry, batch: (carry, function(weights, batch))

        uncut = jax.vmap(jax.value_and_grad(_loss), (None, 0))(weights, stacked)
        scanned = jax.lax.scan(one(cut), None, stacked)[1]
        mapped = jax.vmap(cut, (None, 0))(weights, stacked)
        first = cut(weights, jax.tree.map(lambda x: x[0], stacked))
        return uncut, scanned, mapped, first

    uncut, scanned, mapped, first = every_way(_WEIGHTS, stacked)
    for found in (scanned, mapped):
        jax.tree.map(_close, found, uncut)
    wanted = jax.tree.map(lambda x: x[0], uncut)
    jax.tree.map(_close, first, wanted)


def _run_positions(buckets):
    """Returns how many positions the branches read that are run, for one or more."""
    seen = []

    def function(batch):
        jax.debug.callback(lambda x: seen.append(x.shape[-1]), batch["tokens"][0])
        return batch["tokens"].sum()

    def call(bucket, tokens):
        return at_length(function, _EDGES, bucket, {"tokens": tokens})

    buckets = jnp.array(buckets)
    call = jax.vmap(call) if buckets.ndim else call
    total = jax.jit(call)(buckets, jnp.ones((*buckets.shape, 2, 9)))
    jax.effects_barrier()
    return set(seen), np.asarray(total).tolist()


def test_short_batches_cost_less_even_under_vmap():
    assert _run_positions(0) == ({3}, 6)
    assert _run_positions(1) == ({5}, 10)
    assert _run_positions([1, 1]) == ({5}, [10, 10])
    assert _run_positions([0, 2]) == ({9}, [18, 18])


def test_an_array_of_other_positions_is_refused():
    batch = {"tokens": jnp.zeros((2, 8))}
    with pytest.raises(ValueError, match=r"tokens has shape \(2, 8\): expected 9 pos"):
        at_length(lambda b: b["tokens"].sum(), _EDGES, jnp.int32(0), batch)


@given(st.lists(st.lists(st.integers(1, 99), max_size=10), max_size=30))
@settings(max_examples=100, deadline=None)
def test_packing_keeps_every_sequence_whole(sequences):
    packed = pack(sequences, 10)
    found = []
    for tokens, segments, positions in zip(*packed, strict=True):
        for segment in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == segment)
            assert (np.diff(places) == 1).all()
            assert positions[places].tolist() == list(range(len(places)))
            found.append(tokens[places].tolist())
        assert not tokens[segments == 0].any()
    filled = sorted(s for s in sequences if s)
    assert sorted(found if not found else [f for f in found if f]) == filled
    # Best fit, the longest first: never half as many rows again as there must be.
    least = -(-sum(map(len, sequences)) // 10)
    assert len(packed.tokens) <= max(1.5 * least + 1, bool(sequences))


def test_a_sequence_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="sequence 1 has 5 tokens, more than a row"):
        pack([[1], [1] * 5], 4)


def test_packed_sequences_do_not_see_each_other():
    mask = segment_mask(jnp.array([[1, 1, 2, 0]]))
    assert mask.shape == (1, 1, 4, 4)
    wanted = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(mask[0, 0], np.array(wanted, bool))
