"""The experiments' networks and losses against PyTorch, and optimal transport."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from dl_core.config import replace
from dl_core.data import planar
from dl_core.ops import adversarial
from dl_core.ops.transport import wasserstein
from experiments.classification import batch_norm
from experiments.gans import toy


def tensor(x):
    return torch.tensor(np.asarray(x))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_perceptron_step_equals_torch(normalization):
    """Logits, gradients and one step of SGD, in training and in evaluation mode."""
    rate = 0.5
    config = replace(
        batch_norm.Config(),
        {
            "model.normalization": normalization,
            "model.initial_std": 1.0,
            "optimizer.learning_rate": rate,
        },
    )
    state = batch_norm.init(config, jax.random.key(0))
    layers = []
    for i in range(3):
        dense = state.params[f"Dense_{i}"]
        linear = torch.nn.Linear(*dense["kernel"].shape, bias="bias" in dense)
        linear.weight.data = tensor(dense["kernel"].T)
        if "bias" in dense:
            linear.bias.data = tensor(dense["bias"])
        layers.append(linear)
        if normalization == "batch":
            layers.append(torch.nn.BatchNorm1d(100, momentum=0.01))
        layers.append(torch.nn.Sigmoid())
    dense = state.params["Dense_3"]
    head = torch.nn.Linear(100, 10)
    head.weight.data, head.bias.data = tensor(dense["kernel"].T), tensor(dense["bias"])
    network = torch.nn.Sequential(*layers, head)

    images, labels = np.abs(normal(1, 60, 784)), np.arange(60) % 10
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(2):
        state, metrics = batch_norm.train_step(config, state, batch, jax.random.key(0))
        loss = functional.cross_entropy(network(tensor(images)), tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        close(metrics["loss"], loss)
    close(state.params["Dense_0"]["kernel"], network[0].weight.T)
    close(state.params["Dense_3"]["bias"], head.bias)
    if normalization == "batch":
        running = state.collections["batch_stats"]["BatchNorm_2"]
        close(running["mean"], network[7].running_mean, 1e-4)
        # Flax keeps the biased variance, torch the unbiased one; both started from 1.
        unbiased = (running["var"] - 0.99**2) * 60 / 59 + 0.99**2
        close(unbiased, network[7].running_var, 1e-4)


def test_percentiles_are_those_of_the_last_sigmoid():
    config = batch_norm.Config()
    state = batch_norm.init(config, jax.random.key(0))
    images = np.abs(normal(0, 40, 784))
    batch = {
        "image": jnp.asarray(images),
        "label": jnp.zeros(40, jnp.int32),
        "mask": jnp.ones(40),
    }
    measured = batch_norm.eval_step(config, state, batch)["sigmoid_input"].compute()
    x = images
    for i in range(3):
        # At the start the running mean is 0 and the running variance 1.
        inputs = (
            x @ np.asarray(state.params[f"Dense_{i}"]["kernel"]) / np.sqrt(1 + 1e-5)
        )
        x = 1 / (1 + np.exp(-inputs))
    close(measured, np.percentile(inputs[:, 0], [15, 50, 85]), 1e-4)


def test_gan_losses_equal_torch():
    real, generated = jnp.asarray(normal(0, 32)), jnp.asarray(normal(1, 32))
    ones, zeros = torch.ones(32), torch.zeros(32)
    entropy = functional.binary_cross_entropy_with_logits
    both = entropy(tensor(real), ones) + entropy(tensor(generated), zeros)
    for objective in ("saturating", "non_saturating"):
        close(adversarial.critic_loss(objective, real, generated), both)
    close(
        adversarial.generator_loss("saturating", generated),
        -entropy(tensor(generated), zeros),
    )
    close(
        adversarial.generator_loss("non_saturating", generated),
        entropy(tensor(generated), ones),
    )
    close(
        adversarial.critic_loss("wasserstein", real, generated),
        generated.mean() - real.mean(),
    )
    close(adversarial.generator_loss("wasserstein", generated), -generated.mean())


def test_gradient_penalty_and_its_gradient_equal_torch():
    weights = [normal(0, 2, 16), normal(1, 16)]
    real, generated = jnp.asarray(normal(2, 8, 2)), jnp.asarray(normal(3, 8, 2))
    mix = jax.random.uniform(jax.random.key(4), (8,))

    def penalty(weights):
        score = lambda x: jax.nn.relu(x @ weights[0]) @ weights[1]  # noqa: E731
        return adversarial.gradient_penalty(score, real, generated, mix)

    value, gradients = jax.value_and_grad(penalty)([jnp.asarray(w) for w in weights])

    theirs = [tensor(w).requires_grad_() for w in weights]
    between = tensor(real + mix[:, None] * (generated - real)).requires_grad_()
    scores = torch.relu(between @ theirs[0]) @ theirs[1]
    (slopes,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    loss = ((slopes.norm(dim=1) - 1) ** 2).mean()
    loss.backward()
    close(value, loss)
    for ours, weight in zip(gradients, theirs, strict=True):
        close(ours, weight.grad)


def test_spectral_critic_is_lipschitz():
    """The norm of every normalised layer is 1, so the critic's slope is at most 1."""
    config = replace(
        toy.Config(),
        {"objective": "wasserstein", "constraint": "spectral", "critic_steps": 5},
    )
    state = toy.init(config, jax.random.key(0))
    step = jax.jit(toy.train_step)
    for i in range(100):
        key = jax.random.key(i)
        state, _ = step(config, state, toy.make_batch(config, key), key)
    x, y = jnp.asarray(normal(0, 500, 2)), jnp.asarray(normal(1, 500, 2))
    scores = [toy.criticise(config, state, points) for points in (x, y)]
    slopes = np.abs(scores[0] - scores[1]) / np.linalg.norm(x - y, axis=1)
    assert slopes.max() <= 1.01
    for name in ("Dense_0", "Dense_1"):
        kernel = np.asarray(state.critic.params[name]["kernel"], np.float64)
        stored = state.critic.collections["batch_stats"][f"SpectralNorm_{name[-1]}"]
        (vectors,) = [x for x in stored.values() if set(x) == {"u", "v"}]
        measured = vectors["v"] @ kernel @ vectors["u"]
        assert measured == pytest.approx(np.linalg.norm(kernel, 2), rel=0.01)


