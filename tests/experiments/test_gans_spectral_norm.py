"""The critic's constraints, after training; what the figures make of the runs."""

import jax
import numpy as np
import pytest

from dl_core.config import replace, to_arrays
from dl_core.data.digits import FOLDER, read_idx
from dl_core.results import Run, Runs
from experiments.gans import spectral_norm as experiment

IMAGES = read_idx(FOLDER / "train-images-idx3-ubyte.gz")[:512, ..., None]


def trained(steps, **changes):
    config = replace(
        experiment.Config(),
        {"model.width": 4, "model.latent": 8, "batch_size": 16, "generator_batch": 16}
        | changes,
    )
    arrays = to_arrays(config)

    @jax.jit
    def step(state, images, key):
        batch = experiment.prepare(arrays, {"image": images}, None)
        return experiment.train_step(arrays, state, batch, key)[0]

    state = jax.jit(experiment.init)(arrays, jax.random.key(0))
    count = config.batch_size * config.critic_steps
    rng = np.random.default_rng(0)
    for number in range(steps):
        images = IMAGES[rng.integers(0, len(IMAGES), count)]
        state = step(state, images, jax.random.key(number))
    seen = jax.jit(experiment.observe)(arrays, state, jax.random.key(0))
    return config, state, jax.device_get(seen)


def kernels(state):
    """Returns each layer's kernel as a matrix of outputs by inputs."""
    layers = jax.device_get(state.critic.params).items()
    return {
        name: np.float64(layer["kernel"]).reshape(-1, layer["kernel"].shape[-1])
        for name, layer in layers
    }


@pytest.mark.parametrize("rate", [2e-4, 1e-3])
def test_spectral_normalisation_holds_every_layer_at_one(rate):
    config, state, seen = trained(60, **{"optimizer.learning_rate": rate})
    found = experiment.score(config, seen)
    assert found["largest_singular_value"] == pytest.approx(1, abs=0.01)
    assert found["least_singular_value"] == pytest.approx(1, abs=0.01)
    for name, matrix in kernels(state).items():
        values = np.linalg.svd(matrix, compute_uv=False)
        ours = seen[f"{name}/singular_values"]
        np.testing.assert_allclose(ours, values / values[0], rtol=0.01, atol=1e-4)
    assert found["largest_operator_norm"] > 1.2


def test_the_operators_norm_can_be_held_at_one_instead():
    changes = {"constraint": "operator", "model.power_iterations": 20}
    config, _, seen = trained(30, **changes)
    found = experiment.score(config, seen)
    assert found["largest_operator_norm"] == pytest.approx(1, abs=0.02)
    assert found["largest_singular_value"] < 1.01


def test_without_a_constraint_the_singular_values_are_the_kernels():
    _, state, seen = trained(2, constraint="none")
    for name, matrix in kernels(state).items():
        values = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(seen[f"{name}/singular_values"], values, rtol=1e-4)


def test_clipping_bounds_every_weight():
    _, state, _ = trained(3, constraint="clipping", critic_steps=2)
    weights = np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(state.critic.params)]
    )
    assert np.abs(weights).max() == pytest.approx(0.01)


def test_the_step_size_falls_to_zero():
    config = replace(experiment.Config(), {"optimizer.falls": True, "steps": 4})
    optimizer = experiment.make_optimizer(to_arrays(config), 4)
    state = optimizer.init(np.float32(0))
    moves = []
    for _ in range(5):
        move, state = optimizer.update(np.float32(1), state)
        moves.append(abs(float(move)))
    np.testing.assert_allclose(
        moves, 2e-4 * np.array([1, 0.75, 0.5, 0.25, 0]), rtol=1e-3
    )


def test_the_average_lags_behind_the_generator():
    _, plain, _ = trained(2)
    _, state, _ = trained(2, average=0.9)
    for other, now in zip(
        jax.tree.leaves(state.generator), jax.tree.leaves(plain.generator), strict=True
    ):
        np.testing.assert_array_equal(other, now)
    averages = jax.tree.leaves(state.average["params"])
    networks = jax.tree.leaves(state.generator.params)
    assert any((a != b).any() for a, b in zip(averages, networks, strict=True))
    for a, b in zip(
        jax.tree.leaves(plain.average["params"]),
        jax.tree.leaves(plain.generator.params),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_collapse_is_told():
    base = {"steps": 500, "features": "mnist_subset", "seed": 0, "constraint": "none"}
    base["objective"] = "hinge"
    base |= dict(zip(experiment._SETTING, experiment.SETTINGS["C"], strict=True))
    results = [
        {"status": "done", "metrics": {"test/frechet": 3.0, "test/collapsed": flag}}
        for flag in (0.0, 1.0)
    ]
    runs = Runs(
        Run({**base, "seed": seed}, (), result) for seed, result in enumerate(results)
    )
    assert "1 of 2 runs collapsed" in experiment.summary(runs)
