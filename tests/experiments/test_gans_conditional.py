"""Labels go where they belong; rates and distances are other libraries'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from dl_core.config import replace, to_arrays
from dl_core.data.gan_images import CLASSES
from dl_core.errors import UserError
from dl_core.train.adversarial import Game
from experiments.gans import conditional

SMALL = {"batch_size": 6, "model.latent": 3, "model.width": 2, "data.size": 8}
KINDS = ("none", "concatenation", "projection")


def config_of(**changes):
    base = conditional.Config()
    return to_arrays(replace(base, {**SMALL, **changes}))


@pytest.fixture(scope="module")
def untrained():
    return jax.jit(conditional.init)(config_of(), jax.random.key(1))


def batch_of(count, size=8):
    generator = np.random.default_rng(0)
    examples = generator.uniform(-1, 1, (count, size, size, 1)).astype(np.float32)
    labels = generator.integers(0, CLASSES, count, dtype=np.int32)
    latents = generator.normal(size=(count, 3)).astype(np.float32)
    arrays = {"example": examples, "label": labels, "latents": latents}
    return jax.tree.map(jnp.asarray, arrays)


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_looks_at_labels_if_it_is_to(kind, architecture):
    paths = {"model.conditioning": kind, "model.architecture": architecture}
    config = config_of(**paths)
    _, critic = conditional.networks(config)
    images, labels = batch_of(5)["example"], jnp.zeros(5, jnp.int32)
    init = jax.jit(functools.partial(critic.init, train=False))
    variables = init(jax.random.key(1), images, labels)

    def scores(label):
        return critic.apply(variables, images, labels + label, train=False)[0]

    change = np.abs(scores(3) - scores(7)).max()
    assert (change == 0) == (kind == "none")


@pytest.fixture
def batches(monkeypatch):
    """What the game was last given."""
    seen = {}

    def play(game, state, real, generated, key):
        seen.update(real=real, generated=generated)
        return state, {}

    monkeypatch.setattr(Game, "play", play)
    return seen


def test_the_critic_compares_images_of_the_same_labels(batches, untrained):
    batch = batch_of(18)
    config = config_of(critic_steps=3)
    conditional.train_step(config, untrained, batch, jax.random.key(2))
    real = batches["real"]
    np.testing.assert_array_equal(real["label"].ravel(), batch["label"])
    images = real["example"].reshape(18, 8, 8, 1)
    np.testing.assert_array_equal(images, batch["example"])
    assert real["example"].shape[:2] == (3, 6)
    latents = [batches[name]["latents"].reshape(-1, 3) for name in batches]
    assert len(np.unique(np.concatenate(latents), axis=0)) == 24


def test_the_generator_is_asked_for_all_classes_alike(batches, untrained):
    config = config_of(batch_size=5_000)
    conditional.train_step(config, untrained, batch_of(5_000), jax.random.key(2))
    counts = np.bincount(batches["generated"]["label"])
    assert len(counts) == CLASSES
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_both_rates_fall_as_torchs_to_zero_in_the_last_step(critic_steps):
    steps = 4
    changes = {"optimizer.falls": True, "optimizer.learning_rate": 0.1}
    config = config_of(steps=steps, critic_steps=critic_steps, **changes)
    rules = conditional.optimizers(config)
    for rule, count in zip(rules, (steps, steps * critic_steps), strict=True):
        gradients = np.random.default_rng(0).normal(size=(count, 5))
        weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([weights], lr=0.1, betas=(0.0, 0.9))
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, count)
        params = jnp.zeros(5)
        state = rule.init(params)
        for gradient in gradients:
            weights.grad = torch.tensor(gradient)
            adam.step()
            falling.step()
            updates, state = rule.update(jnp.asarray(gradient, jnp.float32), state)
            params += updates
        np.testing.assert_allclose(params, weights.detach(), atol=1e-5)


def test_the_distance_within_classes_is_scipys_over_batches():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 90, dtype=np.int32)
    mask = (generator.uniform(size=90) < 0.8).astype(np.float32)
    real = generator.normal(size=(90, 4)) + labels[:, None]
    generated = generator.normal(size=(90, 4)) @ generator.normal(size=(4, 4))
    real, generated = real.astype(np.float32), generated.astype(np.float32)

    def distance(x, y):
        covariances = np.cov(x.T), np.cov(y.T)
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        apart = x.mean(0) - y.mean(0)
        return apart @ apart + np.trace(covariances[0] + covariances[1] - 2 * root)

    classes = [(mask > 0) & (labels == label) for label in range(3)]
    wanted = np.mean(
        [distance(*map(np.float64, (real[c], generated[c]))) for c in classes]
    )
    parts = [
        conditional.WithinClasses(
            *(jnp.asarray(x[rows]) for x in (real, generated, labels, mask))
        )
        for rows in (slice(40), slice(40, 80), slice(80, None))
    ]
    first, second, third = jax.device_get(parts)
    found = first.merge(second).merge(third).compute()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_accuracy_is_the_share_taken_for_the_class_asked_for(monkeypatch, untrained):
    config = config_of()
    batch = batch_of(40)
    batch["mask"] = jnp.asarray(np.arange(40) < 30, jnp.float32)
    real_class, other = (int(label) for label in batch["label"][:2])

    def extract(images):
        is_real = images is batch["example"]
        logits = jax.nn.one_hot(jnp.full(40, real_class if is_real else other), 10)
        return logits, logits

    monkeypatch.setattr(conditional, "load_extractor", lambda name: extract)
    found = conditional.eval_step(config, untrained, batch)
    labels = np.asarray(batch["label"][:30])
    assert found["accuracy_real"].compute() == pytest.approx(
        (labels == real_class).mean()
    )
    assert found["accuracy"].compute() == pytest.approx((labels == other).mean())


def test_the_grid_shows_every_class_from_the_same_latents(untrained):
    config = config_of()
    images = conditional.observe(config, untrained, jax.random.key(3))["images"]
    assert images.shape == (CLASSES, 8, 8, 8, 1)
    again = conditional.observe(config, untrained, jax.random.key(4))["images"]
    np.testing.assert_array_equal(images, again)
    latents = jax.random.normal(jax.random.key(0), (8, 3))
    row = conditional.generate(config, untrained, latents, jnp.full(8, 6))
    np.testing.assert_allclose(images[6], row, atol=1e-6)


def test_too_few_test_images_are_told_before_training(data_dir):
    config = replace(conditional.Config(), {"data.test": "test[:12]"})
    with pytest.raises(UserError, match=r"--config\.data\.test=test\[:12\]: .* two"):
        conditional.data(config, data_dir)
