"""A step of the game, against torch and against steps put together by hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import torch

from dl_core.nn.normalization import BatchNorm, SpectralNorm
from dl_core.train.adversarial import Game, GanState

LATENT, SIZE, BATCH = 3, 4, 5
KEY = jax.random.key(7)


class Critic(nn.Module):
    """Two layers, with what is between them."""

    batch_norm: bool = False
    spectral: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        layer = nn.Dense(6, name="first")
        x = SpectralNorm(layer)(x, train=train) if self.spectral else layer(x)
        if self.batch_norm:
            x = BatchNorm(name="norm")(x, train=train)
        return nn.Dense(1, name="second")(jnp.tanh(x))[:, 0]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def batches(updates):
    """Returns what the critic's updates read, and what the generator's."""
    real = {
        "example": 2 + normal(0, updates, BATCH, SIZE),
        "latent": normal(1, updates, BATCH, LATENT),
    }
    return real, {"latent": normal(2, BATCH, LATENT)}


def make(critic=None, **rules):
    """Returns the rules and the first state of a game of a linear generator."""
    generator, critic = nn.Dense(SIZE), critic or Critic()

    def criticise(variables, x, batch):
        return critic.apply(variables, x, train=True, mutable=["batch_stats"])

    def generate(variables, batch):
        return generator.apply(variables, batch["latent"]), {}

    rules = {"objective": "wasserstein"} | rules
    game = Game(
        generate,
        criticise,
        generator_optimizer=optax.sgd(0.1),
        critic_optimizer=optax.sgd(0.1),
        **rules,
    )
    first, second = (
        network.init(key, jnp.zeros((2, size)), **more)
        for network, key, size, more in zip(
            (generator, critic),
            jax.random.split(jax.random.key(0)),
            (LATENT, SIZE),
            ({}, {"train": True}),
            strict=True,
        )
    )
    return game, GanState.create(
        first, second, game.generator_optimizer, game.critic_optimizer
    )


def play(game, state, real, generated, key=KEY):
    return jax.jit(lambda *args: game.play(*args))(state, real, generated, key)


def assert_equal(ours, wanted, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, wanted)


def test_a_step_with_the_penalty_is_torchs():
    game, state = make(penalty=3.0)
    real, generated = batches(1)
    new, losses = play(game, state, real, generated)
    # The key of the first update, and its draw of the places, uniform on [0, 1).
    mix = np.array(jax.random.uniform(jax.random.split(KEY, 1)[0], (BATCH,)))

    def tensors(params, *names):
        return [torch.tensor(np.array(params[n]), requires_grad=True) for n in names]

    params = state.critic.params
    names = ("kernel", "bias")
    weights = [w for part in ("first", "second") for w in tensors(params[part], *names)]
    generator = tensors(state.generator.params, *names)

    def score(x):
        a, b, c, d = weights
        return (torch.tanh(x @ a + b) @ c + d)[:, 0]

    def generate(latents):
        return torch.tensor(np.array(latents)) @ generator[0] + generator[1]

    fakes = generate(real["latent"][0]).detach()
    reals = torch.tensor(np.array(real["example"][0]))
    share = torch.tensor(mix)[:, None]
    between = ((1 - share) * reals + share * fakes).requires_grad_()
    (slopes,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    loss = score(fakes).mean() - score(reals).mean()
    loss = loss + 3.0 * ((slopes.norm(dim=1) - 1) ** 2).mean()
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 0.1 * gradient
    np.testing.assert_allclose(losses["critic_loss"], loss.item(), rtol=1e-5)
    ours = [new.critic.params[p][n] for p in ("first", "second") for n in names]
    assert_equal(ours, [w.detach().numpy() for w in weights])

    # The generator plays against the critic as it is now.
    loss = -score(generate(generated["latent"])).mean()
    gradients = torch.autograd.grad(loss, generator)
    np.testing.assert_allclose(losses["generator_loss"], loss.item(), rtol=1e-5)
    wanted = [
        (w - 0.1 * g).detach().numpy()
        for w, g in zip(generator, gradients, strict=True)
    ]
    assert_equal([new.generator.params[n] for n in names], wanted)
    assert new.step == 1


def penalties(batch, keys):
    """Returns the penalties of a critic whose slope is where it looks, 0 to 1."""

    def criticise(variables, x, batch):
        return variables["params"]["weight"] * x[:, 0] ** 2 / 2, {}

    def generate(variables, _):
        return variables["params"]["one"] * jnp.ones((batch, 1)), {}

    optimizer = optax.sgd(0.0)
    game = Game(generate, criticise, "wasserstein", optimizer, optimizer, penalty=1.0)
    players = {"params": {"one": jnp.ones(())}}, {"params": {"weight": jnp.ones(())}}
    state = GanState.create(*players, optimizer, optimizer)
    real = {"example": jnp.zeros((1, batch, 1))}

    def penalty(key):
        _, losses = game.play(state, real, {"latent": jnp.zeros(batch)}, key)
        return losses["critic_loss"] - 0.5  # The score of 1, less that of 0.

    return np.asarray(jax.jit(jax.vmap(penalty))(keys))


def test_the_penalty_looks_at_places_uniform_between_the_pairs():
    keys = jax.random.split(jax.random.key(0), 2000)
    places = 1 - np.sqrt(penalties(1, keys))
    assert scipy.stats.kstest(places, "uniform").pvalue > 0.01
    # Each pair has a place of its own: the mean of (1 - place)² is 1/3 in any batch.
    np.testing.assert_allclose(penalties(4000, keys[:10]), 1 / 3, atol=0.03)


def test_clipping_bounds_the_critic_alone():
    game, state = make(clip=0.05)
    real, generated = batches(2)
    new, _ = play(game, state, real, generated)
    weights = jnp.concatenate([w.ravel() for w in jax.tree.leaves(new.critic.params)])
    assert jnp.abs(weights).max() == pytest.approx(0.05)
    assert jnp.abs(weights).min() < 0.05
    assert jnp.abs(new.generator.params["kernel"]).max() > 0.05


@pytest.mark.parametrize("apart", [False, True])
def test_batch_statistics_of_real_and_generated_mix_unless_kept_apart(apart):
    game, state = make(Critic(batch_norm=True), apart=apart)
    real, generated = batches(1)
    new, losses = play(game, state, real, generated)
    params = state.critic.params
    norm = torch.nn.BatchNorm1d(6)

    def score(x):
        first, second = (
            {k: torch.tensor(np.array(v)) for k, v in params[name].items()}
            for name in ("first", "second")
        )
        x = norm(torch.tensor(np.array(x)) @ first["kernel"] + first["bias"])
        return (torch.tanh(x) @ second["kernel"] + second["bias"])[:, 0]

    reals = real["example"][0]
    fakes, _ = game.generate(state.generator.variables, {"latent": real["latent"][0]})
    with torch.no_grad():
        if apart:
            scores, others = score(reals), score(fakes)
        else:
            scores, others = score(jnp.concatenate([reals, fakes])).chunk(2)
        loss = others.mean() - scores.mean()
    np.testing.assert_allclose(losses["critic_loss"], loss.item(), atol=1e-5)
    ours = new.critic.collections["batch_stats"]["norm"]
    np.testing.assert_allclose(ours["mean"], norm.running_mean, atol=1e-5)
    # What the generator's update shows to the critic leaves no trace in it.
    assert_equal(new.generator.collections, state.generator.collections)


def test_each_update_of_the_critic_sees_its_own_examples():
    game, state = make(Critic(spectral=True))
    real, generated = batches(3)
    new, losses = play(game, state, real, generated)
    # The same as single steps with a generator that rests.
    resting = dataclasses.replace(game, generator_optimizer=optax.sgd(0.0))
    single = state
    for i in range(3):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], real)
        single, last = play(resting, single, part, generated)
    assert_equal(new.critic, single.critic)
    np.testing.assert_allclose(losses["critic_loss"], last["critic_loss"], atol=1e-6)
    repeated = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), real)
    other, _ = play(game, state, repeated, generated)
    kernels = (s.critic.params["first"]["kernel"] for s in (new, other))
    assert not np.allclose(*kernels, atol=1e-4)
    assert new.step == 1


def test_the_average_follows_the_generator():
    game, state = make(decay=0.75)
    real, generated = batches(1)
    new, _ = play(game, state, real, generated)
    wanted = jax.tree.map(
        lambda old, now: 0.75 * old + 0.25 * now,
        state.generator.variables,
        new.generator.variables,
    )
    assert_equal(new.average, wanted)
    last, _ = play(dataclasses.replace(game, decay=0.0), new, real, generated)
    assert_equal(last.average, last.generator.variables)


def test_what_the_generators_update_does_to_the_critic_is_dropped():
    game, state = make(Critic(spectral=True))
    real, generated = batches(1)
    new, _ = play(game, state, real, generated)
    other = {"latent": generated["latent"] + 1}
    changed, _ = play(game, state, real, other)
    assert_equal(new.critic, changed.critic, atol=0)
    assert not np.allclose(
        new.generator.params["kernel"], changed.generator.params["kernel"]
    )
