"""Convolutions against torch, against each other's lowerings, and as matrices."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from torch.nn import functional

from dl_core.ops.conv import conv, conv_matrix, conv_transpose

few = settings(max_examples=20, deadline=None, derandomize=True)
bare_conv, bare_transpose = inspect.unwrap(conv), inspect.unwrap(conv_transpose)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def channels_first(x):
    return torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)


def channels_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def close(ours, theirs):
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5, rtol=1e-5)


def with_gradients(function, *arrays):
    """Returns a function's value and the gradients of its cosine's sum."""

    def loss(*arrays):
        y = function(*arrays)
        return jnp.cos(y).sum(), y

    numbers = tuple(range(len(arrays)))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=numbers, has_aux=True))
    (_, y), gradients = compiled(*map(jnp.asarray, arrays))
    return y, *gradients


@st.composite
def cases(draw, transposed=False):
    """Shapes and numbers of a convolution that fits its input."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    case = {
        "window": [draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)],
        "stride": [draw(st.integers(1, 3)) for _ in range(rank)],
        "dilation": [draw(st.integers(1, 2)) for _ in range(rank)],
        "padding": [draw(st.integers(0, 2)) for _ in range(rank)],
        "groups": groups,
        "ins": 4,
        "outs": groups * draw(st.integers(1, 3)),
    }
    reach = [d * (k - 1) for k, d in zip(case["window"], case["dilation"], strict=True)]
    case["spatial"] = [r + draw(st.integers(2, 5)) for r in reach]
    if transposed:
        case["padding"] = [
            min(p, r) for p, r in zip(case["padding"], reach, strict=True)
        ]
        limits = map(max, case["stride"], case["dilation"])
        case["output_padding"] = [draw(st.integers(0, n - 1)) for n in limits]
    case["lowering"] = draw(
        st.sampled_from(["auto", "loop", "xla", "patches", "shifts"])
    )
    return case


def options(case, *names):
    return {name: tuple(case[name]) for name in names} | {"groups": case["groups"]}


@given(cases())
@few
def test_conv_equals_torch(case):
    x = normal(0, 2, *case["spatial"], case["ins"])
    kernel = normal(1, *case["window"], case["ins"] // case["groups"], case["outs"])
    same = options(case, "stride", "padding", "dilation")
    ours = with_gradients(
        lambda x, w: conv(x, w, lowering=case["lowering"], **same), x, kernel
    )
    tx = channels_first(x)
    tw = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy(), requires_grad=True)
    y = getattr(functional, f"conv{len(case['window'])}d")(tx, tw, **same)
    torch.cos(y).sum().backward()
    close(ours[0], channels_last(y))
    close(ours[1], channels_last(tx.grad))
    close(ours[2], np.moveaxis(tw.grad.numpy(), (0, 1), (-1, -2)))