def test_clipping_bounds_every_weight():
    config = replace(
        toy.Config(),
        {"objective": "wasserstein", "constraint": "clipping", "clip": 0.05},
    )
    state = toy.init(config, jax.random.key(0))
    key = jax.random.key(1)
    state, _ = toy.train_step(config, state, toy.make_batch(config, key), key)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(state.critic.params))
    assert largest == pytest.approx(0.05)


@pytest.mark.parametrize("target", ["8_gaussians", "25_gaussians"])
def test_targets_lie_at_their_modes(target):
    points = np.asarray(planar.sample(target, jax.random.key(0), 4_000))
    modes = planar.MODES[target]
    distance = np.linalg.norm(points[:, None] - modes, axis=-1)
    nearest = distance.argmin(1)
    share = np.bincount(nearest, minlength=len(modes)) / len(points)
    np.testing.assert_allclose(share, 1 / len(modes), atol=0.03)
    spread = (points - modes[nearest]).std()
    assert spread == pytest.approx(planar.SPREAD[target], rel=0.05)


def test_modes_are_counted():
    observed = {
        "real": planar.MODES["8_gaussians"],
        "generated": np.concatenate([planar.MODES["8_gaussians"][:3], [[9, 9]]]),
        "critic_real": np.zeros(8),
        "critic_generated": np.ones(4),
    }
    found = toy.score(toy.Config(), observed)
    assert found["modes"] == 3
    assert found["high_quality"] == 0.75
    assert found["critic_estimate"] == -1


def test_wasserstein_equals_the_best_assignment():
    x, y = normal(0, 60, 2), normal(1, 60, 2) + 1
    cost = np.linalg.norm(x[:, None] - y, axis=-1).astype(np.float64)
    best = cost[linear_sum_assignment(cost)].mean()
    assert wasserstein(x, y) == pytest.approx(best, rel=1e-6)
    shifted = wasserstein(x, x + np.float32([3, 4]))
    assert shifted == pytest.approx(5, rel=1e-6)


def test_critic_estimate_is_a_lower_bound_for_a_lipschitz_critic():
    """Kantorovich duality, on the points: no 1-Lipschitz critic exceeds it."""
    x, y = normal(0, 100, 2), normal(1, 100, 2) + 0.5
    exact = wasserstein(x, y)
    for angle in np.linspace(0, 2 * np.pi, 12):
        direction = np.array([np.cos(angle), np.sin(angle)])
        assert (x @ direction).mean() - (y @ direction).mean() <= exact + 1e-6
