"""The language experiment's numbers, its carried state, and its sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import leaves, replace, to_arrays
from dl_core.errors import UserError
from dl_core.models.sequence import NAMES
from dl_core.train.language import losses
from dl_core.train.metrics import Likelihood, Mean
from experiments.sequences import language


def config_of(**changes):
    smoke = replace(language.Config(), language.PRESETS["smoke"])
    return replace(smoke, {path.replace("__", "."): x for path, x in changes.items()})


def batches(config, split=None, count=None):
    """Returns batches of training, or all of an evaluation set."""
    data = language.data(config, None)
    source = data.train if split is None else data.evaluation[split]
    if split is None:
        stacked = source.train_inputs(0, 0, count)
        inputs = [{"window": window} for window in stacked["window"]]
    else:
        inputs = source.eval_inputs()
    cut, resident = jax.jit(source.assemble, static_argnums=3), source.resident
    return [cut(config, resident, each, None) for each in inputs]


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_an_even_guess_costs_log2_of_the_vocabulary(unit):
    config = to_arrays(config_of(data__unit=unit))
    state = language.init(config, jax.random.key(0))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    parts = [
        language.eval_step(config, state, batch)["likelihood"]
        for batch in batches(config, "test")
    ]
    merged = jax.device_get(parts[0])
    for part in parts[1:]:
        merged = merged.merge(jax.device_get(part))
    size = len(config.data.text.vocabulary)
    found = merged.compute()
    assert merged.count == 300
    assert found["loss"] == pytest.approx(math.log(size), rel=1e-5)
    assert found["bits"] == pytest.approx(math.log2(size), rel=1e-5)
    assert found["perplexity"] == pytest.approx(size, rel=1e-4)


def test_a_hopeless_model_has_an_infinite_perplexity():
    value = Likelihood.of(jnp.full(3, 1e6), jnp.ones(3))
    assert isinstance(value, Mean)
    assert value.compute()["perplexity"] == math.inf


def test_the_state_is_carried_within_an_epoch_and_dropped_at_its_end():
    """The losses of windows read one after another are those of the whole text."""
    config = to_arrays(config_of(model__name="gru"))
    state = language.init(config, jax.random.key(0))
    first, second = batches(config, count=2)
    assert first["first"].all()
    assert not second["first"].any()
    step = jax.jit(language.train_step)
    after, metrics = step(config, state, first, jax.random.key(1))
    still = after.replace(params=state.params)
    _, more = step(config, still, second, jax.random.key(2))
    joined = {
        name: jnp.concatenate([first[name], second[name]], axis=1)
        for name in ("inputs", "targets")
    }
    whole, _ = losses(language.make_model(config), state.params, joined)
    length = first["inputs"].shape[1]
    assert metrics["loss"] == pytest.approx(float(whole[:, :length].mean()), rel=1e-5)
    assert more["loss"] == pytest.approx(float(whole[:, length:].mean()), rel=1e-5)
    # The first window again: as if nothing had been read.
    _, again = step(config, still, first, jax.random.key(3))
    assert again["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert jax.tree.leaves(after.collections)[0].any()


def test_the_tcn_reads_the_context_and_predicts_what_follows():
    config = config_of()
    (batch,) = batches(config, count=1)
    assert batch["inputs"].shape == (4, 11)
    assert batch["targets"].shape == (4, 6)
    state = language.init(config, jax.random.key(0))
    assert not state.collections
    loss, _ = losses(language.make_model(config), state.params, batch)
    other = batch | {"inputs": batch["inputs"].at[:, 4].add(1)}
    changed, _ = losses(language.make_model(config), state.params, other)
    assert loss.shape == (4, 6)
    assert (loss[:, 0] != changed[:, 0]).all()


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_the_networks_are_of_one_size(unit):
    counts = {}
    for name in NAMES:
        config = replace(language.Config(), {"model.name": name, "data.unit": unit})
        shapes = jax.eval_shape(language.init, config, jax.random.key(0)).params
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # A unit more or less is all that can be chosen.
    assert max(counts.values()) < 1.02 * min(counts.values())


@pytest.mark.parametrize("name", ["tcn", "lstm"])
def test_what_is_written_is_drawn_from_the_model(name):
    """A model sure of one order of the characters writes them in it."""
    config = to_arrays(config_of(model__name=name))
    state = language.init(config, jax.random.key(0))
    text = config.data.text
    sure = jnp.zeros(len(text.vocabulary)).at[5].set(1e4)
    zero = jax.tree.map(jnp.zeros_like, state.params)
    zero["head"]["bias"] = sure
    written = language.observe(config, state.replace(params=zero), jax.random.key(0))
    assert (np.asarray(written["text"]) == 5).all()
    free = language.observe(config, state, jax.random.key(0))["text"]
    assert len(set(free.tolist())) > 20


def test_a_missing_text_is_one_sentence():
    config = config_of(data__path="/nowhere")
    with pytest.raises(UserError, match=r"^--config.data.path=/nowhere: expected"):
        language.data(config, None)


def test_the_papers_rows_are_of_the_papers_text():
    for row in language.TABLE:
        config = replace(language.Config(), language.PRESETS.get(row.preset, {}))
        assert bool(row.published) == bool(leaves(config)["data.path"].value)
