"""Losses of detectors against torch, and the focal losses against their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from dl_core.ops import losses

LOGITS = jnp.linspace(-9, 9, 37)


def value_and_gradient(loss, x):
    return jax.value_and_grad(lambda x: loss(x).sum())(jnp.asarray(x))


def torch_value_and_gradient(loss, x):
    x = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    value = loss(x).sum()
    value.backward()
    return value.item(), x.grad.numpy()


@pytest.mark.parametrize("yes", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_sigmoid_focal_is_the_papers_formula(yes, gamma):
    targets = jnp.full(LOGITS.shape, yes)

    def formula(x):
        p = torch.sigmoid(x)
        p_t, alpha_t = (p, 0.25) if yes else (1 - p, 0.75)
        return -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)

    value, gradient = value_and_gradient(
        lambda x: losses.sigmoid_focal(x, targets, 0.25, gamma), LOGITS
    )
    expected, slope = torch_value_and_gradient(formula, LOGITS)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_softmax_focal_is_the_papers_formula(gamma):
    random = np.random.default_rng(0)
    logits = 4 * random.standard_normal((20, 4))
    labels = jnp.asarray(random.integers(0, 4, 20))
    alpha = jnp.array([0.25, 0.75, 0.5, 1.0])

    def formula(x):
        p_t = torch.softmax(x, -1)[torch.arange(20), torch.tensor(np.asarray(labels))]
        return (
            -torch.tensor(np.asarray(alpha[labels]))
            * (1 - p_t) ** gamma
            * torch.log(p_t)
        )

    value, gradient = value_and_gradient(
        lambda x: losses.softmax_focal(x, labels, alpha, gamma), logits
    )
    expected, slope = torch_value_and_gradient(formula, logits)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_gamma_0_is_weighted_cross_entropy_exactly():
    targets = jnp.arange(len(LOGITS)) % 2 == 0
    weights = jnp.where(targets, 0.3, 1 - jnp.float32(0.3))

    def weighted(x):
        return weights * jax.nn.softplus(jnp.where(targets, -x, x))

    def focal(x, gamma):
        return losses.sigmoid_focal(x, targets, jnp.float32(0.3), gamma)

    # A traced γ, as in a sweep, is no other.
    found = jax.jit(lambda x, gamma: value_and_gradient(lambda x: focal(x, gamma), x))
    value, gradient = found(LOGITS, 0.0)
    expected, slope = jax.jit(lambda x: value_and_gradient(weighted, x))(LOGITS)
    assert value == expected
    np.testing.assert_array_equal(gradient, slope)
    bce = optax.sigmoid_binary_cross_entropy(LOGITS, targets)
    np.testing.assert_allclose(losses.sigmoid_focal(LOGITS, targets), bce, rtol=1e-5)


def test_gamma_0_of_the_softmax_is_cross_entropy_exactly():
    logits = jax.random.normal(jax.random.key(0), (8, 3))
    labels = jnp.arange(8) % 3

    def cross_entropy(x):
        return jax.nn.logsumexp(x, -1) - x[jnp.arange(8), labels]

    found = jax.jit(lambda x: losses.softmax_focal(x, labels, None, 0.0))(logits)
    np.testing.assert_array_equal(found, jax.jit(cross_entropy)(logits))
    _, gradient = value_and_gradient(lambda x: losses.softmax_focal(x, labels), logits)
    _, slope = value_and_gradient(cross_entropy, logits)
    np.testing.assert_array_equal(gradient, slope)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_losses_of_what_is_certain_have_finite_gradients(gamma):
    extreme = jnp.array([-200.0, -90, 90, 200])
    for yes in (True, False):
        value, gradient = value_and_gradient(
            lambda x, yes=yes: losses.sigmoid_focal(x, jnp.full(4, yes), 0.25, gamma),
            extreme,
        )
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    pairs = jnp.stack([extreme, -extreme], -1)
    value, gradient = value_and_gradient(
        lambda x: losses.softmax_focal(x, jnp.zeros(4, int), 0.25, gamma), pairs
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_is_torchs(beta):
    value, gradient = value_and_gradient(lambda x: losses.smooth_l1(x, beta), LOGITS)
    expected, slope = torch_value_and_gradient(
        lambda x: torch.nn.functional.smooth_l1_loss(
            x, torch.zeros_like(x), beta=beta, reduction="none"
        ),
        LOGITS,
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


def test_yolos_sum_of_squares_is_equation_3():
    random = np.random.default_rng(0)
    codes, target = random.random((3, 3, 2, 4)), random.random((3, 3, 4))
    confidences, wanted = random.random((3, 3, 2)), random.random((3, 3, 2))
    classes = random.random((3, 3, 5))
    one_hot = np.eye(5)[random.integers(0, 5, (3, 3))]
    responsible = np.zeros((3, 3, 2), bool)
    responsible[0, 1, 1] = responsible[2, 2, 0] = True
    parts = dict.fromkeys(("coordinates", "object", "no_object", "classes"), 0.0)
    for cell in np.ndindex(3, 3):
        for j in range(2):
            if responsible[*cell, j]:
                away = codes[*cell, j] - target[cell]
                parts["coordinates"] += 5 * (away**2).sum()
                parts["object"] += (confidences[*cell, j] - wanted[*cell, j]) ** 2
                parts["classes"] += ((classes[cell] - one_hot[cell]) ** 2).sum()
            else:
                parts["no_object"] += 0.5 * confidences[*cell, j] ** 2
    found = losses.yolo_sum_of_squares(
        *map(jnp.asarray, (codes, confidences, classes, target, wanted, one_hot)),
        jnp.asarray(responsible),
    )
    assert found.keys() == parts.keys()
    for name, value in parts.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
