"""Local response normalisation against torch and ONNX Runtime; norms against an SVD."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.ops.conv import conv, conv_matrix, conv_transpose
from dl_core.ops.normalization import local_response_norm, operator_norm

few = settings(max_examples=8, deadline=None, derandomize=True)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def to_torch(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@st.composite
def responses(draw):
    """Activations, and the settings of a normalisation strong enough to matter."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    channels, size = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    numbers = {
        "alpha": draw(st.floats(0.1, 2)),
        "beta": draw(st.floats(0.3, 1.5)),
        "k": draw(st.floats(0.5, 2)),
    }
    return noise(draw(st.integers(0, 9)), *shape, channels), size, numbers


@few
@given(responses())
def test_response_norm_with_the_mean_is_torchs(case):
    x, size, numbers = case
    tensor = to_torch(x).requires_grad_()
    expected = torch.nn.functional.local_response_norm(tensor, size, **numbers)
    cotangent = noise(1, *x.shape)
    expected.backward(to_torch(cotangent))

    @jax.jit
    def both(x, cotangent):
        norm = functools.partial(local_response_norm, size=size, average=True)
        y, back = jax.vjp(lambda x: norm(x, **numbers), x)
        return y, back(cotangent)[0]

    y, gradient = both(x, cotangent)
    np.testing.assert_allclose(y, from_torch(expected), atol=1e-5)
    np.testing.assert_allclose(gradient, from_torch(tensor.grad), atol=1e-5)


@few
@given(responses())
def test_response_norm_with_the_sum_is_the_papers(case):
    x, size, numbers = case
    y = jax.jit(lambda x: local_response_norm(x, size, **numbers))(x)
    wide = np.asarray(x, np.float64)
    for channel in range(x.shape[-1]):
        # The paper's bounds where the size is odd.
        first, last = channel - size // 2, channel + (size - 1) // 2
        window = wide[..., max(first, 0) : min(last, x.shape[-1] - 1) + 1]
        scale = numbers["k"] + numbers["alpha"] * (window**2).sum(-1)
        expected = wide[..., channel] / scale ** numbers["beta"]
        np.testing.assert_allclose(np.asarray(y)[..., channel], expected, atol=1e-5)


@pytest.mark.parametrize("average", [True, False])
def test_response_norm_is_onnx_runtimes(average):
    x, size, alpha = noise(0, 2, 3, 4, 7), 5, 0.3
    kind = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node(
        "LRN",
        ["x"],
        ["y"],
        size=size,
        alpha=alpha if average else alpha * size,
        beta=0.75,
        bias=2.0,
    )
    graph = onnx.helper.make_graph(
        [node],
        "lrn",
        [onnx.helper.make_tensor_value_info("x", kind, (2, 7, 3, 4))],
        [onnx.helper.make_tensor_value_info("y", kind, (2, 7, 3, 4))],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    [expected] = session.run(None, {"x": np.moveaxis(np.asarray(x), -1, 1)})
    y = local_response_norm(x, size, alpha=alpha, average=average)
    np.testing.assert_allclose(y, np.moveaxis(expected, 1, -1), atol=1e-5)


def test_response_norm_tells_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 3\) and size 0"):
        local_response_norm(jnp.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match=r"got \(\)"):
        inspect.unwrap(local_response_norm)(jnp.zeros(()))


CONVOLUTIONS = [
    {"padding": "same"},
    {"padding": "circular"},
    {"padding": "valid", "stride": 2},
    {"padding": "same", "dilation": 2},
    {"padding": 1, "groups": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_operator_norm_is_that_of_the_matrix(options):
    # Kernels away from zero have one singular value well above the others.
    kernel = 1 + noise(0, 3, 3, 2 // options.get("groups", 1), 4)
    matrix = conv_matrix(kernel, (5, 7, 2), **options)
    start = noise(1, 1, 5, 7, 2)

    @jax.jit
    def forward(kernel):
        return operator_norm(lambda x: conv(x, kernel, **options), start, 200)

    left, values, right = np.linalg.svd(matrix.astype(np.float64))
    (norm, vector), gradient = jax.value_and_grad(forward, has_aux=True)(kernel)
    np.testing.assert_allclose(norm, values[0], rtol=1e-5)
    alignment = abs(right[0] @ np.asarray(vector).ravel())
    np.testing.assert_allclose(alignment, 1, atol=1e-3)
    # The derivative of a singular value is that of uᵀAv.
    direction = noise(2, *kernel.shape)
    change = left[:, 0] @ conv_matrix(direction, (5, 7, 2), **options) @ right[0]
    np.testing.assert_allclose(jnp.vdot(gradient, direction), change, rtol=1e-2)


def test_operator_norm_of_a_transpose_is_that_of_the_convolution():
    kernel = noise(0, 4, 4, 3, 2)
    matrix = conv_matrix(kernel, (8, 8, 3), stride=2, padding=1)

    def transposed(y):
        return conv_transpose(y, kernel.swapaxes(2, 3), stride=2, padding=1)

    norm, _ = operator_norm(transposed, noise(1, 1, 4, 4, 2), 200)
    np.testing.assert_allclose(norm, np.linalg.norm(matrix, 2), rtol=1e-5)


def test_operator_norm_goes_on_from_where_it_was():
    matrix = noise(0, 6, 4)
    vector = noise(1, 4)
    together, _ = operator_norm(lambda x: matrix @ x, vector, 6)
    norms = []
    for _ in range(6):
        norm, vector = operator_norm(lambda x: matrix @ x, vector)
        norms.append(norm)
    np.testing.assert_allclose(norms[-1], together, rtol=1e-5)
    assert norms == sorted(norms)
    assert norms[-1] <= np.linalg.norm(matrix, 2) * (1 + 1e-6)
    with pytest.raises(ValueError, match="got 0"):
        operator_norm(lambda x: matrix @ x, vector, 0)
