"""pix2pix's networks: equal to torch's with the same weights, and what a score sees."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.models.pix2pix import PatchCritic, UNet
from dl_core.ops.receptive_field import Layer, receptive_field
from dl_core.ops.receptive_field_tracing import trace_receptive_fields

WINDOWS = {
    # As scripts/receptive_field_sizes.m of the authors: strides of windows of 4.
    16: (2, 1, 1),
    34: (2, 2, 1, 1),
    70: (2, 2, 2, 1, 1),
    142: (2, 2, 2, 2, 1, 1),
    286: (2, 2, 2, 2, 2, 1, 1),
}


def drawn(seed, *shape):
    values = np.random.default_rng(seed).uniform(-1, 1, shape)
    return jnp.asarray(values, jnp.float32)


def weights(variables):
    """Draws all parameters anew, as large as lets all layers matter."""
    leaves, tree = jax.tree.flatten(variables["params"])
    return jax.tree.unflatten(
        tree, [0.4 * drawn(i, *leaf.shape) for i, leaf in enumerate(leaves)]
    )


def tensor(x):
    return torch.tensor(np.asarray(x))


def planes(x):
    """Returns a leaf of torch's, channels first."""
    return tensor(np.moveaxis(np.asarray(x), -1, 1)).requires_grad_()


def torch_normalized(x, params, used):
    if x.shape[-1] == 1:
        return x
    part = params[f"InstanceNorm_{next(used)}"]
    weight, bias = (tensor(part[name]) for name in ("scale", "bias"))
    return functional.instance_norm(x, weight=weight, bias=bias)


def torch_conv(x, part, **more):
    kernel = tensor(part["kernel"]).permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, tensor(part["bias"]), **more)


def torch_unet(x, params, depth):
    used, skips = iter(range(100)), []
    for level in range(depth):
        x = functional.leaky_relu(x, 0.2) if level else x
        x = torch_conv(x, params[f"down_{level}"], stride=2, padding=1)
        x = torch_normalized(x, params, used) if level else x
        skips.append(x)
    for level in reversed(range(depth)):
        x = x if level == depth - 1 else torch.cat([x, skips[level]], 1)
        part = params[f"up_{level}"]
        kernel = tensor(part["kernel"]).permute(2, 3, 0, 1)
        bias = tensor(part["bias"])
        x = functional.conv_transpose2d(torch.relu(x), kernel, bias, 2, 1)
        x = torch_normalized(x, params, used) if level else x
    return torch.tanh(x)


def torch_critic(x, params, strides, normalize):
    used = iter(range(100))
    for level, stride in enumerate(strides[:-1]):
        x = torch_conv(x, params[f"layer_{level}"], stride=stride, padding=1)
        x = torch_normalized(x, params, used) if level and normalize else x
        x = functional.leaky_relu(x, 0.2)
    return torch_conv(x, params["scores"], padding=1)[:, 0]


def assert_same(ours, theirs, x, y, tolerance=2e-5):
    """Compares a function's values, and its gradient for the sum of weighted values."""
    value, back = jax.vjp(jax.jit(ours), x)
    expected = theirs(y)
    np.testing.assert_allclose(
        value, expected.detach().numpy(), rtol=tolerance, atol=tolerance
    )
    weight = drawn(9, *value.shape)
    (expected * tensor(weight)).sum().backward()
    gradient = y.grad.permute(0, 2, 3, 1).numpy()
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(
        back(weight)[0] / scale, gradient / scale, atol=tolerance
    )


@pytest.mark.parametrize(("size", "width", "channels"), [(4, 3, 2), (16, 2, 3)])
def test_unet_is_torchs(size, width, channels):
    images = drawn(0, 2, size, size, channels)
    net = UNet(width, 3)
    params = weights(jax.jit(net.init)(jax.random.key(0), images))
    depth = size.bit_length() - 1
    assert_same(
        lambda x: net.apply({"params": params}, x)[0],
        lambda x: torch_unet(x, params, depth).permute(0, 2, 3, 1),
        images,
        planes(images),
    )


@pytest.mark.parametrize(
    ("patch", "normalize", "conditional"),
    [(16, True, True), (34, False, False), (70, True, False)],
)
def test_critic_is_torchs(patch, normalize, conditional):
    images, inputs = drawn(0, 2, 32, 32, 3), drawn(1, 2, 32, 32, 1)
    seen = inputs if conditional else None
    net = PatchCritic(2, patch, normalize)
    params = weights(jax.jit(net.init)(jax.random.key(0), images, seen))

    def theirs(x):
        given = [] if seen is None else [planes(inputs)]
        x = torch.cat([*given, x], 1)
        return torch_critic(x, params, WINDOWS[patch], normalize)

    assert_same(
        lambda x: net.apply({"params": params}, x, seen)[0],
        theirs,
        images,
        planes(images),
    )


