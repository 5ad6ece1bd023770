"""Update rules against torch's, and the descent of a state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.train.optimizers import Optimizer, Warmed
from dl_core.train.state import TrainState

STEPS = 20
RULES = {
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
START = np.array([0.5, -1.5, 2.0]), np.array([[1.0], [-0.3]])
"""Two leaves, so that a norm of one is not that of the whole."""
SCALES = np.random.default_rng(0).uniform(0.1, 3, STEPS)


def loss(tree, scale):
    """Returns a loss that is neither quadratic nor the same at every step."""
    a, b = tree
    return scale * ((a**2).sum() * (b**2).sum() + (a**4).sum() + (a[0] * b).sum())


def in_torch(config):
    """Returns the parameters after each step, and the norms of the gradients."""
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in START]
    rule = RULES[config.name](leaves, lr=config.learning_rate)
    stairs = torch.optim.lr_scheduler.StepLR(
        rule, config.stair or STEPS, config.stair_factor
    )
    visited, norms = [], []
    for scale in SCALES:
        rule.zero_grad()
        loss(leaves, scale).backward()
        bound = config.clip or torch.inf
        norms.append(float(torch.nn.utils.clip_grad_norm_(leaves, bound)))
        rule.step()
        stairs.step()
        visited.append([leaf.detach().numpy().copy() for leaf in leaves])
    return visited, norms


def ours(config):
    params = tuple(jnp.asarray(leaf, jnp.float32) for leaf in START)
    state = TrainState.create({"params": params}, config.make())

    # The traced fields are arguments of the program, as in an experiment.
    @jax.jit
    def step(config, state, scale):
        return state.descend(lambda params: loss(params, scale), config.make())

    visited, told = [], []
    for scale in SCALES:
        state, metrics = step(config, state, jnp.float32(scale))
        visited.append(state.params)
        told.append(metrics)
    assert state.step == STEPS
    return visited, told


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("stair", [0, 6])
def test_a_run_is_that_of_torch(name, clip, stair):
    rate = 1e-2 if name == "adam" else 3e-3
    config = Optimizer(
        name=name, learning_rate=rate, clip=clip, stair=stair, stair_factor=0.3
    )
    visited, told = ours(config)
    wanted, norms = in_torch(config)
    for mine, theirs in zip(visited, wanted, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    # What is told is the norm before it is clipped.
    np.testing.assert_allclose([m["gradient_norm"] for m in told], norms, rtol=1e-4)
    assert max(norms) > 3


def test_a_warmed_run_is_that_of_torch():
    config = Warmed(
        learning_rate=1e-2, warmup=5, least=0.1, weight_decay=0.3, clip=1.0, beta2=0.98
    )
    vector, matrix = (torch.tensor(leaf, requires_grad=True) for leaf in START)
    groups = [{"params": [vector], "weight_decay": 0.0}, {"params": [matrix]}]
    rule = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.3)
    after = torch.optim.lr_scheduler.CosineAnnealingLR(rule, STEPS - 5, eta_min=1e-3)
    params = tuple(jnp.asarray(leaf, jnp.float32) for leaf in START)
    state = TrainState.create({"params": params}, config.make(STEPS))

    @jax.jit
    def step(config, state, scale):
        return state.descend(lambda params: loss(params, scale), config.make(STEPS))

    for place, scale in enumerate(SCALES):
        if place < 5:
            for group in rule.param_groups:
                group["lr"] = 1e-2 * (place + 1) / 6
        elif place == 5:
            for group in rule.param_groups:
                group["lr"] = 1e-2
        else:
            after.step()
        rule.zero_grad()
        loss((vector, matrix), scale).backward()
        torch.nn.utils.clip_grad_norm_([vector, matrix], 1.0)
        rule.step()
        state, _ = step(config, state, jnp.float32(scale))
    for mine, theirs in zip(state.params, (vector, matrix), strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_the_loss_told_is_that_before_the_step():
    visited, told = ours(Optimizer())
    before = loss(START, SCALES[0]), loss(visited[0], SCALES[1])
    np.testing.assert_allclose([m["loss"] for m in told[:2]], before, rtol=1e-5)


def test_no_clip_leaves_gradients_and_a_bound_scales_all_of_them():
    gradients = (jnp.full(3, 300.0), jnp.full((2, 1), -400.0))
    norm = np.sqrt(3 * 300.0**2 + 2 * 400.0**2)
    for clip, factor in ((0.0, 1.0), (7.0, 7.0 / norm), (1e6, 1.0)):
        rule = Optimizer(name="sgd", learning_rate=1.0, clip=clip).make()
        updates, _ = rule.update(gradients, rule.init(gradients))
        for update, gradient in zip(updates, gradients, strict=True):
            np.testing.assert_allclose(update, -factor * gradient, rtol=1e-6)


def test_collections_stay_as_they_are():
    rule = Optimizer().make()
    variables = {"params": jnp.ones(2), "batch_stats": {"mean": jnp.zeros(2)}}
    state, _ = TrainState.create(variables, rule).descend(jnp.sum, rule)
    assert state.collections == {"batch_stats": variables["batch_stats"]}
    assert state.step == 1
    assert np.all(state.params < 1)


def test_rates_and_bounds_share_a_program():
    one = Optimizer(learning_rate=1e-3, clip=1.0, stair_factor=0.5)
    same = dataclasses.replace(one, learning_rate=1.0, clip=0.0, stair_factor=1.0)
    other = dataclasses.replace(one, stair=10)
    structures = [jax.tree.structure(config) for config in (one, same, other)]
    assert structures[0] == structures[1] != structures[2]