@given(cases(transposed=True))
@few
def test_conv_transpose_equals_torch(case):
    x = normal(0, 2, *case["spatial"], case["ins"])
    kernel = normal(1, *case["window"], case["ins"], case["outs"] // case["groups"])
    same = options(case, "stride", "padding", "dilation", "output_padding")
    ours = with_gradients(
        lambda x, w: conv_transpose(x, w, lowering=case["lowering"], **same), x, kernel
    )
    tx = channels_first(x)
    tw = torch.tensor(np.moveaxis(kernel, (-2, -1), (0, 1)).copy(), requires_grad=True)
    y = getattr(functional, f"conv_transpose{len(case['window'])}d")(tx, tw, **same)
    torch.cos(y).sum().backward()
    close(ours[0], channels_last(y))
    close(ours[1], channels_last(tx.grad))
    close(ours[2], np.moveaxis(tw.grad.numpy(), (0, 1), (-2, -1)))


@given(cases())
@few
def test_the_transpose_is_the_matrix_transposed(case):
    shape = (*case["spatial"], case["ins"])
    kernel = normal(1, *case["window"], case["ins"] // case["groups"], case["outs"])
    same = options(case, "stride", "padding", "dilation")
    matrix = conv_matrix(kernel, shape, **same)
    x = normal(2, 1, *shape)
    y = jax.jit(lambda x: conv(x, kernel, **same))(x)
    close(np.ravel(y), matrix @ x.ravel())
    # What no window reaches, where the stride does not fit, is had back by padding.
    sizes = zip(
        case["spatial"],
        y.shape[1:-1],
        case["window"],
        *(case[name] for name in ("stride", "padding", "dilation")),
        strict=True,
    )
    extra = [n - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for n, o, k, s, p, d in sizes]
    assume(all(e >= 0 for e in extra))
    exchanged = kernel.swapaxes(-1, -2)
    back = jax.jit(
        lambda y: conv_transpose(y, exchanged, output_padding=extra, **same)
    )(y)
    close(np.ravel(back), matrix.T @ np.ravel(y))


def test_the_notes_example_of_a_matrix():
    """A 3×3 window over 4×4 inputs: 2×2 outputs, a 4×16 matrix of shifted weights."""
    kernel = np.arange(1.0, 10).reshape(3, 3, 1, 1)
    matrix = conv_matrix(kernel, (4, 4, 1))
    first = [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0]
    wanted = [np.roll(first, shift) for shift in (0, 1, 4, 5)]
    np.testing.assert_array_equal(matrix, wanted)


def test_the_notes_formula_of_the_transpose():
    """z(i, j) = Σ w(i − k·b, j − l·b) I(k, l), sum by sum."""
    image, kernel, b = normal(0, 3, 4), normal(1, 3, 2), 2
    wanted = np.zeros(((3 - 1) * b + 3, (4 - 1) * b + 2))
    for i, j in np.ndindex(*wanted.shape):
        for k, n in np.ndindex(*image.shape):
            at = i - k * b, j - n * b
            if all(0 <= a < size for a, size in zip(at, kernel.shape, strict=True)):
                wanted[i, j] += kernel[at] * image[k, n]
    ours = conv_transpose(image[None, ..., None], kernel[..., None, None], stride=b)
    np.testing.assert_allclose(ours[0, ..., 0], wanted, atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_equals_torch(window, dilation):
    x, kernel = normal(0, 2, 7, 8, 3), normal(1, window, window, 3, 5)
    weight = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
    theirs = functional.conv2d(
        channels_first(x), weight, padding="same", dilation=dilation
    )
    close(conv(x, kernel, padding="same", dilation=dilation), channels_last(theirs))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 8, 9])
def test_same_padding_with_a_stride_is_xlas(stride, size):
    x, kernel = normal(0, 2, size, 3), normal(1, 4, 3, 5)
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (stride,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )
    ours = conv(x, kernel, stride=stride, padding="same")
    assert ours.shape[1] == -(-size // stride)
    close(ours, theirs)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 2), (2, 3), (5, 1)])
def test_same_padding_of_the_transpose_multiplies_the_size(window, stride):
    x, kernel = normal(0, 2, 5, 3), normal(1, window, 3, 4)
    ours = conv_transpose(x, kernel, stride=stride, padding="same")
    assert ours.shape == (2, 5 * stride, 4)

    def forward(y):
        return conv(y, kernel.swapaxes(-1, -2), stride=stride, padding="same")

    (back,) = jax.vjp(forward, jnp.zeros((2, 5 * stride, 4)))[1](jnp.asarray(x))
    close(ours, back)


@pytest.mark.parametrize("dilation", [1, 2])
def test_circular_padding_equals_torch(dilation):
    x, kernel = normal(0, 2, 9, 3), normal(1, 3, 3, 5)
    layer = torch.nn.Conv1d(
        3,
        5,
        3,
        padding=dilation,
        dilation=dilation,
        padding_mode="circular",
        bias=False,
    )
    layer.weight.data = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
    ours = conv(x, kernel, padding="circular", dilation=dilation)
    close(ours, channels_last(layer(channels_first(x))))
    matrix = conv_matrix(kernel, (9, 3), padding="circular", dilation=dilation)
    close(np.ravel(ours[0]), matrix @ x[0].ravel())


