"""What degrades images, the distances of the evaluation, and the files of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import tiny

from dl_core.config import replace
from dl_core.data.gan_images import to_unit
from dl_core.data.memory import load
from dl_core.metrics.features import SHIPPED, load_extractor, read_weights
from experiments.gans import features
from launch import registry

SMOKE = replace(features.Config(), features.PRESETS["smoke"])


def digits(data_dir, count):
    arrays = load("mnist_subset", f"test[:{count}]", data_dir)
    batch = {"image": jnp.asarray(arrays["image"]), "label": jnp.array(arrays["label"])}
    return features.as_they_are(SMOKE, {**batch, "mask": jnp.ones(count)}, None)


def drawn(name, images, seeds):
    return np.asarray(features.degraded(name, jnp.asarray(images), jnp.asarray(seeds)))


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return random.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


SEEDS = np.array([3, 4], np.uint32)


def test_blur_is_scipys(images):
    for strength, found in zip(
        features.STRENGTHS["blur"], drawn("blur", images, SEEDS), strict=True
    ):
        wanted = scipy.ndimage.gaussian_filter(
            images, strength, axes=(1, 2), mode="reflect", radius=9
        )
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_shift_is_scipys(images):
    for strength, found in zip(
        features.STRENGTHS["shift"], drawn("shift", images, SEEDS), strict=True
    ):
        wanted = scipy.ndimage.shift(
            images, (0, 0, strength, 0), order=0, mode="nearest"
        )
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_noise_has_its_deviation_stays_in_range_and_is_the_images_own():
    grey = np.zeros((2, 32, 32, 3), np.float32)
    found = drawn("noise", grey, SEEDS)
    for strength, noisy in zip(features.STRENGTHS["noise"], found, strict=True):
        assert np.abs(noisy).max() <= 1
        if strength < 0.2:  # Larger noise is cut off at black and white.
            # Black to white is 2 here; 6,144 values.
            assert noisy.std() == pytest.approx(2 * strength, rel=0.05)
            assert abs(noisy.mean()) < 0.05 * strength
        assert np.abs(noisy[0] - noisy[1]).max() > strength
    # Up to rounding, which a program of another size may do otherwise.
    alone = drawn("noise", grey[1:], SEEDS[1:])
    np.testing.assert_allclose(alone[:, 0], found[:, 1], atol=1e-6)


def distance(real, other):
    """Returns the Fréchet distance with SciPy's root of a matrix."""
    real, other = (np.asarray(x, np.float64) for x in (real, other))
    first, second = np.cov(real.T), np.cov(other.T)
    root = scipy.linalg.sqrtm(first @ second).real
    apart = real.mean(0) - other.mean(0)
    return apart @ apart + np.trace(first + second - 2 * root)


def test_the_evaluations_distances_are_scipys(data_dir):
    extract = load_extractor("mnist_subset")
    variables, about = read_weights(SHIPPED["mnist_subset"])
    config = replace(features.Config(), {"width": about["width"]})
    state = features.init(config, jax.random.key(0)).replace(
        params=variables["params"],
        collections={"batch_stats": variables["batch_stats"]},
    )
    batch = digits(data_dir, 300)
    step = jax.jit(features.eval_step)
    parts = []
    for start in range(0, 300, 200):  # The second is padded, as in the loop.
        rows = np.minimum(np.arange(start, start + 200), 299)
        part = {name: x[rows] for name, x in batch.items()}
        part["mask"] = jnp.float32(np.arange(start, start + 200) < 300)
        parts.append(jax.device_get(step(config, state, part)))
    found = {name: first.merge(parts[1][name]) for name, first in parts[0].items()}
    found = {name: metric.compute() for name, metric in found.items()}
    real, logits = extract(batch["image"])
    assert found["accuracy"] == pytest.approx(
        float(np.mean(logits.argmax(-1) == batch["label"])), abs=1e-6
    )
    wanted = {"halves": distance(real[::2], real[1::2])}
    for name, strengths in features.STRENGTHS.items():
        for number in (0, 2):
            if name == "missing":
                other = real[batch["label"] >= strengths[number]]
            else:
                images = features.degraded(name, batch["image"], batch["seed"])
                other, _ = extract(images[number])
            wanted[f"{name}_{strengths[number]:g}"] = distance(real, other)
    for name, value in wanted.items():
        assert found[f"frechet_{name}"] == pytest.approx(value, rel=1e-3), name


def test_augmentation_of_no_size_changes_nothing(data_dir):
    none = {"shift": 0.0, "degrees": 0.0, "scale": 1.0}
    changes = {f"augmentation.{name}": value for name, value in none.items()}
    arrays = load("mnist_subset", "train[:8]", data_dir)
    batch = {"image": jnp.asarray(arrays["image"])}
    plain = to_unit(batch["image"])
    key = jax.random.key(0)
    still = features.moved(replace(SMOKE, changes), batch, key)["image"]
    np.testing.assert_allclose(still, plain, atol=1e-5)
    moved = features.moved(SMOKE, batch, key)["image"]
    assert np.abs(moved - plain).mean() > 0.02
    flip = replace(SMOKE, {**changes, "augmentation.flip": 1.0})
    flipped = features.moved(flip, batch, key)["image"]
    np.testing.assert_allclose(flipped, plain[:, :, ::-1], atol=1e-5)


def test_a_run_leaves_weights_that_can_be_read_and_shipped(data_dir, tmp_path):
    experiment = registry.load("gans.features")
    folder = tmp_path / "run"
    tiny.train(experiment, {folder: SMOKE}, data_dir=data_dir)
    last = folder / "artifacts" / f"train-{SMOKE.steps:08d}.npz"
    variables, about = read_weights(last)
    assert (about["trained_on"], about["width"]) == ("mnist_subset", SMOKE.width)
    saved = tiny.final_state(experiment, folder, SMOKE)
    kernel = saved[".params['Conv_1']['kernel']"]
    np.testing.assert_allclose(
        variables["params"]["Conv_1"]["kernel"], kernel, rtol=1e-3, atol=1e-6
    )
    features.ship(folder, tmp_path / "shipped.npz")
    shipped, about = read_weights(tmp_path / "shipped.npz")
    jax.tree.map(np.testing.assert_array_equal, shipped, variables)
    assert 0 <= about["accuracy"] <= 1


def test_the_shipped_classifier_is_as_accurate_as_it_says(data_dir):
    path = SHIPPED["mnist_subset"]
    assert path.stat().st_size < 250_000
    _, about = read_weights(path)
    assert about["trained_on"] == "mnist_subset"
    assert about["width"] == features.Config().width
    batch = digits(data_dir, 2_000)
    _, logits = jax.jit(load_extractor("mnist_subset"))(batch["image"])
    accuracy = float(np.mean(logits.argmax(-1) == batch["label"]))
    assert accuracy > 0.98
    # A near tie or two may fall otherwise in half precision.
    assert accuracy == pytest.approx(about["accuracy"], abs=1.1e-3)
