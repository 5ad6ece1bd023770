"""The experiments' networks and losses against PyTorch, and optimal transport."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
from experiments.sequences import copy_memory


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


def test_tcn_equals_torch():
    config = replace(copy_memory.Config(), {"delay": 7, "model.levels": 3})
    state = copy_memory.init(config, jax.random.key(0))
    batch = copy_memory.make_batch(config, jax.random.key(1))
    logits = copy_memory.Network(config.model).apply(
        {"params": state.params}, batch["inputs"]
    )

    x = tensor(batch["inputs"]).float()[:, None]
    for level in range(3):
        block = state.params[f"ResidualBlock_{level}"]
        y = x
        for i in range(2):
            kernel = tensor(block[f"Conv_{i}"]["kernel"]).permute(2, 1, 0)
            scale = tensor(block[f"WeightNorm_{i}"][f"Conv_{i}/kernel/scale"])
            norm = kernel.flatten(1).norm(dim=1)
            kernel = kernel * (scale / norm)[:, None, None]
            padded = functional.pad(y, (5 * 2**level, 0))
            bias = tensor(block[f"Conv_{i}"]["bias"])
            y = functional.conv1d(padded, kernel, bias, dilation=2**level).relu()
        if "Dense_0" in block:
            kernel, bias = block["Dense_0"]["kernel"], block["Dense_0"]["bias"]
            x = functional.conv1d(x, tensor(kernel).T[..., None], tensor(bias))
        x = (x + y).relu()
    head = state.params["Dense_0"]
    expected = x.transpose(1, 2) @ tensor(head["kernel"]) + tensor(head["bias"])
    close(logits, expected)


def test_tcn_sees_no_later_input_and_its_whole_receptive_field():
    config = replace(copy_memory.Config(), {"delay": 60, "model.levels": 3})
    state = copy_memory.init(config, jax.random.key(0))
    inputs = copy_memory.make_batch(config, jax.random.key(1))["inputs"][:1]
    apply = copy_memory.Network(config.model).apply
    logits = np.asarray(apply({"params": state.params}, inputs))[0]
    changed = np.asarray(apply({"params": state.params}, inputs.at[0, 5].set(100)))[0]
    differs = np.flatnonzero(np.abs(changed - logits).max(-1) > 0)
    field = 1 + 2 * (6 - 1) * (2**3 - 1)
    assert differs.min() == 5
    assert differs.max() == 5 + field - 1


def test_lstm_equals_torch():
    config = replace(copy_memory.Config(), {"delay": 9, "model.name": "lstm"})
    state = copy_memory.init(config, jax.random.key(0))
    batch = copy_memory.make_batch(config, jax.random.key(1))
    logits = copy_memory.Network(config.model).apply(
        {"params": state.params}, batch["inputs"]
    )
    cell = state.params["OptimizedLSTMCell_0"]
    theirs = torch.nn.LSTM(1, 47, batch_first=True)
    gates = "ifgo"
    theirs.weight_ih_l0.data = tensor(
        np.concatenate([cell[f"i{g}"]["kernel"].T for g in gates])
    )
    theirs.weight_hh_l0.data = tensor(
        np.concatenate([cell[f"h{g}"]["kernel"].T for g in gates])
    )
    theirs.bias_hh_l0.data = tensor(
        np.concatenate([cell[f"h{g}"]["bias"] for g in gates])
    )
    theirs.bias_ih_l0.data.zero_()
    hidden, _ = theirs(tensor(batch["inputs"]).float()[..., None])
    head = state.params["Dense_0"]
    close(logits, hidden @ tensor(head["kernel"]) + tensor(head["bias"]))


@pytest.mark.parametrize(("name", "count"), [("tcn", 9_510), ("lstm", 9_692)])
def test_both_networks_have_about_ten_thousand_parameters(name, count):
    config = replace(copy_memory.Config(), {"model.name": name})
    state = jax.eval_shape(copy_memory.init, config, jax.random.key(0))
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(state.params)) == count


def test_copy_memory_sequences_are_those_of_the_task():
    config = replace(copy_memory.Config(), {"delay": 4})
    batch = copy_memory.make_batch(config, jax.random.key(0), 3)
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
        symbols = inputs[:10]
        assert set(symbols.tolist()) <= set(range(1, 9))
        assert inputs[10:].tolist() == [0] * 3 + [9] * 11
        assert targets.tolist() == [0] * 14 + symbols.tolist()


def test_rmsprop_is_that_of_torch():
    config = copy_memory.Config()
    weights = normal(0, 5)
    theirs = tensor(weights).requires_grad_()
    optimizer = torch.optim.RMSprop([theirs], lr=5e-4)
    ours, rule = jnp.asarray(weights), copy_memory.make_optimizer(config)
    state = rule.init(ours)
    for step in range(20):
        gradient = 1e-4 * normal(step, 5)
        updates, state = rule.update(jnp.asarray(gradient), state)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = tensor(gradient)
        optimizer.step()
    close(ours, theirs, 1e-6)