@pytest.mark.parametrize("stride", [1, 2])
def test_causal_outputs_see_no_later_input(stride):
    x, kernel = normal(0, 1, 12, 2), normal(1, 3, 2, 2)

    def out(x):
        return conv(x, kernel, padding="causal", dilation=2, stride=stride)[0]

    seen = np.abs(jax.jacobian(out)(jnp.asarray(x))[..., 0, :, :]).sum((1, 3)) > 0
    for output, inputs in enumerate(seen):
        at = output * stride
        wanted = [i for i in (at - 4, at - 2, at) if i >= 0]
        assert np.flatnonzero(inputs).tolist() == wanted


@pytest.mark.parametrize("lowering", ["auto", "loop", "patches", "shifts"])
def test_second_derivatives_are_right(lowering):
    x, kernel = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 1, 2)

    def function(x, kernel):
        y = conv(x, kernel, stride=2, padding=1, groups=2, lowering=lowering)
        return jnp.sum(jnp.tanh(y))

    check_grads(jax.jit(function), (x, kernel), order=2, modes=["rev"], rtol=2e-2)


@pytest.mark.parametrize("lowering", ["auto", "loop", "patches", "shifts"])
def test_a_mapped_convolution_is_each_by_itself(lowering):
    x, kernels = normal(0, 3, 2, 6, 6, 4), normal(1, 3, 3, 3, 1, 4)

    def gradients(x, kernel):
        def loss(x, kernel):
            y = conv(x, kernel, groups=4, padding=1, lowering=lowering)
            return jnp.sum(y**2)

        return jax.grad(loss, argnums=(0, 1))(x, kernel)

    together = jax.jit(jax.vmap(gradients))(x, kernels)
    for i in range(3):
        for ours, alone in zip(together, gradients(x[i], kernels[i]), strict=True):
            close(ours[i], alone)


def test_gradients_summed_in_slices_are_those_of_the_whole(monkeypatch):
    from dl_core.ops import conv_lowerings

    x, kernel = normal(0, 6, 8, 8, 3), normal(1, 3, 3, 3, 4)

    def gradients():
        return with_gradients(lambda x, w: conv(x, w, lowering="patches"), x, kernel)

    whole = gradients()
    jax.clear_caches()
    monkeypatch.setattr(conv_lowerings, "_CHUNK", 1)
    jaxpr = jax.make_jaxpr(jax.grad(lambda w: conv(x, w, lowering="patches").sum()))
    assert "scan[" in str(jaxpr(kernel))
    for ours, wanted in zip(gradients(), whole, strict=True):
        close(ours, wanted)


@pytest.mark.parametrize("lowering", ["auto", "loop", "xla", "patches", "shifts"])
@pytest.mark.parametrize("function", [conv, conv_transpose])
def test_types_are_promoted_together(lowering, function):
    for x, kernel, wanted in (
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.uint8, jnp.float32, jnp.float32),
    ):
        x, kernel = jnp.ones((2, 5, 4), x), jnp.ones((3, 4, 4), kernel)

        def apply(kernel, x=x):
            return inspect.unwrap(function)(x, kernel, lowering=lowering)

        y, gradients = jax.vjp(apply, kernel)
        assert y.dtype == wanted
        assert gradients(y)[0].dtype == kernel.dtype


def test_a_half_precision_gradient_is_as_good_as_the_compilers():
    x, cotangent = normal(0, 64, 28, 28, 16), normal(1, 64, 28, 28, 16)

    def gradient(lowering, dtype):
        kernel = jnp.zeros((3, 3, 16, 16), dtype)
        _, vjp = jax.vjp(
            lambda w: conv(x.astype(dtype), w, padding=1, lowering=lowering), kernel
        )
        return np.asarray(vjp(cotangent.astype(dtype))[0], np.float32)

    exact = gradient("xla", jnp.float32)
    errors = {
        lowering: np.linalg.norm(gradient(lowering, jnp.bfloat16) - exact)
        for lowering in ("xla", "loop")
    }
    assert errors["loop"] < 1.5 * errors["xla"]


