"""DCGAN and the standard CNN against the same networks in torch, weights copied."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.models.conditioning import with_planes
from dl_core.models.dcgan import Critic, Generator
from launch import benchmark_gan, benchmark_gan_torch
from launch.benchmark_gan import Case

CASES = {
    "dcgan": Case(4, batch=3, size=16, channels=2, latent=5),
    "refined": Case(2, refined=True, batch=3, size=16, channels=1, latent=5),
    "batch_norm": Case(4, batch_norm=True, batch=3, size=16, channels=2, latent=5),
}
LABELS = jnp.array([0, 2, 1])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(ours, theirs, relative=1e-4):
    theirs = np.asarray(theirs)
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=relative)


def applied(network, variables, *args):
    """Returns the output in training, and the new collections."""
    (y, _), new = network.apply(variables, *args, train=True, mutable=["batch_stats"])
    return y, new


def gradients_like_torch(case, gradients, number):
    """Returns our gradients, in torch's layout and in the order of its parameters."""
    variables = list(benchmark_gan.initial(case))
    variables[number] = {**variables[number], "params": gradients}
    network = benchmark_gan_torch.networks(case, tuple(variables))[number]
    return [p.detach().numpy() for p in network.parameters()]


@pytest.mark.parametrize("name", ["dcgan", "refined"])
def test_the_generator_is_torchs(name):
    case = CASES[name]
    ours, _ = benchmark_gan.networks(case)
    variables, _ = benchmark_gan.initial(case)
    theirs, _ = benchmark_gan_torch.networks(case, benchmark_gan.initial(case))
    latents = normal(0, case.batch, case.latent)

    def loss(params, latents):
        images, new = applied(ours, {**variables, "params": params}, latents)
        return jnp.sum(jnp.cos(3 * images)), (images, new)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (images, new)), gradients = run(variables["params"], latents)
    z = torch.tensor(np.array(latents), requires_grad=True)
    wanted = theirs(z)
    torch.cos(3 * wanted).sum().backward()
    close(images, wanted.detach().permute(0, 2, 3, 1))
    close(gradients[1], z.grad)
    mine = gradients_like_torch(case, gradients[0], 0)
    for gradient, parameter in zip(mine, theirs.parameters(), strict=True):
        close(gradient, parameter.grad)
    # The running mean; torch's running variance is the unbiased one.
    mean = new["batch_stats"]["BatchNorm_0"]["mean"]
    norm = next(m for m in theirs if isinstance(m, torch.nn.BatchNorm2d))
    close(mean, norm.running_mean)


@pytest.mark.parametrize("name", CASES)
def test_the_critic_is_torchs(name):
    case = CASES[name]
    _, ours = benchmark_gan.networks(case)
    _, variables = benchmark_gan.initial(case)
    _, theirs = benchmark_gan_torch.networks(case, benchmark_gan.initial(case))
    images = normal(0, case.batch, case.size, case.size, case.channels)

    def loss(params, images):
        scores, new = applied(ours, {**variables, "params": params}, images)
        return jnp.sum(jnp.cos(3 * scores)), (scores, new)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, (scores, new)), gradients = run(variables["params"], images)
    x = torch.tensor(np.array(images)).permute(0, 3, 1, 2).requires_grad_()
    wanted = theirs(x)
    torch.cos(3 * wanted).sum().backward()
    close(scores, wanted.detach())
    close(gradients[1], x.grad.permute(0, 2, 3, 1))
    mine = gradients_like_torch(case, gradients[0], 1)
    for gradient, parameter in zip(mine, theirs.parameters(), strict=True):
        close(gradient, parameter.grad)
    # The singular vectors moved with the call, as torch's did.
    pair = benchmark_gan.initial(case)[0], {**variables, **new}
    _, moved = benchmark_gan_torch.networks(case, pair)
    for mine, other in zip(moved, theirs, strict=True):
        if hasattr(other, "parametrizations"):
            norms = (m.parametrizations.weight[0] for m in (mine, other))
            u, v = ((norm._u, norm._v) for norm in norms)
            close(u[0], v[0])
            close(u[1], v[1])


@pytest.mark.parametrize("constraint", ["spectral", "operator"])
def test_evaluation_leaves_the_singular_vectors(constraint):
    critic, images = Critic(2, constraint), normal(0, 3, 8, 8, 1)
    start = functools.partial(critic.init, train=True)
    variables = jax.jit(start)(jax.random.key(0), images)
    for train in (True, False):
        apply = functools.partial(critic.apply, train=train, mutable=["batch_stats"])
        _, new = jax.jit(apply)(variables, images)
        same = jax.tree.map(
            np.array_equal,
            new["batch_stats"],
            variables["batch_stats"],
        )
        assert all(jax.tree.leaves(same)) is not train


