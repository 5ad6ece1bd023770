"""The residual networks of cheap convolutions: against torch, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.config import replace, to_arrays
from experiments.convolution import depthwise
from experiments.convolution.depthwise import Model, cost

CONVOLUTIONS = ("standard", "separable", "bottleneck")


class Torchs:
    """The network in torch, given the layers' parameters in their order of use."""

    def __init__(self, params, stats):
        self.params, self.stats, self.counts = params, stats, {}

    def next(self, kind):
        number = self.counts.get(kind, 0)
        self.counts[kind] = number + 1
        name = f"{kind}_{number}"
        both = {**self.params[name], **self.stats.get(name, {})}
        return {key: torch.tensor(np.array(value)) for key, value in both.items()}

    def conv(self, x, stride=1, kind="Conv"):
        kernel = self.next(kind)["kernel"].permute(3, 2, 0, 1)
        size, window = x.shape[-1], kernel.shape[-1]
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        x = functional.pad(x, [total // 2, total - total // 2] * 2)
        groups = x.shape[1] if kind == "DepthwiseConv" else 1
        x = functional.conv2d(x, kernel, stride=stride, groups=groups)
        norm = self.next("BatchNorm")
        return functional.batch_norm(
            x, norm["mean"], norm["var"], norm["scale"], norm["bias"]
        )

    def unit(self, x, stride, convolution):
        if convolution == "standard":
            return self.conv(x, stride)
        if convolution == "separable":
            return self.conv(functional.relu(self.conv(x, stride, "DepthwiseConv")))
        return self.conv(
            functional.relu(self.conv(functional.relu(self.conv(x)), stride))
        )

    def __call__(self, x, model):
        x = functional.relu(self.conv(x, model.stem_stride))
        for stage in range(3):
            for block in range(model.blocks):
                stride = 2 if stage and not block else 1
                y = functional.relu(self.unit(x, stride, model.convolution))
                y = self.unit(y, 1, model.convolution)
                x = x[:, :, ::stride, ::stride]
                x = functional.relu(
                    functional.pad(x, (0, 0) * 2 + (0, y.shape[1] - x.shape[1])) + y
                )
        dense = self.next("Dense")
        return x.mean((2, 3)) @ dense["kernel"] + dense["bias"]


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize(("stem_stride", "blocks", "size"), [(2, 1, 28), (1, 2, 9)])
def test_the_network_is_torchs(convolution, stem_stride, blocks, size):
    model = Model(
        convolution=convolution, width=8, stem_stride=stem_stride, blocks=blocks
    )
    network = depthwise.Network(model)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.uniform(size=(2, size, size, 3)), jnp.float32)
    variables = jax.jit(lambda k: network.init(k, x, train=False))(jax.random.key(0))
    variables = jax.tree.map(
        lambda v: v * generator.uniform(0.5, 1.5, v.shape).astype(np.float32), variables
    )
    ours = jax.jit(lambda v: network.apply(v, x, train=False))(variables)
    theirs = Torchs(variables["params"], variables["batch_stats"])(
        torch.tensor(np.array(x)).permute(0, 3, 1, 2), model
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_resnet_20_has_its_published_size():
    model = Model(width=16, blocks=3, stem_stride=1)
    _, parameters = cost(model, (32, 32, 3))
    assert round(parameters / 1e6, 2) == 0.27  # He et al., table 6.


@pytest.mark.parametrize("width", [8, 16])
def test_cheap_convolutions_cost_their_share(width):
    shape = (28, 28, 1)
    adds = {
        name: cost(Model(convolution=name, width=width), shape)[0]
        for name in CONVOLUTIONS
    }
    stem, dense = 9 * width * 14**2, 4 * width * 10
    positions = [(14**2, width, width)] * 2
    positions += [(7**2, width, 2 * width), (7**2, 2 * width, 2 * width)]
    positions += [(4**2, 2 * width, 4 * width), (4**2, 4 * width, 4 * width)]
    standard = sum(9 * n * m * k for n, m, k in positions)
    separable = sum(9 * m * n + n * m * k for n, m, k in positions)
    assert adds["standard"] == stem + dense + standard
    assert adds["separable"] == stem + dense + separable
    assert adds["bottleneck"] < adds["standard"] / 4


def test_the_rate_falls_after_half_and_after_three_quarters():
    changes = {"steps": 8, "optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0}
    config = to_arrays(replace(depthwise.Config(), changes))
    optimizer = depthwise.make_optimizer(config)
    params = {"w": jnp.zeros(())}
    state, steps = optimizer.init(params), []
    for _ in range(8):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
        steps.append(-float(updates["w"]))
    expected = [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    np.testing.assert_allclose(steps, expected, rtol=1e-5)


def test_augmentation_shifts_and_flips():
    image = jnp.arange(1.0, 101).reshape(10, 10, 1)
    keys = jax.random.split(jax.random.key(0), 300)
    seen = np.asarray(jax.vmap(depthwise.shift_and_flip, (0, None))(keys, image))
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
    allowed = {}
    for y, x in np.ndindex(9, 9):
        view = padded[y : y + 10, x : x + 10]
        allowed[view.tobytes()] = False
        allowed[view[:, ::-1].tobytes()] = True
    flips = [allowed[view.tobytes()] for view in seen]
    assert 0.4 < np.mean(flips) < 0.6
    assert len({view.tobytes() for view in seen}) > 100


def test_only_training_images_are_augmented():
    config = to_arrays(replace(depthwise.Config(), {"data.augment": True}))
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 1)).astype(np.uint8)
    batch = {"image": jnp.asarray(images), "label": jnp.arange(4)}
    plain = depthwise.prepare(config, batch, None)
    moved = depthwise.prepare(config, batch, jax.random.key(0))
    np.testing.assert_allclose(plain["image"], images / 255, rtol=1e-6)
    assert np.abs(plain["image"] - moved["image"]).max() > 0.1
