"""The language models of one size: their numbers, their texts, bad settings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace, to_arrays
from dl_core.errors import UserError
from experiments.attention import language_model

NETWORKS = ("transformer", "tcn", "lstm")


def config_of(**changes):
    smoke = replace(language_model.Config(), language_model.PRESETS["smoke"])
    return replace(smoke, {path.replace("__", "."): x for path, x in changes.items()})


def test_an_even_guess_costs_log2_of_the_vocabulary_and_each_character_counts_once():
    config = to_arrays(config_of())
    state = jax.jit(language_model.init)(config, jax.random.key(0))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    source = language_model.data(config, None).evaluation["test"]
    cut, measure = (
        jax.jit(source.assemble, static_argnums=3),
        jax.jit(language_model.eval_step),
    )
    batches = [cut(config, source.resident, i, None) for i in source.eval_inputs()]
    assert batches[0]["inputs"].shape == (4, 128)
    assert batches[0]["targets"].shape == (4, 64)
    parts = [
        jax.device_get(measure(config, state, batch)["likelihood"]) for batch in batches
    ]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.count == 300
    vocabulary = len(config.data.text.vocabulary)
    assert merged.compute()["bits"] == pytest.approx(math.log2(vocabulary), rel=1e-5)


@pytest.mark.parametrize("features", [32, 64, 96])
def test_the_networks_are_of_one_size(features):
    counts = [
        language_model.parameters({"model.name": name, "model.features": features})
        for name in NETWORKS
    ]
    assert max(counts) < 1.02 * min(counts)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_written_is_drawn_from_the_model(name):
    """A model sure of one character writes it, as long as a window is."""
    config = to_arrays(config_of(model__name=name, data__length=20))
    state = jax.jit(language_model.init)(config, jax.random.key(0))
    observe = jax.jit(language_model.observe)
    zero = jax.tree.map(jnp.zeros_like, state.params)
    head = (zero["decoder"] if name == "transformer" else zero)["head"]
    head["bias"] = head["bias"].at[5].set(1e4)
    sure = observe(config, state.replace(params=zero), jax.random.key(0))["text"]
    assert sure.shape == (4, 20)
    assert (np.asarray(sure) == 5).all()
    free = observe(config, state, jax.random.key(0))["text"]
    assert len({tuple(row) for row in free.tolist()}) == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__heads": 3}, r"^--config.model.features=64: expected a multiple of"),
        ({"data__length": 257}, r"^--config.data.length=257: expected at most the 256"),
    ],
)
def test_a_bad_setting_is_one_sentence(changes, told):
    with pytest.raises(UserError, match=told):
        language_model.data(config_of(**changes), None)
