"""MADE against masks and layers in torch; that it is a distribution under any order."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from dl_core.models.made import MADE
from dl_core.ops.autoregression import sample

MODELS = {
    "fixed": MADE((20,)),
    "direct": MADE((20,), direct=True),
    "random": MADE((40, 40), random_order=True, random_degrees=True),
    "all": MADE((12, 7), direct=True, random_order=True, random_degrees=True),
}
models = pytest.mark.parametrize("name", MODELS)


def random_variables(model, seed, scale, values):
    """Returns variables of which all, biases too, are normal."""
    variables = jax.eval_shape(model.init, jax.random.key(0), values)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda v: jnp.asarray(scale * rng.standard_normal(v.shape), jnp.float32),
        variables,
    )


def every(shape):
    values = itertools.product(range(2), repeat=int(np.prod(shape)))
    return jnp.array(list(values), jnp.int32).reshape(-1, *shape)


def in_torch(model, params, values, degrees):
    """Returns logits from weights masked one by one, as the paper's equations say."""
    first, *hidden = ([int(d) for d in layer] for layer in degrees)
    x = inputs = torch.tensor(np.array(values).reshape(len(values), -1)).float()
    params = jax.tree.map(lambda v: torch.tensor(np.array(v)).requires_grad_(), params)

    def masked(kernel, below, above, compare):
        mask = [[compare(d, m) for m in above] for d in below]
        return kernel * torch.tensor(mask, dtype=torch.float32)

    below = first
    for number, above in enumerate(hidden):
        layer = params[f"hidden_{number}"]
        weights = masked(layer["kernel"], below, above, lambda d, m: m >= d)
        x, below = torch.relu(x @ weights + layer["bias"]), above
    layer = params["logits"]
    weights = masked(layer["kernel"], below, first, lambda m, d: d > m)
    logits = x @ weights + layer["bias"]
    if model.direct:
        kernel = params["direct"]["kernel"]
        logits = logits + inputs @ masked(kernel, first, first, lambda a, b: b > a)
    return logits, params


@models
def test_logits_and_gradients_are_torchs_under_masks(name):
    model, values = MODELS[name], every((3, 3))[::20]
    params = random_variables(model, 0, 0.7, values)["params"]

    @jax.jit
    def ours(params, seed):
        logits, _ = model.apply({"params": params}, values, seed)
        return jnp.sin(logits).sum(), logits

    (_, logits), by = jax.value_and_grad(ours, has_aux=True)(params, 3)
    wanted, tensors = in_torch(model, params, values, model.degrees(9, 3))
    np.testing.assert_allclose(
        logits.reshape(len(values), 9), wanted.detach(), atol=1e-5
    )
    torch.sin(wanted).sum().backward()
    for gradient, tensor in zip(
        jax.tree.leaves(by), jax.tree.leaves(tensors), strict=True
    ):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=1e-4)


@models
def test_a_logit_sees_what_comes_before_in_the_order_and_nothing_else(name):
    model, traces = MODELS[name], []
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(8, 6)), jnp.float32)
    variables = random_variables(model, 1, 0.7, inputs)

    @jax.jit
    def slopes(seed):
        traces.append(seed)

        def one(x):
            return model.apply(variables, x[None], seed)[0][0]

        return jax.vmap(jax.jacrev(one))(inputs)

    orders = set()
    for seed in range(3):
        found = np.asarray(slopes(seed) != 0).any(0)
        order = np.asarray(model.order(6, seed))
        orders.add(tuple(order.tolist()))
        place = np.argsort(order)
        before = place[None] < place[:, None]
        assert not found[~before].any()
        if name != "all":  # Whose last layer is narrow enough to have gaps.
            np.testing.assert_array_equal(found, before)
    assert len(traces) == 1
    assert len(orders) == (3 if model.random_order else 1)


@models
def test_the_probabilities_of_all_images_sum_to_one(name):
    model, images = MODELS[name], every((3, 3, 1))
    variables = random_variables(model, 2, 0.7, images)

    @jax.jit
    def log_prob(seed):
        return model.apply(variables, images, seed, method="log_prob")

    for seed in (0, 5):
        nats = np.asarray(log_prob(seed), float)
        np.testing.assert_allclose(np.exp(nats).sum(), 1, atol=1e-5)
        assert nats.std() > 0.1


