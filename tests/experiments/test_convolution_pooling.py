"""The networks with each kind of pooling, and the warp that moves test images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.nn import functional

from dl_core.config import replace
from experiments.convolution import pooling


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensor(array):
    return torch.tensor(np.array(array))


def close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def moved(images, shift=0.0, angle=0.0, scale=1.0):
    numbers = (jnp.float32(x) for x in (shift, angle, scale))
    return np.asarray(pooling.moved(jnp.asarray(images), *numbers))


def digit_like(count):
    """Returns random pixels within a black frame, as digits have one."""
    return np.pad(np.abs(normal(0, count, 12, 12, 1)), ((0, 0), (8, 8), (8, 8), (0, 0)))


@pytest.mark.parametrize(
    ("shift", "angle", "scale"),
    [(3, 0, 1), (2.5, 0, 1), (0, 37, 1), (0, 0, 0.6), (0, 0, 1.3), (1.5, -20, 1.2)],
)
def test_moved_equals_scipy(shift, angle, scale):
    images = digit_like(5)
    turn = np.deg2rad(angle)
    ways = [(0, 1, 1), (1, 0, 1), (0, -1, -1), (-1, 0, -1), (0, 1, 1)]
    for image, ours, (down, right, sign) in zip(
        images, moved(images, shift, angle, scale), ways, strict=True
    ):
        cos, sin = np.cos(sign * turn), np.sin(sign * turn)
        matrix = np.array([[cos, -sin], [sin, cos]]) / scale
        middle = np.array([13.5, 13.5])
        offset = middle - matrix @ (middle + shift * np.array([down, right]))
        theirs = scipy.ndimage.affine_transform(image[..., 0], matrix, offset, order=1)
        close(ours[..., 0], theirs, 1e-4)


def test_a_shift_moves_pixels_right_down_left_and_up():
    images = digit_like(4)
    ours = moved(images, shift=3)
    for image, found, (axis, by) in zip(
        images, ours, [(1, 3), (0, 3), (1, -3), (0, -3)], strict=True
    ):
        close(found, np.roll(image, by, axis))


def test_a_quarter_turn_is_clockwise_for_the_first_two_of_four():
    images = digit_like(4)
    ours = moved(images, angle=90)
    for image, found, quarters in zip(images, ours, (-1, -1, 1, 1), strict=True):
        close(found, np.rot90(image, quarters))


def test_a_scale_above_1_enlarges():
    image = np.zeros((1, 28, 28, 1), np.float32)
    image[:, 10:18, 10:18] = 1
    assert moved(image, scale=1.5).sum() == pytest.approx(1.5**2 * 64, rel=0.03)


def test_the_sizes_that_change_nothing_change_nothing():
    images = digit_like(4)
    changed = pooling.all_moved(jnp.asarray(images))
    for name, nothing in (("shift", 0), ("angle", 0), ("scale", 1)):
        assert len(changed[name]) == len(pooling.SIZES[name])
        close(changed[name][pooling.SIZES[name].index(nothing)], images)


def config_of(kind):
    return replace(pooling.Config(), {"model.pooling": kind, "model.width": 3})


@pytest.mark.parametrize("kind", ["max", "average", "strided", "none"])
def test_loss_and_gradients_equal_torch(kind):
    """The loss of a training step, and its gradients."""
    config = config_of(kind)
    state = pooling.init(config, jax.random.key(0))
    images, labels = np.abs(normal(1, 12, 28, 28, 1)), np.arange(12) % 10
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}

    def loss_of(params):
        logits = pooling.Network(config.model).apply({"params": params}, batch["image"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -picked.mean()

    gradients = jax.grad(loss_of)(state.params)
    _, metrics = pooling.train_step(config, state, batch, jax.random.key(1))

    kernels = {
        name: tensor(layer["kernel"]).requires_grad_()
        for name, layer in state.params.items()
    }
    x = tensor(images).permute(0, 3, 1, 2)
    for name in ("Conv_0", "Conv_1"):
        stride = 2 if kind == "strided" else 1
        # As "same" has it: nothing before the first of an even side, at stride 2.
        x = functional.pad(x, (2 - stride, 1, 2 - stride, 1))
        bias = tensor(state.params[name]["bias"])
        kernel = kernels[name].permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, bias, stride=stride).relu()
        if kind == "max":
            x = functional.max_pool2d(x, 2)
        elif kind == "average":
            x = functional.avg_pool2d(x, 2)
    flat = x.permute(0, 2, 3, 1).flatten(1)
    logits = flat @ kernels["Dense_0"] + tensor(state.params["Dense_0"]["bias"])
    loss = functional.cross_entropy(logits, tensor(labels))
    loss.backward()
    close(metrics["loss"], loss)
    for name, kernel in kernels.items():
        close(gradients[name]["kernel"], kernel.grad)


@pytest.mark.parametrize(
    ("kind", "dense"), [("max", 7_850), ("strided", 7_850), ("none", 125_450)]
)
def test_parameters_are_as_many_as_the_docstring_says(kind, dense):
    config = replace(pooling.Config(), {"model.pooling": kind})
    params = jax.eval_shape(pooling.init, config, jax.random.key(0)).params
    sizes = {
        name: sum(x.size for x in layer.values()) for name, layer in params.items()
    }
    assert sizes["Dense_0"] == dense
    assert sum(sizes.values()) == dense + 1_248


def test_accuracy_and_stability_are_those_of_each_size():
    """Against a count, image by image; the padded image does not count."""
    config = config_of("max")
    state = pooling.init(config, jax.random.key(0))
    images = jnp.asarray(digit_like(8))
    plain = np.asarray(pooling.answers(config, state, images))
    labels = np.where(np.arange(8) < 5, plain, (plain + 1) % 10)
    mask = jnp.ones(8).at[7].set(0)
    batch = {"image": images, "label": jnp.asarray(labels), "mask": mask}
    metrics = pooling.eval_step(config, state, batch)
    assert metrics["accuracy"].compute() == pytest.approx(5 / 7)
    for name, sizes in pooling.SIZES.items():
        for number, size in enumerate(sizes):
            changed = jnp.asarray(moved(images, **{name: size}))
            found = np.asarray(pooling.answers(config, state, changed))[:7]
            for metric, truth in (("accuracy", labels), ("same", plain)):
                measured = metrics[f"{metric}_by_{name}"].compute()[number]
                assert measured == pytest.approx((found == truth[:7]).mean())
