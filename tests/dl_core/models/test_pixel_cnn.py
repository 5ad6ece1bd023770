"""PixelCNNs: what they see, that they are distributions, and that samples follow."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dl_core.models.pixel_cnn import GatedPixelCNN, PixelCNN
from dl_core.ops.autoregression import sample

both = pytest.mark.parametrize("network", [PixelCNN, GatedPixelCNN])


def small(network, **settings):
    """Returns a network with one tap around, three channels or a multiple."""
    sizes = {"features": 3, "blocks": 2, "head": 6, "first_kernel": 3}
    return network(**sizes | settings)


def random_variables(model, seed, *args):
    """Returns variables of which all, biases too, are normal."""
    variables = jax.eval_shape(model.init, jax.random.key(0), *args)
    rng = np.random.default_rng(seed)

    def normal(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.2
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(normal, variables)


def every(shape, levels):
    """Returns all images there are, one a row."""
    values = itertools.product(range(levels), repeat=int(np.prod(shape)))
    return jnp.array(list(values), jnp.int32).reshape(-1, *shape)


def support(model, shape):
    """Returns where logits have gradients: "out in", by sub-pixel in reading order."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(2 * rng.standard_normal((8, *shape)), jnp.float32)
    variables = random_variables(model, 0, images)

    def logits(image):
        return model.apply(variables, image[None])[0][0]

    size = int(np.prod(shape))
    found = np.asarray(jax.jit(jax.vmap(jax.jacrev(logits)))(images))
    # Behind a closed ReLU a gradient is zero too: one open for any image will do.
    return (found.reshape(8, size, -1, size) != 0).any((0, 2))


def reach(shape, blocks):
    """Returns what a plain stack of 3×3 masks lets pass, from place to place."""
    places = list(itertools.product(*map(range, shape)))
    first, later = np.zeros((2, len(places), len(places)), bool)
    for (o, out), (i, at) in itertools.product(enumerate(places), repeat=2):
        near = abs(out[0] - at[0]) <= 1 and abs(out[1] - at[1]) <= 1
        first[o, i], later[o, i] = near and at < out, near and at <= out
    for _ in range(blocks):
        first = later @ first
    return first


@pytest.mark.parametrize(("shape", "levels"), [((4, 5, 1), 2), ((2, 3, 3), 3)])
def test_gated_logits_see_all_that_comes_before_and_nothing_else(shape, levels):
    model = small(GatedPixelCNN, blocks=4, features=12, head=24, levels=levels)
    before = np.tri(int(np.prod(shape)), k=-1, dtype=bool)
    np.testing.assert_array_equal(support(model, shape), before)


@pytest.mark.parametrize("shape", [(4, 5, 1), (2, 3, 3)])
def test_plain_logits_see_what_their_masks_let_pass_but_for_a_blind_spot(shape):
    found = support(small(PixelCNN, blocks=4, features=12, head=24), shape)
    np.testing.assert_array_equal(found, reach(shape, 4))
    assert not found[~np.tri(len(found), k=-1, dtype=bool)].any()
    # Of the row above, the pixels up to the next column are seen, however deep it is.
    places = np.arange(len(found)).reshape(shape)
    assert found[places[1, 0]][:, places[0, :2].ravel()].all()
    assert not found[places[1, 0]][:, places[0, 2:].ravel()].any()


@pytest.mark.parametrize(
    ("shape", "levels", "classes"),
    [((3, 3, 1), 2, 0), ((3, 3, 1), 2, 3), ((1, 2, 3), 3, 0)],
)
@both
def test_the_probabilities_of_all_images_sum_to_one(network, shape, levels, classes):
    images = every(shape, levels)
    assert len(images) in (512, 729)
    model = small(network, levels=levels, classes=classes)

    @jax.jit
    def log_prob(labels):
        given = (jnp.full(len(images), labels),) if classes else ()
        variables = random_variables(model, 1, images, *given)
        return model.apply(variables, images, *given, method="log_prob")

    nats = np.asarray(log_prob(0))
    np.testing.assert_allclose(np.exp(nats.astype(float)).sum(), 1, atol=1e-5)
    assert nats.std() > 0.1
    if classes:
        other = np.asarray(log_prob(2))
        np.testing.assert_allclose(np.exp(other.astype(float)).sum(), 1, atol=1e-5)
        assert np.abs(nats - other).max() > 0.1


def drawn(model, variables, key, values, known=None):
    @jax.jit
    def run(variables, key, values, known):
        return sample(lambda x: model.apply(variables, x)[0], key, values, known)

    return run(variables, key, values, known)


