"""The SN-GAN ResNets against the same networks written in torch, weights copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.models.sngan_resnet import Critic, Generator
from dl_core.nn.spectra import layer_spectra

WIDTH, CLASSES, LATENT = 6, 3, 5


# Their parts are named as ours, so that each parameter finds its own.
class TorchConditionalBatchNorm(torch.nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.BatchNorm_0 = torch.nn.BatchNorm2d(width, eps=2e-5, affine=False)
        self.scales = torch.nn.Embedding(classes, width)
        self.biases = torch.nn.Embedding(classes, width)

    def forward(self, x, labels):
        scale, bias = self.scales(labels), self.biases(labels)
        return self.BatchNorm_0(x) * scale[..., None, None] + bias[..., None, None]


class TorchGeneratorBlock(torch.nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.conditional = classes > 0
        for number in range(2):
            if classes:
                norm = TorchConditionalBatchNorm(width, classes)
                self.add_module(f"ConditionalBatchNorm_{number}", norm)
            else:
                norm = torch.nn.BatchNorm2d(width, eps=2e-5)
                self.add_module(f"BatchNorm_{number}", norm)
        self.Conv_0 = torch.nn.Conv2d(width, width, 3, padding=1)
        self.Conv_1 = torch.nn.Conv2d(width, width, 3, padding=1)
        self.Conv_2 = torch.nn.Conv2d(width, width, 1)

    def forward(self, x, labels):
        def activated(x, number):
            if self.conditional:
                norm = self.get_submodule(f"ConditionalBatchNorm_{number}")
                return functional.relu(norm(x, labels))
            return functional.relu(self.get_submodule(f"BatchNorm_{number}")(x))

        def doubled(x):
            return functional.interpolate(x, scale_factor=2, mode="nearest")

        h = self.Conv_0(doubled(activated(x, 0)))
        h = self.Conv_1(activated(h, 1))
        return h + self.Conv_2(doubled(x))


class TorchGenerator(torch.nn.Module):
    def __init__(self, width, channels, latent, classes=0):
        super().__init__()
        self.width = width
        self.Dense_0 = torch.nn.Linear(latent, width * 16)
        self.block_0 = TorchGeneratorBlock(width, classes)
        self.block_1 = TorchGeneratorBlock(width, classes)
        self.block_2 = TorchGeneratorBlock(width, classes)
        self.BatchNorm_0 = torch.nn.BatchNorm2d(width, eps=2e-5)
        self.Conv_0 = torch.nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, latents, labels):
        # The rows of the dense layer are ordered as images with channels last.
        x = self.Dense_0(latents).reshape(-1, 4, 4, self.width).permute(0, 3, 1, 2)
        for block in (self.block_0, self.block_1, self.block_2):
            x = block(x, labels)
        return self.Conv_0(functional.relu(self.BatchNorm_0(x))).tanh()


class TorchCriticBlock(torch.nn.Module):
    def __init__(self, channels, width, kind):
        super().__init__()
        self.kind = kind
        self.Conv_0 = torch.nn.Conv2d(channels, width, 3, padding=1)
        self.Conv_1 = torch.nn.Conv2d(width, width, 3, padding=1)
        if kind != "same":
            self.Conv_2 = torch.nn.Conv2d(channels, width, 1)

    def forward(self, x):
        h = x if self.kind == "first" else functional.relu(x)
        h = self.Conv_1(functional.relu(self.Conv_0(h)))
        if self.kind == "same":
            return h + x
        h = functional.avg_pool2d(h, 2)
        if self.kind == "first":
            return h + self.Conv_2(functional.avg_pool2d(x, 2))
        return h + functional.avg_pool2d(self.Conv_2(x), 2)


class TorchCritic(torch.nn.Module):
    def __init__(self, width, channels, classes=0):
        super().__init__()
        self.block_0 = TorchCriticBlock(channels, width, "first")
        self.block_1 = TorchCriticBlock(width, width, "half")
        self.block_2 = TorchCriticBlock(width, width, "same")
        self.block_3 = TorchCriticBlock(width, width, "same")
        self.Dense_0 = torch.nn.Linear(width, 1, bias=False)
        if classes:
            self.embedding = torch.nn.Linear(classes, width, bias=False)

    def forward(self, x, labels):
        for block in (self.block_0, self.block_1, self.block_2, self.block_3):
            x = block(x)
        x = functional.relu(x).sum((2, 3))
        scores = self.Dense_0(x)[:, 0]
        if labels is None:
            return scores
        return scores + (self.embedding.weight.T[labels] * x).sum(1)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


TORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "scales": "scales.weight",
    "biases": "biases.weight",
}


def pairs(params, module):
    """Yields each of our parameters, with torch's axes, and torch's."""
    theirs = dict(module.named_parameters())
    assert len(theirs) == len(jax.tree.leaves(params))
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        *places, last = (key.key for key in path)
        ours = np.asarray(value)
        if last == "kernel":
            ours = np.moveaxis(ours, (-1, -2), (0, 1))
        name = ".".join([*places, TORCH_NAMES.get(last, last)])
        yield torch.tensor(ours.copy()), theirs[name]


def close(actual, expected, scale=None):
    scale = np.abs(np.asarray(expected)).max() if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale)


def randomised(params):
    """Returns parameters none of which is at its first, special value."""
    leaves, structure = jax.tree.flatten(params)
    moved = [leaf + 0.1 * noise(n, *leaf.shape) for n, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, moved)


def compare(network, module, x, labels):
    """Holds values, gradients and statistics of both against each other."""
    variables = jax.jit(
        lambda: network.init(jax.random.key(0), x, labels, train=True)
    )()
    params = randomised(variables["params"])
    state = {name: v for name, v in variables.items() if name != "params"}
    for ours, theirs in pairs(params, module):
        assert ours.shape == theirs.shape
        theirs.data.copy_(ours)
    their_labels = None if labels is None else torch.tensor(np.asarray(labels))

    def to_torch(x):
        return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())

    for train in (True, False):
        module.train(train)
        module.zero_grad()

        @jax.jit
        def ours_of(params, state, x, train=train):
            def apply(params, x):
                (y, _), updates = network.apply(
                    {"params": params, **state},
                    x,
                    labels,
                    train=train,
                    mutable=["batch_stats"],
                )
                return jnp.sum(jnp.sin(y)), (y, updates)

            gradients, (y, updates) = jax.grad(apply, (0, 1), has_aux=True)(params, x)
            return y, gradients, updates

        y, (by_params, by_x), state = ours_of(params, state, x)
        tensor = to_torch(x).requires_grad_()
        expected = module(tensor, their_labels)
        expected.sin().sum().backward()
        close(to_torch(y) if y.ndim > 1 else y, expected.detach())
        close(to_torch(by_x), tensor.grad)
        # That of a bias before a batch normalisation is zero but for rounding.
        largest = max(theirs.grad.abs().max() for _, theirs in pairs(params, module))
        for gradient, theirs in pairs(by_params, module):
            close(gradient, theirs.grad, float(largest))


labelled = pytest.mark.parametrize("classes", [0, CLASSES])


@labelled
def test_the_generator_is_torchs_of_the_same_weights(classes):
    labels = jnp.array([0, 2, 1, 2]) if classes else None
    compare(
        Generator(WIDTH, 32, 3, classes),
        TorchGenerator(WIDTH, 3, LATENT, classes),
        noise(0, 4, LATENT),
        labels,
    )


@labelled
def test_the_critic_is_torchs_of_the_same_weights(classes):
    labels = jnp.array([0, 2, 1]) if classes else None
    compare(
        Critic(
            WIDTH, classes=classes, conditioning="projection" if classes else "none"
        ),
        TorchCritic(WIDTH, 3, classes),
        noise(0, 3, 16, 16, 3),
        labels,
    )


@labelled
def test_the_published_networks_have_as_many_parameters_as_torchs(classes):
    labels = jnp.zeros(1, int) if classes else None
    conditioning = "projection" if classes else "none"

    def count(network, *shape):
        variables = jax.eval_shape(
            lambda: network.init(
                jax.random.key(0), jnp.zeros(shape), labels, train=True
            )
        )
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    def count_torch(module):
        return sum(p.numel() for p in module.parameters())

    generator = count(Generator(256, 32, 3, classes), 1, 128)
    assert generator == count_torch(TorchGenerator(256, 3, 128, classes))
    critic = Critic(128, classes=classes, conditioning=conditioning)
    assert count(critic, 1, 32, 32, 3) == count_torch(TorchCritic(128, 3, classes))


@pytest.mark.parametrize("constraint", ["spectral", "operator"])
def test_every_layer_of_a_constrained_critic_has_norm_one(constraint):
    critic = Critic(4, constraint, classes=CLASSES, conditioning="projection")
    x, labels = noise(0, 2, 8, 8, 3), jnp.array([0, 2])

    @jax.jit
    def trained(key):
        def step(_, variables):
            _, updates = critic.apply(
                variables, x, labels, train=True, mutable=["batch_stats"]
            )
            return {**variables, **updates}

        variables = critic.init(key, x, labels, train=False)
        variables = jax.lax.fori_loop(0, 100, step, variables)
        return layer_spectra(critic, variables, x, labels, iterations=200, train=False)

    spectra = trained(jax.random.key(0))
    assert list(spectra) == [
        *(f"block_0/Conv_{n}" for n in range(3)),
        *(f"block_1/Conv_{n}" for n in range(3)),
        *(f"block_{block}/Conv_{n}" for block in (2, 3) for n in range(2)),
        "Dense_0",
        "embedding",
    ]
    for spectrum in spectra.values():
        largest = {
            "spectral": spectrum["singular_values"][0],
            "operator": spectrum["operator_norm"],
        }[constraint]
        np.testing.assert_allclose(largest, 1, atol=0.01)


def test_initial_weights_are_the_authors():
    # Chainer's GlorotUniform(scale): uniform within scale · √(6 / (fan in + fan out)).
    images = jnp.zeros((1, 8, 8, 3))
    params = Critic(32).init(jax.random.key(0), images, train=False)["params"]
    for name, scale in {"Conv_0": 2**0.5, "Conv_1": 2**0.5, "Conv_2": 1}.items():
        kernel = params["block_1"][name]["kernel"]
        taps = kernel.shape[0] * kernel.shape[1]
        limit = scale * np.sqrt(6 / (taps * 32 + taps * 32))
        assert 0.99 * limit < np.abs(kernel).max() <= limit


def test_labels_and_sizes_that_do_not_fit_are_refused():
    latents, images = noise(0, 2, LATENT), noise(0, 2, 10, 10, 1)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        Generator(4, 12, 1).init(key, latents, train=True)
    with pytest.raises(ValueError, match=r"multiple of 4, got \(2, 10, 10, 1\)"):
        Critic(4).init(key, images, train=True)
    with pytest.raises(ValueError, match="no labels"):
        Generator(4, 8, 1, CLASSES).init(key, latents, train=True)
    critic = Critic(4, classes=CLASSES, conditioning="projection")
    with pytest.raises(ValueError, match="no labels"):
        critic.init(key, images[:, :8, :8], train=True)


def test_planes_of_the_label_and_batch_norm_change_the_scores():
    images, labels = noise(0, 2, 8, 8, 1), jnp.array([0, 1])
    critic = Critic(4, classes=CLASSES, conditioning="concatenation", batch_norm=True)
    variables = critic.init(jax.random.key(0), images, labels, train=True)
    assert variables["params"]["block_0"]["Conv_0"]["kernel"].shape[2] == 1 + CLASSES
    assert len(jax.tree.leaves(variables["batch_stats"])) == 2 * 7
    (scores, endpoints), _ = critic.apply(
        variables, images, labels, train=True, mutable=["batch_stats"]
    )
    other, _ = critic.apply(variables, images, labels[::-1], train=False)
    assert scores.shape == (2,)
    assert not np.allclose(scores, other)
    sides = [endpoints[f"block_{n}"].shape[1] for n in range(4)]
    assert sides == [4, 2, 2, 2]
