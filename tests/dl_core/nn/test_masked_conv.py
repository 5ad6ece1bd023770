"""Masked convolutions against torch's, with masks told from places in reading order."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dl_core.nn.masked_conv import MaskedConv, VerticalConv, causal_mask


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def comes_before(window, channels, features, kind, groups):
    """Returns the mask by comparing (row, column, colour) of each input and output."""
    mask = np.zeros((*window, channels, features), bool)
    centre = window[0] // 2, window[1] // 2
    for row, column, i, o in itertools.product(*map(range, mask.shape)):
        seen = row, column, i // (channels // groups)
        own = *centre, o // (features // groups)
        mask[row, column, i, o] = seen < own or (kind == "B" and seen == own)
    return mask


@pytest.mark.parametrize("kind", ["A", "B"])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (1, 5), (5, 1), (7, 3)])
def test_a_mask_is_what_comes_before_in_reading_order(window, groups, kind):
    for channels, features in [(6, 6), (6, 12), (groups, 2 * groups)]:
        args = window, channels, features, kind, groups
        np.testing.assert_array_equal(causal_mask(*args), comes_before(*args))


def in_torch(x, kernel, bias, mask, stride, dilation):
    """Returns torch's convolution by the whole window, masked, and its gradients."""
    whole = np.zeros(mask.shape, np.float32)
    rows, columns = kernel.shape[:2]
    whole[:rows, :columns] = kernel
    x, whole, bias = (torch.tensor(np.array(a)) for a in (x, whole, bias))
    tensors = [t.requires_grad_() for t in (x, whole, bias)]
    weight = (whole * torch.tensor(mask)).permute(3, 2, 0, 1)
    pads = [d * (size // 2) for d, size in zip(dilation, mask.shape, strict=False)]
    y = functional.conv2d(
        x.permute(0, 3, 1, 2), weight, bias, stride, pads, dilation
    ).permute(0, 2, 3, 1)
    gradients = torch.autograd.grad(torch.sin(y).sum(), tensors)
    by_x, by_kernel, by_bias = (g.numpy() for g in gradients)
    assert not by_kernel[rows:].any()
    assert not by_kernel[:, columns:].any()
    return y.detach().numpy(), (by_x, by_kernel[:rows, :columns], by_bias)


def check(layer, mask, x):
    params = layer.init(jax.random.key(0), x)["params"]
    params["bias"] = noise(2, *params["bias"].shape)

    @jax.jit
    def ours(x, kernel, bias):
        y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
        return jnp.sin(y).sum(), y

    args = x, params["kernel"], params["bias"]
    (_, y), gradients = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(*args)
    dilation = np.broadcast_to(layer.dilation, 2).tolist()
    wanted, by = in_torch(*args, mask, layer.stride, dilation)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    for ours, theirs in zip(gradients, by, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    # What is masked does not learn, to the last bit.
    rows, columns = params["kernel"].shape[:2]
    assert not np.asarray(gradients[1])[~mask[:rows, :columns]].any()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    window=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([3, 5])),
    size=st.tuples(st.integers(1, 6), st.integers(2, 6)),
    kind=st.sampled_from("AB"),
    groups=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 1, 2]),
    dilation=st.sampled_from([1, 1, 2, (2, 3)]),
)
def test_the_convolution_is_torchs_with_the_kernel_masked(
    window, size, kind, groups, stride, dilation
):
    layer = MaskedConv(6, window, kind, groups=groups, stride=stride, dilation=dilation)
    mask = comes_before(window, 3, 6, kind, groups)
    check(layer, mask, noise(1, 2, *size, 3))


@pytest.mark.parametrize("lowering", ["loop", "patches"])
def test_other_lowerings_are_the_same(lowering):
    layer = MaskedConv(6, 3, "A", groups=3, lowering=lowering)
    check(layer, comes_before((3, 3), 3, 6, "A", 3), noise(1, 2, 5, 4, 3))


@pytest.mark.parametrize("kind", ["A", "B"])
def test_the_vertical_stack_is_torchs_with_rows_masked(kind):
    mask = np.zeros((5, 3, 2, 4), bool)
    mask[: 2 + (kind == "B")] = True
    check(VerticalConv(4, (5, 3), kind), mask, noise(1, 2, 6, 4, 2))
    check(VerticalConv(4, (5, 3), kind), mask, noise(1, 2, 1, 4, 2))


@pytest.mark.parametrize(
    ("layer", "window"),
    [
        (MaskedConv(4, 7, "A"), (4, 7)),
        (MaskedConv(4, 3, "B"), (2, 3)),
        (MaskedConv(4, (1, 7), "A"), (1, 3)),
        (MaskedConv(4, (1, 7), "A", groups=2), (1, 4)),
        (MaskedConv(4, (1, 7), "B"), (1, 4)),
        (MaskedConv(4, 1, "B", groups=2), (1, 1)),
        (VerticalConv(4, 7, "A"), (3, 7)),
        (VerticalConv(4, 7, "B"), (4, 7)),
    ],
)
def test_only_rows_and_columns_that_are_seen_are_stored(layer, window):
    variables = jax.eval_shape(layer.init, jax.random.key(0), noise(0, 1, 6, 6, 2))
    assert variables["params"]["kernel"].shape == (*window, 2, 4)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (MaskedConv(4, 4, "A"), r"odd, got \(4, 4\)"),
        (VerticalConv(4, (3, 2), "B"), r"odd, got \(3, 2\)"),
        (MaskedConv(4, (3, 3, 3), "B"), r"\(1, 6, 6, 2\) and \(3, 3, 3\)"),
        (MaskedConv(4, 3, "B", groups=3), "3 groups do not divide 2 channels and 4"),
        (MaskedConv(4, 1, "A"), r"sees nothing of the input \(1, 6, 6, 2\)"),
        (VerticalConv(4, (1, 3), "A"), r"sees nothing of the input \(1, 6, 6, 2\)"),
    ],
)
def test_what_cannot_be_is_refused(layer, words):
    with pytest.raises(ValueError, match=words):
        layer.init(jax.random.key(0), noise(0, 1, 6, 6, 2))


def test_a_mask_of_an_even_window_is_refused():
    with pytest.raises(ValueError, match="odd"):
        inspect.unwrap(causal_mask)((2, 3), 1, 1, "A")
