"""Gradients with respect to states against torch's autograd, cell by cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.config import replace
from experiments.sequences import gradients as module

TIME, HIDDEN, COUNT = 30, 5, 4
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)


def tiny(name, **changes):
    fields = {"length": TIME, "model.name": name, "model.hidden": HIDDEN}
    return replace(module.Config(), module.PRESETS["smoke"] | fields | changes)


def made(name, seed=0, **changes):
    """Returns a config, parameters that are large enough to be told apart, a batch."""
    config = tiny(name, **changes)
    params = module.init(config, jax.random.key(seed)).params
    params["head"]["kernel"] *= 30
    batch = module.adding_problem(jax.random.key(7), COUNT, TIME)
    return config, params, batch


def in_torch(name, params):
    """Returns torch's cell with the parameters of the layer."""
    kinds = {"rnn": "RNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}
    cell = getattr(torch.nn, kinds[name])(2, HIDDEN)
    gates = {"rnn": [""], "gru": ["r", "z", "n"], "lstm": ["i", "f", "g", "o"]}[name]
    (layer,) = params["network"].values()

    def stacked(side, leaf):
        zero = np.zeros(HIDDEN, np.float32)
        found = [layer[side + gate].get(leaf, zero) for gate in gates]
        return torch.tensor(np.concatenate([np.asarray(x).T for x in found]))

    with torch.no_grad():
        for ours, theirs in (("i", "ih"), ("h", "hh")):
            getattr(cell, f"weight_{theirs}").copy_(stacked(ours, "kernel"))
            getattr(cell, f"bias_{theirs}").copy_(stacked(ours, "bias"))
    return cell


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_gradients_are_those_of_torch_unrolled(name):
    config, params, batch = made(name)
    cell = in_torch(name, params)
    inputs = torch.tensor(np.asarray(batch["inputs"]), requires_grad=True)
    state, kept = None, []
    for t in range(TIME):
        state = cell(inputs[:, t], state)
        # Apart from here on: c acts on h at its own step, too.
        state = tuple(x + 0 for x in state) if name == "lstm" else state
        parts = state[::-1] if name == "lstm" else (state,)  # Ours is (c, h).
        for part in parts:
            part.retain_grad()
        kept.append(parts)
    head = torch.tensor(np.asarray(params["head"]["kernel"]))
    sums = (kept[-1][-1] @ head)[:, 0]
    ((sums - torch.tensor(np.asarray(batch["targets"]))) ** 2).sum().backward()
    zero = torch.zeros(COUNT, HIDDEN)
    wanted = [
        torch.cat([zero if x.grad is None else x.grad for x in parts], dim=1)
        for parts in kept
    ]
    found = module.carry_gradients(config, params, **batch)
    close(found, torch.stack(wanted, dim=1))
    close(module.input_gradients(config, params, **batch), inputs.grad)


def test_distance_0_is_the_gradient_of_the_head():
    config, params, _ = made("lstm")
    state = module.init(config, jax.random.key(0)).replace(params=params)
    seen = module.observe(config, state, jax.random.key(1))
    batch = module.adding_problem(jax.random.key(0), 64, TIME)
    errors = module.predict(config, params, batch["inputs"]) - batch["targets"]
    norm = 2 * np.abs(errors).mean() * np.linalg.norm(params["head"]["kernel"])
    assert seen["state"].shape == seen["input"].shape == (TIME,)
    np.testing.assert_allclose(seen["state"][0], norm, rtol=1e-5)


def test_a_tcn_sees_no_further_than_its_receptive_field():
    config, params, batch = made("tcn", **{"model.kernel_size": 3})
    assert config.model.receptive_field == 13
    norms = np.abs(module.input_gradients(config, params, **batch)).sum((0, 2))[::-1]
    assert (norms[:13] > 0).all()
    assert (norms[13:] == 0).all()


def test_the_gain_scales_the_recurrent_matrices_alone():
    plain, scaled = (made("gru", gain=gain)[1] for gain in (1.0, 1.5))
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain["network"]):
        (_, layer, kind) = (key.key for key in path)
        factor = 1.5 if layer[0] == "h" and kind == "kernel" else 1.0
        close(scaled["network"][path[0].key][layer][kind], factor * leaf)
    close(scaled["head"]["kernel"], plain["head"]["kernel"])


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_step_back_through_an_rnn_grows_no_more_than_by_the_gain(gain):
    config, params, batch = made("rnn", gain=gain)
    found = module.norm(module.carry_gradients(config, params, **batch))
    factors = np.asarray(found[:, :-1] / found[:, 1:])
    assert factors.max() <= gain * (1 + 1e-5)


def test_clipping_bounds_the_step_of_gradient_descent():
    changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 1.0}
    config = tiny("rnn", **changes, **{"optimizer.clip": 0.01})
    state = module.init(config, jax.random.key(0))
    batch = module.make_batch(config, jax.random.key(1))
    after, metrics = jax.jit(module.train_step)(config, state, batch, jax.random.key(2))
    moved = jax.tree.map(jnp.subtract, after.params, state.params)
    assert metrics["gradient_norm"] > 0.01
    total = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(moved)))
    np.testing.assert_allclose(total, 0.01, rtol=1e-4)