def test_projection_adds_an_inner_product_with_the_labels_row():
    critic = Critic(2, classes=3, conditioning="projection")
    images = normal(0, 3, 16, 16, 1)
    variables = critic.init(jax.random.key(0), images, LABELS, train=True)
    scores, endpoints = critic.apply(variables, images, LABELS, train=False)
    plain = {k: v for k, v in variables["params"].items() if k != "embedding"}
    without, _ = Critic(2).apply({"params": plain}, images, train=False)
    rows = variables["params"]["embedding"]["kernel"][LABELS]
    features = endpoints["layer_2"].reshape(3, -1)
    np.testing.assert_allclose(
        scores - without, np.sum(rows * features, axis=1), atol=1e-5
    )


def test_concatenation_shows_the_critic_planes_of_the_label():
    critic = Critic(2, classes=3, conditioning="concatenation")
    images = normal(0, 3, 16, 16, 1)
    variables = critic.init(jax.random.key(0), images, LABELS, train=True)
    assert variables["params"]["Conv_0"]["kernel"].shape == (4, 4, 1 + 3, 2)
    scores, _ = critic.apply(variables, images, LABELS, train=False)
    planes = jnp.tile(jnp.eye(3)[LABELS][:, None, None], (1, 16, 16, 1))
    shown = jnp.concatenate([images, planes], -1)
    wanted, _ = Critic(2).apply(variables, shown, train=False)
    np.testing.assert_allclose(scores, wanted, atol=1e-6)


def test_the_generator_reads_a_one_hot_label_beside_the_latent():
    generator = Generator(2, 8, 1, classes=3)
    latents = normal(0, 3, 5)
    variables = generator.init(jax.random.key(0), latents, LABELS, train=True)
    images, _ = generator.apply(variables, latents, LABELS, train=False)
    codes = jnp.concatenate([latents, jnp.eye(3)[LABELS]], 1)
    wanted, _ = Generator(2, 8, 1).apply(variables, codes, train=False)
    np.testing.assert_allclose(images, wanted, atol=1e-6)


@pytest.mark.parametrize("refined", [False, True])
def test_shapes_on_the_way(refined):
    def run(key):
        z = jnp.zeros((2, 7))
        (images, ups), _ = Generator(4, 32, 3, refined=refined).init_with_output(
            key, z, train=True
        )
        critic = Critic(4, refined=refined)
        (scores, downs), _ = critic.init_with_output(key, images, train=True)
        return images, ups, scores, downs

    images, ups, scores, downs = jax.eval_shape(run, jax.random.key(0))
    assert images.shape == (2, 32, 32, 3)
    assert scores.shape == (2,)
    sides = {f"features_{n}": n for n in (8, 16, 32)}
    if not refined:
        del sides["features_32"]  # The last doubling makes the image itself.
    assert {name: x.shape[1] for name, x in ups.items()} == sides
    wanted = [(16, 4), (8, 8), (4, 16)]
    if refined:
        wanted = [(32, 4), (16, 4), (16, 8), (8, 8), (8, 16), (4, 16), (4, 32)]
    assert [x.shape for x in downs.values()] == [(2, n, n, w) for n, w in wanted]


@pytest.mark.parametrize(
    ("network", "args", "message"),
    [
        (Generator(2, 12, 1), ((3, 5),), "multiple of 8, got 12"),
        (Critic(2), ((3, 12, 12, 1),), r"multiple of 8, got \(3, 12, 12, 1\)"),
        (Generator(2, 8, 1, classes=3), ((3, 5),), "no labels and 3 classes"),
        (
            Critic(2, classes=3, conditioning="projection"),
            ((3, 8, 8, 1),),
            "no labels and 3 classes",
        ),
        (
            Critic(2, conditioning="concatenation"),
            ((3, 8, 8, 1), LABELS),
            "and 0 classes",
        ),
    ],
)
def test_wrong_inputs_are_refused(network, args, message):
    shape, *labels = args
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda x: network.init(jax.random.key(0), x, *labels, train=True),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )


def test_planes_are_constant():
    planes = inspect.unwrap(with_planes)(jnp.ones((2, 3, 4, 1)), jnp.array([[2], [5]]))
    assert planes.shape == (2, 3, 4, 2)
    assert np.all(planes[0, ..., 1] == 2)
    assert np.all(planes[1, ..., 1] == 5)
    assert np.all(planes[..., 0] == 1)
