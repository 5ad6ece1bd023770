"""The loss of music: torch's over the frames that are there, whatever the padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.config import replace
from dl_core.data.music import KEYS, padded, read
from experiments.sequences import music

_SMALL = {"model.channels": 8, "model.dropout": 0.0}


@pytest.fixture(scope="module")
def pieces():
    """Three pieces of different lengths."""
    lengths = (9, 5, 12)
    return [read()["test"][number][:n] for number, n in enumerate(lengths)]


evaluate = jax.jit(music.eval_step)


def config_of(name):
    return replace(music.Config(), _SMALL | {"model.name": name})


def batch_of(pieces, frames=0):
    return jax.tree.map(jnp.asarray, padded(pieces, frames))


def step(config, state, batch):
    """Returns the loss and the gradients, as a step of size 1 finds them."""
    config = replace(config, {"optimizer.name": "sgd", "optimizer.learning_rate": 1.0})
    state = state.replace(opt_state=config.optimizer.make().init(state.params))
    after, metrics = jax.jit(music.train_step)(config, state, batch, jax.random.key(1))
    return metrics["loss"], jax.tree.map(jnp.subtract, state.params, after.params)


@pytest.mark.parametrize("name", ["tcn", "gru"])
def test_the_loss_is_torchs_over_all_frames(name, pieces):
    config = config_of(name)
    state = jax.jit(music.init)(config, jax.random.key(0))
    total, frames = 0.0, 0
    for piece in pieces:
        roll = jnp.asarray(piece[None], jnp.float32)
        model = music.SequenceModel(config.model, KEYS)
        logits, _ = model.apply({"params": state.params}, roll[:, :-1], train=False)
        total += torch.nn.functional.binary_cross_entropy(
            torch.sigmoid(torch.tensor(np.asarray(logits[0], np.float64))),
            torch.tensor(piece[1:].astype(np.float64)),
            reduction="sum",
        ).item()
        frames += len(piece) - 1
    batch = batch_of(pieces)
    loss, _ = step(config, state, batch)
    np.testing.assert_allclose(loss, total / frames, rtol=1e-5)
    batch["mask"] = jnp.ones(len(pieces))
    measured = evaluate(config, state, batch)["loss"].compute()
    np.testing.assert_allclose(measured, total / frames, rtol=1e-5)


@pytest.mark.parametrize("name", ["tcn", "gru"])
def test_padding_changes_neither_loss_nor_gradients(name, pieces):
    config = config_of(name)
    state = jax.jit(music.init)(config, jax.random.key(0))
    loss, gradients = step(config, state, batch_of(pieces))
    batch = batch_of(pieces, 20)
    noise = jax.random.bernoulli(jax.random.key(2), 0.5, batch["roll"].shape)
    after = jnp.arange(20)[:, None] >= batch["length"][:, None, None]
    batch["roll"] = jnp.where(after, noise, batch["roll"]).astype(jnp.uint8)
    same, same_gradients = step(config, state, batch)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradients,
        same_gradients,
    )


def test_pieces_that_are_masked_do_not_count(pieces):
    config = config_of("tcn")
    state = jax.jit(music.init)(config, jax.random.key(0))
    batch = batch_of(pieces) | {"mask": jnp.array([1.0, 1.0, 0.0])}
    measured = evaluate(config, state, batch)["loss"]
    assert measured.count == 8 + 4
    fewer = batch_of(pieces[:2]) | {"mask": jnp.ones(2)}
    expected = evaluate(config, state, fewer)["loss"].compute()
    np.testing.assert_allclose(measured.compute(), expected, rtol=1e-5)


def test_what_is_shown_is_what_is_measured():
    config = config_of("tcn")
    state = jax.jit(music.init)(config, jax.random.key(0))
    seen = jax.jit(music.observe)(config, state, jax.random.key(1))
    first = read()["test"][0]
    np.testing.assert_array_equal(seen["played"], first[1:])
    played, expected = np.asarray(seen["played"]), np.asarray(seen["expected"])
    likely = np.where(played, expected, 1 - expected)
    batch = batch_of([first]) | {"mask": jnp.ones(1)}
    measured = evaluate(config, state, batch)["loss"].compute()
    np.testing.assert_allclose(-np.log(likely).sum(1).mean(), measured, rtol=1e-5)