def fields(patch, size):
    net = PatchCritic(2, patch, normalize=False)
    score = lambda x: net.init_with_output(jax.random.key(0), x)[0][0]  # noqa: E731
    return trace_receptive_fields(score, (1, size, size, 3))


@pytest.mark.parametrize("patch", [1, *WINDOWS])
def test_a_score_sees_its_patch(patch):
    if patch <= 70:  # Tracing takes long for the larger ones.
        size = max(64, patch)
        assert [field.size for field in fields(patch, size)] == [patch, patch]
    layers = [Layer(4, stride, padding=1) for stride in WINDOWS.get(patch, ())]
    assert receptive_field(layers).size == patch


@pytest.mark.parametrize("size", [4, 24, 64])
def test_one_score_sees_the_whole_image(size):
    net = PatchCritic(2, "image")
    images = drawn(0, 3, size, size, 3)
    scores, _ = net.init_with_output(jax.random.key(0), images)[0]
    assert scores.shape == (3, 1, 1)
    assert fields("image", size)[0].size >= size


def test_a_pixel_outside_of_the_patch_changes_nothing():
    net = PatchCritic(4, 16, normalize=False)
    images = drawn(0, 1, 32, 32, 3)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    slope = jax.grad(lambda x: net.apply(variables, x)[0][0, 7, 7])(images)
    seen = np.argwhere(np.abs(slope[0]).max(-1) > 0)
    assert (np.ptp(seen, axis=0) == 15).all()


def test_patches_look_alike_wherever_they_are():
    """A critic without normalisation scores a moved image by moved scores."""
    net = PatchCritic(3, 16, normalize=False)
    images = drawn(0, 1, 40, 40, 3)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    whole, _ = net.apply(variables, images)
    part, _ = net.apply(variables, images[:, 4:, 6:])
    np.testing.assert_allclose(part[:, 3:-3, 3:-3], whole[:, 5:-3, 6:-3], atol=1e-5)


def test_dropout_only_where_a_key_is_given():
    images = drawn(0, 2, 16, 16, 1)
    net = UNet(4, 3)
    variables = jax.jit(net.init)(jax.random.key(0), images)

    def made(*keys):
        rngs = {"dropout": jax.random.key(keys[0])} if keys else {}
        return np.asarray(net.apply(variables, images, rngs=rngs)[0])

    np.testing.assert_array_equal(made(), made())
    np.testing.assert_array_equal(made(1), made(1))
    assert np.abs(made(1) - made(2)).max() > 1e-4


def test_an_output_does_not_depend_on_the_rest_of_its_batch():
    images = drawn(0, 4, 16, 16, 1)
    net = UNet(4, 3)
    variables = jax.jit(net.init)(jax.random.key(0), images)
    together, _ = jax.jit(net.apply)(variables, images)
    alone, _ = jax.jit(net.apply)(variables, images[2:3])
    np.testing.assert_allclose(together[2:3], alone, atol=1e-6)


def test_endpoints_have_the_papers_shapes():
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    key = jax.random.key(0)
    (_, endpoints), variables = jax.eval_shape(
        UNet(64, 3).init_with_output, key, images
    )
    shapes = {name: x.shape[1:] for name, x in endpoints.items()}
    assert shapes["down_0"] == (128, 128, 64)
    assert shapes["down_3"] == (16, 16, 512)
    assert shapes["down_7"] == (1, 1, 512)
    assert shapes["up_7"] == (2, 2, 512)
    assert shapes["up_1"] == (128, 128, 64)
    assert shapes["up_0"] == (256, 256, 3)
    assert variables["params"]["up_0"]["kernel"].shape == (4, 4, 128, 3)
    score = lambda x: PatchCritic(64).init_with_output(key, x, x)[0][0]  # noqa: E731
    assert jax.eval_shape(score, images).shape == (1, 30, 30)


@pytest.mark.parametrize("shape", [(1, 12, 12, 1), (1, 16, 8, 1), (1, 2, 2, 1)])
def test_sides_that_are_no_power_of_two_are_told(shape):
    call = inspect.unwrap(UNet.__call__)
    with pytest.raises(ValueError, match=r"power of two, at least 4, got \(1"):
        UNet(2, 3).init(jax.random.key(0), jnp.zeros(shape), method=call)


def test_images_too_small_for_the_patch_are_told():
    with pytest.raises(ValueError, match=r"\(16, 16\) pixels are too small .* of 70"):
        PatchCritic(2, 70).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_inputs_of_another_size_are_told():
    call = inspect.unwrap(PatchCritic.__call__)
    images, inputs = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 16, 1))
    with pytest.raises(
        ValueError, match=r"\(1, 16, 16, 3\) and inputs \(1, 8, 16, 1\)"
    ):
        PatchCritic(2, 16).init(jax.random.key(0), images, inputs, method=call)