@pytest.mark.parametrize("lowering", ["auto", "loop"])
@pytest.mark.parametrize(("groups", "channels"), [(32, 128), (4, 32), (8, 8)])
def test_many_and_few_groups_equal_torch(groups, channels, lowering):
    """What is computed as patches, group by group, and as shifts."""
    x = normal(0, 2, 6, 6, channels)
    kernel = normal(1, 3, 3, channels // groups, channels) / channels**0.5

    def apply(x, kernel):
        return conv(x, kernel, groups=groups, padding=1, lowering=lowering)

    ours = with_gradients(apply, x, kernel)
    tx = channels_first(x)
    tw = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy(), requires_grad=True)
    y = functional.conv2d(tx, tw, groups=groups, padding=1)
    torch.cos(y).sum().backward()
    close(ours[0], channels_last(y))
    close(ours[1], channels_last(tx.grad))
    close(ours[2], np.moveaxis(tw.grad.numpy(), (0, 1), (-1, -2)))


def test_a_batch_of_none_and_numpys_numbers():
    x, kernel = jnp.zeros((0, 6, 6, 4)), normal(0, 3, 3, 4, 8)
    stride = np.int64(2)

    def loss(kernel):
        return bare_conv(x, kernel, stride=stride).sum()

    np.testing.assert_array_equal(jax.grad(loss)(kernel), jnp.zeros_like(kernel))


def bad(function, words, x, kernel, **options):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: function(jnp.zeros(x), jnp.zeros(kernel), **options))


def test_what_does_not_fit_is_told_with_the_shapes():
    bad(bare_conv, r"got \(2, 3\) and \(3, 3, 4, 8\)", (2, 3), (3, 3, 4, 8))
    bad(bare_conv, r"\(3, 4, 8\)", (2, 9, 9, 4), (3, 4, 8))
    bad(
        bare_conv, r"takes 5 channels.*\(2, 9, 9, 4\) has 4", (2, 9, 9, 4), (3, 3, 5, 8)
    )
    image, kernel = (2, 9, 9, 6), (3, 3, 3, 4)
    bad(bare_conv, "4 groups do not divide the 6", image, kernel, groups=4)
    bad(bare_conv, "3 groups do not divide the 4", image, (3, 3, 2, 4), groups=3)
    bad(bare_conv, r"does not fit.*\(2, 4, 4, 3\)", (2, 4, 4, 3), (5, 5, 3, 4))
    bad(bare_conv, "'samme'", image, (3, 3, 6, 4), padding="samme")
    bad(bare_conv, "causal", image, (3, 3, 6, 4), padding="causal")
    bad(bare_conv, r"odd extent, got \(2,\)", (2, 9, 6), (2, 6, 4), padding="circular")
    bad(bare_conv, "stride", image, (3, 3, 6, 4), stride=0)
    bad(bare_conv, r"2 of them, got \(1, 1, 1\)", image, (3, 3, 6, 4), stride=(1, 1, 1))
    bad(bare_conv, "padding for 2", image, (3, 3, 6, 4), padding=-1)
    bad(bare_transpose, "output_padding", image, (3, 3, 6, 4), output_padding=1)
    same = {"padding": "same", "output_padding": 1, "stride": 2}
    bad(bare_transpose, "output_padding", image, (3, 3, 6, 4), **same)
    bad(bare_conv, "None", image, (3, 3, 6, 4), padding=None)
    bad(bare_transpose, "leaves nothing", (1, 1, 2), (3, 2, 2), padding=2)
    bad(bare_transpose, "circular", image, (3, 3, 6, 4), padding="circular")


def program(lowering, function=conv, dilation=1):
    """Returns the traced forward and backward pass, as text."""
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))

    def gradients(x, kernel):
        def loss(x, kernel):
            return function(
                x, kernel, stride=2, dilation=dilation, lowering=lowering
            ).sum()

        return jax.grad(loss, argnums=(0, 1))(x, kernel)

    return str(jax.make_jaxpr(gradients)(x, kernel))


@pytest.mark.parametrize("function", [conv, conv_transpose])
def test_accelerators_get_the_compilers_own_convolution(monkeypatch, function):
    assert program("loop", function) != program("xla", function)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for lowering in ("auto", "loop"):
        assert program(lowering, function) == program("xla", function)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("function", [conv, conv_transpose])
def test_patches_are_free_of_convolutions_forward_and_backward(function, dilation):
    assert "conv_general_dilated" in program("xla", function, dilation)
    assert "conv_general_dilated" not in program("patches", function, dilation)
