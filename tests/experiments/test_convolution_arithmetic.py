"""The matrices of convolution, the measure of checkerboards, the autoencoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.signal
import torch
from torch.nn import functional

from dl_core.config import replace
from dl_core.errors import UserError
from dl_core.ops.conv import conv_matrix, conv_transpose
from experiments.convolution import arithmetic
from experiments.convolution.arithmetic import Checkerboard


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensor(array):
    """Returns a torch tensor, channels first where it has four dimensions."""
    found = torch.tensor(np.array(array))
    return found.permute(0, 3, 1, 2) if found.ndim == 4 else found


def weights(kernel):
    """Returns a kernel as torch's convolution has it: (out, in, height, width)."""
    return torch.tensor(np.array(kernel)).permute(3, 2, 0, 1)


def close(ours, theirs, tolerance=1e-5):
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def measure(images, mask=None):
    images = jnp.asarray(images, jnp.float32)[..., None]
    return Checkerboard.of(images, jnp.ones(len(images)) if mask is None else mask)


def pattern(height=28, width=28):
    """Returns a pattern of period 4 both ways, with mean 0 and deviation 1."""
    cell = normal(3, 4, 4)
    cell = (cell - cell.mean()) / cell.std()
    return np.tile(cell, (height // 4, width // 4))


def test_the_matrix_is_that_of_the_guide():
    """Dumoulin & Visin, section 4.1: the nine weights, shifted from row to row."""
    w = normal(0, 3, 3)
    (w00, w01, w02), (w10, w11, w12), (w20, w21, w22) = w
    rows = [
        [w00, w01, w02, 0, w10, w11, w12, 0, w20, w21, w22, 0, 0, 0, 0, 0],
        [0, w00, w01, w02, 0, w10, w11, w12, 0, w20, w21, w22, 0, 0, 0, 0],
        [0, 0, 0, 0, w00, w01, w02, 0, w10, w11, w12, 0, w20, w21, w22, 0],
        [0, 0, 0, 0, 0, w00, w01, w02, 0, w10, w11, w12, 0, w20, w21, w22],
    ]
    kernel, x, y = w[..., None, None], normal(1, 4, 4), normal(2, 2, 2)
    matrix = conv_matrix(kernel, (4, 4, 1))
    np.testing.assert_array_equal(matrix, rows)
    close((matrix @ x.ravel()).reshape(2, 2), scipy.signal.correlate2d(x, w, "valid"))
    back = (matrix.T @ y.ravel()).reshape(1, 4, 4, 1)
    y = y[None, ..., None]
    theirs = functional.conv_transpose2d(tensor(y), weights(kernel))
    close(back, theirs.permute(0, 2, 3, 1))
    close(conv_transpose(jnp.asarray(y), jnp.asarray(kernel)), back)


def test_checkerboard_of_a_pattern_alone_is_1():
    assert measure(5 + 3 * pattern()[None]).compute() == pytest.approx(1, abs=1e-5)
    board = np.indices((28, 28)).sum(0) % 2
    assert measure(board[None]).compute() == pytest.approx(1, abs=1e-5)


def test_checkerboard_of_ramps_and_of_one_value_is_0():
    rows, columns = np.mgrid[:28, :28] / 28
    for image in (rows, columns, 1 + rows * columns, np.ones((28, 28)), 0 * rows):
        assert measure(image[None]).compute() == pytest.approx(0, abs=1e-4)


def test_checkerboard_finds_a_weak_pattern_in_smooth_images():
    noise = scipy.ndimage.gaussian_filter(normal(0, 400, 28, 28), (0, 3, 3))
    noise /= noise.std()
    assert measure(noise).compute() < 0.003
    found = measure(noise + 0.1 * pattern()).compute()
    inner = noise[:, 4:-4, 4:-4].var((1, 2)).mean()
    assert found == pytest.approx(0.1 / np.sqrt(inner + 0.01), rel=0.05)


def test_checkerboard_counts_what_all_images_have_in_common():
    """Patterns of random sign cancel: it is a habit of the network, not of an image."""
    signs = np.where(np.arange(400) % 2, 1, -1)[:, None, None]
    assert measure(signs * pattern()).compute() == pytest.approx(0, abs=1e-6)


def test_checkerboard_is_the_power_at_the_multiples_of_a_quarter():
    images = normal(0, 3, 28, 36) + pattern(28, 36)
    width = np.array([0.5, 1, 1, 1, 0.5]) / 4
    trend = images
    for axis in (1, 2):
        trend = scipy.ndimage.convolve1d(trend, width, axis)
    rest = (images - trend)[:, 4:-4, 4:-4].mean(0)
    spectrum = np.abs(scipy.fft.fft2(rest) / rest.size) ** 2
    power = spectrum[:: 20 // 4, :: 28 // 4].sum() - spectrum[0, 0]
    variance = images[:, 4:-4, 4:-4].var((1, 2)).mean()
    assert measure(images).compute() == pytest.approx(np.sqrt(power / variance), 1e-4)


def test_checkerboard_merges_and_leaves_out_padded_images():
    images = normal(0, 6, 28, 28)
    mask = jnp.array([1.0, 1, 1, 0])
    parts = measure(images[:3]).merge(measure(images[3:]))
    padded = measure(images[[0, 1, 2, 5]], mask).merge(measure(images[3:]))
    whole = measure(images).compute()
    assert parts.compute() == pytest.approx(whole, rel=1e-4)
    assert padded.compute() == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    ("stride", "window", "even"),
    [
        (2, 2, True),
        (2, 3, False),
        (2, 4, True),
        (2, 5, False),
        (4, 6, False),
        (4, 8, True),
    ],
)
def test_windows_overlap_evenly_where_the_stride_divides_them(stride, window, even):
    assert (np.ptp(arithmetic.overlap(stride, window)) < 1e-6) == even


def decoded(kind, params, x, places, stride, window):
    """Returns torch's result of one layer of the decoder."""
    kernel, bias = params["kernel"], params["bias"]
    bias = torch.tensor(np.array(bias))
    if kind == "transposed":
        # torch pads both ends alike: all is computed, then cut.
        turned = torch.tensor(np.array(kernel)).permute(2, 3, 0, 1)
        whole = functional.conv_transpose2d(x, turned, bias, stride=stride)
        low = (window - stride) // 2
        high = window - stride - low
        return whole[..., low : whole.shape[2] - high, low : whole.shape[3] - high]
    if kind == "resize":
        x = functional.interpolate(x, scale_factor=stride, mode="nearest")
    else:
        x = functional.max_unpool2d(x, places, 2)
    return functional.conv2d(x, weights(kernel), bias, padding="same")


@pytest.mark.parametrize(
    ("kind", "stride", "window"),
    [("transposed", 2, 3), ("transposed", 4, 6), ("resize", 2, 3), ("unpooling", 2, 3)],
)
def test_autoencoder_equals_torch(kind, stride, window):
    """The reconstruction, the loss and its gradient by the images' first kernel."""
    changes = {"kind": kind, "stride": stride, "kernel_size": window, "width": 6}
    config = replace(
        arithmetic.Config(), {f"model.{name}": x for name, x in changes.items()}
    )
    params = arithmetic.init(config, jax.random.key(0)).params
    images = np.abs(normal(0, 4, 28, 28, 1))

    def loss_of(params):
        output = arithmetic.reconstruct(config, params, jnp.asarray(images))
        return jnp.square(output - images).mean(), output

    (loss, output), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)

    bias = {k: torch.tensor(np.array(v["bias"])) for k, v in params.items()}
    kernels = {k: weights(v["kernel"]) for k, v in params.items()}
    first = kernels["Conv_0"].requires_grad_()
    x, places = tensor(images), []
    for name in ("Conv_0", "Conv_1"):
        x = functional.conv2d(x, kernels[name], bias[name], padding=1).relu()
        x, indices = functional.max_pool2d(x, 2, return_indices=True)
        places.append(indices)
    for name in ("Conv_2", "Conv_3"):
        x = functional.conv2d(x, kernels[name], bias[name])
    x = x.relu()
    layers = sorted(params.keys() - {f"Conv_{i}" for i in range(4)})
    for layer, where in zip(layers, reversed(places), strict=False):
        x = x if layer == layers[0] else x.relu()
        x = decoded(kind, params[layer], x, where, stride, window)
    expected = torch.square(x - tensor(images)).mean()
    expected.backward()
    close(output, x.permute(0, 2, 3, 1))
    close(loss, expected)
    close(gradient["Conv_0"]["kernel"], first.grad.permute(2, 3, 1, 0))


def test_pooled_and_unpooled_digits_are_torchs():
    config = replace(arithmetic.Config(), {"model.width": 2})
    state = arithmetic.init(config, jax.random.key(0))
    seen = arithmetic.observe(config, state, jax.random.key(1))
    images = tensor(seen["digits"])
    for window in (2, 4):
        largest, places = functional.max_pool2d(images, window, return_indices=True)
        back = functional.max_unpool2d(largest, places, window)
        close(seen[f"unpooled_{window}"], back.permute(0, 2, 3, 1))
        means = functional.avg_pool2d(images, window)
        spread = functional.interpolate(means / window**2, scale_factor=window)
        close(seen[f"spread_{window}"], spread.permute(0, 2, 3, 1))


def test_unpooling_by_4_is_refused(data_dir):
    changes = {"model.kind": "unpooling", "model.stride": 4}
    with pytest.raises(UserError, match=r"model.stride=4.*expected 2"):
        arithmetic.data(replace(arithmetic.Config(), changes), data_dir)