@pytest.mark.parametrize(
    ("network", "levels"), [(PixelCNN, 2), (GatedPixelCNN, 2), (GatedPixelCNN, 4)]
)
def test_with_huge_logits_a_sample_is_their_argmax(network, levels):
    model = small(network, levels=levels)
    empty = jnp.zeros((2, 4, 3, 3), jnp.int32)
    variables = random_variables(model, 3, empty)
    last = jax.tree.map(lambda v: v * 1e6, variables["params"]["logits"])
    variables = {"params": {**variables["params"], "logits": last}}
    images = drawn(model, variables, jax.random.key(0), empty)
    assert images.dtype == empty.dtype
    assert 0 < images.mean() < levels - 1
    logits, _ = jax.jit(model.apply)(variables, images)
    best = logits > 0 if levels == 2 else logits.argmax(-1)
    np.testing.assert_array_equal(images, best)
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize(("shape", "levels"), [((2, 2, 1), 2), ((1, 1, 3), 3)])
@both
def test_samples_and_completions_follow_the_probabilities(network, shape, levels):
    model, images = small(network, levels=levels), every(shape, levels)
    variables = random_variables(model, 4, images)
    log_prob = jax.jit(functools.partial(model.apply, method="log_prob"))
    probabilities = np.exp(np.asarray(log_prob(variables, images), float))
    count, digits = 20_000, levels ** np.arange(np.prod(shape))[::-1]

    def p_value(samples, probabilities):
        codes = np.asarray(samples).reshape(count, -1) @ digits
        counts = np.bincount(codes, minlength=len(images))
        expected, used = probabilities / probabilities.sum() * count, probabilities > 0
        assert not counts[~used].any()
        assert expected[used].min() > 5
        return scipy.stats.chisquare(counts[used], expected[used]).pvalue

    values = jnp.broadcast_to(images[-1], (count, *shape))
    samples = drawn(model, variables, jax.random.key(0), values)
    assert p_value(samples, probabilities) > 0.001
    # The first value known, here the largest level.
    known = jnp.zeros(shape, bool).at[0, 0, 0].set(True)
    known = jnp.broadcast_to(known, (count, *shape))
    completed = drawn(model, variables, jax.random.key(1), values, known)
    np.testing.assert_array_equal(completed[known], values[known])
    agree = np.asarray(images)[:, 0, 0, 0] == levels - 1
    assert p_value(completed, probabilities * agree) > 0.001


@both
def test_completion_keeps_what_is_given_and_nothing_else_of_the_image(network):
    model, rng = small(network), np.random.default_rng(5)
    images = jnp.asarray(rng.integers(2, size=(3, 4, 4, 1)), jnp.int32)
    known = jnp.asarray(rng.integers(2, size=images.shape), bool)
    variables = random_variables(model, 5, images)
    key = jax.random.key(2)
    completed = drawn(model, variables, key, images, known)
    np.testing.assert_array_equal(completed[known], images[known])
    assert (completed != images).any()
    flipped = jnp.where(known, images, 1 - images)
    np.testing.assert_array_equal(
        drawn(model, variables, key, flipped, known), completed
    )


def test_outputs_for_eight_bits_and_endpoints():
    images = jnp.zeros((2, 6, 5, 3), jnp.uint8)

    def outputs(model):
        return jax.eval_shape(
            lambda key: model.init_with_output(key, images)[0], jax.random.key(0)
        )

    logits, endpoints = outputs(small(PixelCNN, levels=256))
    assert logits.shape == (2, 6, 5, 3, 256)
    assert {k: v.shape[-1] for k, v in endpoints.items()} == {
        "first": 6,
        "block_0": 6,
        "block_1": 6,
    }
    logits, endpoints = outputs(small(GatedPixelCNN, blocks=1, levels=256))
    assert logits.shape == (2, 6, 5, 3, 256)
    assert {k: v.shape for k, v in endpoints.items()} == {
        f"{stack}_{number}": (2, 6, 5, 3)
        for stack in ("vertical", "horizontal")
        for number in (0, 1)
    }


@both
def test_what_does_not_fit_is_refused(network):
    images, key = jnp.zeros((2, 4, 4, 3)), jax.random.key(0)
    labels = jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="3 groups do not divide 3 channels and"):
        network(features=4, blocks=1, head=6).init(key, images)
    with pytest.raises(ValueError, match="no labels and 10 classes"):
        small(network, classes=10).init(key, images)
    with pytest.raises(ValueError, match=r"labels, got|got \(2,\) and 0 classes"):
        small(network).init(key, images, labels)
    with pytest.raises(ValueError, match=r"got 1 for \(2, 4, 4, 3\)"):
        small(network, levels=1).init(key, images)
