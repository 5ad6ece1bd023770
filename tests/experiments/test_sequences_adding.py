"""The adding problem: the sizes and the reach of its networks, and what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import leaves, replace
from experiments.sequences import adding


@pytest.mark.parametrize("name", ["tcn", "lstm", "gru", "rnn"])
@pytest.mark.parametrize(("preset", "size"), [("default", 58_051), ("paper", 70_369)])
def test_the_networks_are_of_one_size(name, preset, size):
    changes = {"model.name": name} | adding.PRESETS.get(preset, {})
    config = replace(adding.Config(), changes)
    state = jax.eval_shape(adding.init, config, jax.random.key(0))
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert count == size if name == "tcn" else count == pytest.approx(size, rel=0.01)


def test_the_tcn_sees_the_whole_sequence_at_every_length():
    for point in adding.SWEEPS["lengths"]:
        config = replace(adding.Config(), point)
        assert config.model.receptive_field >= config.length
    paper = leaves(replace(adding.Config(), adding.PRESETS["paper"]))
    last = {k: v for k, v in adding.SWEEPS["lengths"][-1].items() if k != "seed"}
    assert last == {path: paper[path].value for path in last}


def test_evaluation_measures_the_squared_error():
    config = replace(adding.Config(), adding.PRESETS["smoke"])
    state = adding.init(config, jax.random.key(0))
    batch = adding.make_batch(config, jax.random.key(1))
    mask = jnp.array([1.0] * 6 + [0.0] * 2)
    measured = adding.eval_step(config, state, batch | {"mask": mask})["loss"]
    sums = np.asarray(adding.predict(config, state.params, batch["inputs"]))
    expected = np.mean((sums - np.asarray(batch["targets"]))[:6] ** 2)
    assert measured.compute() == pytest.approx(expected, rel=1e-5)