def test_degrees_leave_no_unit_without_input_and_no_input_unseen():
    for width in (3, 8, 30):
        first, *hidden = MADE((width, width)).degrees(9)
        np.testing.assert_array_equal(first, range(1, 10))
        for degrees in hidden:
            assert degrees[0] == 1
            assert degrees[-1] == 8
            assert width < 8 or set(degrees.tolist()) == set(range(1, 9))
    model = MADE((50, 50, 50), random_order=True, random_degrees=True)
    first, *hidden = model.degrees(9, 1)
    assert sorted(first.tolist()) == list(range(1, 10)) != first.tolist()
    least = 1
    for degrees in hidden:
        assert least <= degrees.min()
        assert degrees.max() <= 8
        least = degrees.min()
    # Uniform: of 2,000 units each of 8 degrees has about 250.
    (_, degrees) = MADE((2_000,), random_degrees=True).degrees(9, 2)
    counts = np.bincount(degrees, minlength=9)[1:]
    assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_one_dimension_and_no_hidden_layers_are_distributions_too():
    for model, size in [(MADE((4,)), 1), (MADE((), direct=True), 4)]:
        images = every((size,))
        variables = random_variables(model, 3, 1.0, images)
        log_prob = jax.jit(functools.partial(model.apply, method="log_prob"))
        nats = log_prob(variables, images)
        np.testing.assert_allclose(jnp.exp(nats).sum(), 1, atol=1e-5)


def test_samples_follow_the_probabilities_in_the_models_order():
    model = MADE((20,), random_order=True, random_degrees=True)
    images, count = every((2, 2)), 20_000
    variables = random_variables(model, 4, 0.3, images)
    empty = jnp.zeros((count, 2, 2), jnp.int32)

    @jax.jit
    def run(seed, known):
        def logits(values):
            return model.apply(variables, values, seed)[0]

        order = model.order(4, seed)
        drawn = sample(logits, jax.random.key(1), empty + 1, known, order)
        return drawn, model.apply(variables, images, seed, method="log_prob")

    def p_value(samples, probabilities):
        codes = np.asarray(samples).reshape(count, 4) @ (8, 4, 2, 1)
        counts, used = np.bincount(codes, minlength=16), probabilities > 0
        expected = probabilities / probabilities.sum() * count
        assert not counts[~used].any()
        assert expected[used].min() > 5
        return scipy.stats.chisquare(counts[used], expected[used]).pvalue

    for seed in (0, 1):
        samples, nats = run(seed, empty > 0)
        probabilities = np.exp(np.asarray(nats, float))
        assert p_value(samples, probabilities) > 0.001
        # The first two in the order are known, and are ones.
        start = np.asarray(model.order(4, seed))[:2]
        known = np.zeros((count, 4), bool)
        known[:, start] = True
        samples, _ = run(seed, jnp.asarray(known.reshape(count, 2, 2)))
        fits = np.asarray(images).reshape(16, 4)[:, start].all(1)
        assert p_value(samples, probabilities * fits) > 0.001


def test_with_huge_logits_a_sample_is_their_argmax():
    model, empty = MODELS["all"], jnp.zeros((3, 3, 3), jnp.int32)
    params = random_variables(model, 6, 0.7, empty)["params"]
    for name in ("logits", "direct"):
        params[name] = jax.tree.map(lambda v: v * 1e6, params[name])

    def logits(values):
        return model.apply({"params": params}, values, 2)[0]

    images = jax.jit(lambda key: sample(logits, key, empty, order=model.order(9, 2)))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(images, logits(images) > 0)
    assert 0 < images.mean() < 1


def test_a_layer_without_units_is_refused():
    with pytest.raises(ValueError, match=r"got 4 inputs and hidden layers of \(5, 0\)"):
        MADE((5, 0)).init(jax.random.key(0), jnp.zeros((1, 4)))
