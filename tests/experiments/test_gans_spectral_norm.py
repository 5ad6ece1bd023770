"""The critic's constraints, after training; what the figures make of the runs."""

import importlib

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from dl_core.config import replace, to_arrays
from dl_core.data.digits import FOLDER, read_idx
from dl_core.errors import UserError
from dl_core.results import Run, Runs
from experiments.gans import spectral_norm as experiment

IMAGES = read_idx(FOLDER / "train-images-idx3-ubyte.gz")[:512, ..., None]


@jax.jit
def step(config, state, images, key):
    batch = experiment.prepare(config, {"image": images}, None)
    return experiment.train_step(config, state, batch, key)[0]


observe = jax.jit(experiment.observe)


def trained(steps, **changes):
    config = replace(
        experiment.Config(),
        {"model.width": 4, "model.latent": 8, "batch_size": 16, "generator_batch": 16}
        | changes,
    )
    arrays = to_arrays(config)
    state = jax.jit(experiment.init)(arrays, jax.random.key(0))
    count = config.batch_size * config.critic_steps
    rng = np.random.default_rng(0)
    for number in range(steps):
        images = IMAGES[rng.integers(0, len(IMAGES), count)]
        state = step(arrays, state, images, jax.random.key(number))
    seen = observe(arrays, state, jax.random.key(0))
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


def test_a_collapse_is_told():
    base = {"steps": 500, "features": "mnist_subset", "seed": 0, "constraint": "none"}
    base |= dict(zip(experiment._SETTING, experiment.SETTINGS["C"], strict=True))
    results = [
        {
            "status": "done",
            "metrics": {
                "test/frechet": 3.0,
                "test/collapsed": flag,
                "observed/largest_singular_value": 2.0,
            },
        }
        for flag in (0.0, 1.0)
    ]
    runs = Runs(
        Run({**base, "seed": seed}, (), result) for seed, result in enumerate(results)
    )
    assert "1 of 2 runs collapsed" in experiment.summary(runs)


def test_normalised_batches_do_not_go_with_the_penalty(data_dir):
    changes = {"constraint": "gradient_penalty", "model.batch_norm": True}
    config = replace(experiment.Config(), changes)
    with pytest.raises(UserError, match=r"--config\.model\.batch_norm"):
        experiment.data(config, data_dir)


@pytest.mark.parametrize("name", ["spectral_norm", "conditional"])
def test_the_papers_preset_has_the_published_widths(name):
    module = importlib.import_module(f"experiments.gans.{name}")
    config = replace(module.Config(), module.PRESETS["paper"])
    generator, critic = module.networks(config)
    assert (generator.width, critic.width) == (256, 128)


def test_the_spectra_of_residual_networks_are_drawn(tmp_path):
    base = {"steps": 4, "features": "mnist_subset"}
    keys = ("block_0/Conv_0", "block_0/Conv_1", "Dense_0")
    arrays = {f"{key}/singular_values": np.array([1.0, 0.5]) for key in keys}
    arrays |= {f"{key}/operator_norm": np.array(1.0) for key in keys}
    runs = []
    for constraint in ("none", "spectral"):
        folder = tmp_path / constraint
        (folder / "artifacts").mkdir(parents=True)
        np.savez(folder / "artifacts/train-00000004.npz", **arrays)
        values = zip(experiment._SETTING, experiment.SETTINGS["D"], strict=True)
        config = {**base, "constraint": constraint, "seed": 0, **dict(values)}
        runs.append(Run(config, (), {"status": "done", "metrics": {}}, folder))
    fig = experiment.singular_values(Runs(runs))
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles == list(keys)
    plt.close(fig)
