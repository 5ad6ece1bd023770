"""Losses of GANs and the gradient penalty against torch's functions and autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.ops.adversarial import critic_loss, generator_loss, gradient_penalty


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def entropy(scores, target):
    """Binary cross-entropy with a constant target, as torch has it."""
    return functional.binary_cross_entropy_with_logits(
        scores, torch.full_like(scores, target)
    )


def margin(scores, target):
    """Hinge loss of scores with a constant target of 1 or -1, as torch has it.

    At least 0 where the target is -1: max(0, margin - score), of the negative score.
    """
    scores = scores if target > 0 else -scores
    negative = torch.full_like(scores, -1.0)
    return functional.hinge_embedding_loss(scores, negative, margin=1.0)


CRITICS = {
    "saturating": lambda real, fake: entropy(real, 1.0) + entropy(fake, 0.0),
    "non_saturating": lambda real, fake: entropy(real, 1.0) + entropy(fake, 0.0),
    "hinge": lambda real, fake: margin(real, 1) + margin(fake, -1),
    "wasserstein": lambda real, fake: fake.mean() - real.mean(),
}
GENERATORS = {
    "saturating": lambda fake: -entropy(fake, 0.0),
    "non_saturating": lambda fake: entropy(fake, 1.0),
    "hinge": lambda fake: -fake.mean(),
    "wasserstein": lambda fake: -fake.mean(),
}


@pytest.mark.parametrize("objective", CRITICS)
def test_losses_are_torchs(objective):
    real, fake = 3 * normal(0, 40), 3 * normal(1, 40)
    ours, gradients = jax.value_and_grad(
        lambda real, fake: critic_loss(objective, real, fake), argnums=(0, 1)
    )(real, fake)
    theirs = [torch.tensor(np.array(x), requires_grad=True) for x in (real, fake)]
    loss = CRITICS[objective](*theirs)
    wanted = torch.autograd.grad(loss, theirs)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    for gradient, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-6)

    ours, gradient = jax.value_and_grad(lambda x: generator_loss(objective, x))(fake)
    loss = GENERATORS[objective](theirs[1])
    (wanted,) = torch.autograd.grad(loss, theirs[1])
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


@pytest.mark.parametrize("objective", ["saturating", "non_saturating"])
def test_large_scores_overflow_nowhere(objective):
    scores = jnp.array([-1e4, 1e4])
    assert critic_loss(objective, scores, scores) == pytest.approx(1e4)
    assert abs(generator_loss(objective, scores)) == pytest.approx(5e3)


@pytest.mark.parametrize("shape", [(7, 3), (5, 4, 4, 2)])
def test_the_penalty_and_its_gradients_are_torchs(shape):
    real, fake, mix = normal(0, *shape), normal(1, *shape), normal(2, shape[0]) % 1
    size = int(np.prod(shape[1:]))
    first, second = normal(3, size, 6) / 2, normal(4, 6)

    def ours(first, second, real, fake):
        def score(x):
            return jnp.tanh(x.reshape(len(x), -1) @ first) @ second

        return gradient_penalty(score, real, fake, mix)

    value, gradients = jax.value_and_grad(ours, argnums=range(4))(
        first, second, real, fake
    )
    tensors = [
        torch.tensor(np.array(x), requires_grad=True)
        for x in (first, second, real, fake)
    ]
    w, a, x, y = tensors
    share = torch.tensor(np.array(mix)).reshape(-1, *[1] * (len(shape) - 1))
    between = torch.lerp(x, y, share)
    scores = torch.tanh(between.flatten(1) @ w) @ a
    (slopes,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    loss = ((slopes.flatten(1).norm(dim=1) - 1) ** 2).mean()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    wanted = torch.autograd.grad(loss, tensors)
    for gradient, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-5)


def test_a_score_without_slope_has_a_penalty_of_one_and_a_gradient():
    x = normal(0, 4, 3)

    def penalty(weight):
        return gradient_penalty(lambda x: x @ weight, x, x, jnp.zeros(4))

    value, gradient = jax.value_and_grad(penalty)(jnp.zeros(3))
    assert value == pytest.approx(1)
    assert np.all(np.isfinite(gradient))
