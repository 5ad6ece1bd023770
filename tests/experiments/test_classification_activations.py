"""The activations, their network and the counting of epochs, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.config import replace
from experiments.classification import activations

TORCH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "relu": torch.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
}

init = jax.jit(activations.init)
train_step = jax.jit(activations.train_step)
eval_step = jax.jit(activations.eval_step)


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_curve_and_derivative_equal_torch(name):
    numbers = np.random.default_rng(0).normal(0, 4, 200).astype(np.float32)
    x = torch.tensor(numbers, requires_grad=True)
    y = TORCH[name](x)
    y.sum().backward()
    close(activations.ACTIVATIONS[name](jnp.asarray(numbers)), y.detach())
    close(activations.derivative(name, jnp.asarray(numbers)), x.grad)


def make(name="relu", **changes):
    config = replace(
        activations.Config(),
        {"model.activation": name, "model.width": 4, "data.side": 12, **changes},
    )
    return config, init(config, jax.random.key(0))


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(size, 12, 12, 1)).astype(np.float32)
    return {"image": jnp.asarray(images), "label": jnp.arange(size) % 10}


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_two_steps_equal_torch(name):
    config, state = make(name, **{"optimizer.learning_rate": 0.1})
    params = {}
    for layer, parts in state.params.items():
        axes = (3, 2, 0, 1) if parts["kernel"].ndim == 4 else (1, 0)
        params[layer] = [
            torch.tensor(np.transpose(parts["kernel"], axes), requires_grad=True),
            torch.tensor(np.asarray(parts["bias"]), requires_grad=True),
        ]
    batch = batch_of(20)
    every = [part for parts in params.values() for part in parts]
    optimizer = torch.optim.SGD(every, lr=0.1, momentum=0.9)
    for _ in range(2):
        x = torch.tensor(np.moveaxis(np.asarray(batch["image"]), -1, 1))
        for layer in range(3):
            # "same": where it is odd, the larger half of the padding is at the end.
            odd = x.shape[-1] % 2
            x = functional.pad(x, (odd, 1, odd, 1))
            x = TORCH[name](functional.conv2d(x, *params[f"Conv_{layer}"], stride=2))
        logits = functional.linear(x.permute(0, 2, 3, 1).flatten(1), *params["Dense_0"])
        target = torch.tensor(np.asarray(batch["label"]), dtype=torch.long)
        loss = functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state, metrics = train_step(config, state, batch, jax.random.key(0))
        close(metrics["loss"], loss.detach())
    for layer, (weight, bias) in params.items():
        axes = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
        close(state.params[layer]["kernel"], weight.detach().permute(axes))
        close(state.params[layer]["bias"], bias.detach())


def test_epochs_are_counted_until_the_last_ten_batches_are_good_enough():
    _, state = make()
    progress = state.collections["progress"]
    errors = np.r_[np.linspace(0.9, 0, 40), [0] * 10, [0.6] * 10].astype(np.float32)
    for step, error in enumerate(errors, 1):
        progress = activations.advance(progress, jnp.asarray(error), jnp.float32(step))
    means = [errors[max(0, i - 10) : i].mean() for i in range(1, 61)]
    expected = [
        next(i for i in range(10, 61) if means[i - 1] <= percent / 100)
        for percent in activations.THRESHOLDS
    ]
    assert progress["reached"].all()
    np.testing.assert_array_equal(progress["epochs"], expected)
    close(progress["errors"].mean(), 0.6)


def test_epochs_go_on_while_a_threshold_is_not_reached():
    config, state = make(**{"data.examples": 200, "batch_size": 20})
    for _ in range(3):
        state, metrics = train_step(config, state, batch_of(20), jax.random.key(0))
    assert metrics["reached_25"] == 0
    close(metrics["epochs_to_25"], 0.3)


def test_the_error_is_that_before_the_update():
    config, state = make()
    batch = batch_of(20)
    logits, _ = activations.Network(config.model).apply(
        {"params": state.params}, batch["image"]
    )
    error = np.mean(np.asarray(logits).argmax(-1) != np.asarray(batch["label"]))
    _, metrics = train_step(config, state, batch, jax.random.key(0))
    close(metrics["error"], (9 + error) / 10)


def measure(name, change=lambda params: params):
    config, state = make(name)
    params = jax.tree.map(jnp.asarray, change(jax.tree.map(np.array, state.params)))
    batch = {**batch_of(16), "mask": jnp.array([1.0] * 12 + [0.0] * 4)}
    found = eval_step(config, state.replace(params=params), batch)
    _, endpoints = activations.Network(config.model).apply(
        {"params": params}, batch["image"][:12]
    )
    numbers = {metric: float(value.compute()) for metric, value in found.items()}
    return numbers, [np.asarray(x) for x in endpoints.values()]


def test_dead_relus_are_those_that_are_zero_for_every_image():
    def kill(params):
        params["Conv_0"]["bias"][:] = -100, 0, -100, 0
        params["Conv_2"]["bias"][0] = -100
        return params

    found, inputs = measure("relu", kill)
    silent = [(np.maximum(x, 0) == 0).all((0, 1, 2)) for x in inputs]
    assert silent[0].tolist() == [True, False, True, False]
    close(found["dead"], np.concatenate(silent).mean())
    places = [(x <= 0).mean((1, 2)) for x in inputs]
    close(found["closed"], np.concatenate(places, axis=-1).mean())


def test_tanh_is_closed_where_it_is_flat():
    def widen(params):
        params["Conv_0"]["kernel"] *= 5
        params["Conv_1"]["bias"][0] = 100
        return params

    found, inputs = measure("tanh", widen)
    closed = [np.abs(1 - np.tanh(x.astype(float)) ** 2) < 0.005 for x in inputs]
    share = np.concatenate([c.mean((1, 2)) for c in closed], axis=-1).mean()
    assert share > 0.1
    close(found["closed"], share)
    close(found["dead"], 1 / 20)


def test_leaky_relu_never_closes():
    found, _ = measure("leaky_relu")
    assert found["closed"] == found["dead"] == 0


def test_images_are_standardised_one_by_one():
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.zeros(5, jnp.uint8)}
    ours = activations.standardise(activations.Config(), batch, None)["image"]
    theirs = functional.layer_norm(torch.tensor(images).float(), (28, 28, 1))
    close(ours, theirs, 1e-4)
