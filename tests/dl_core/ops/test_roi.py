"""RoI pooling and RoI align against ONNX Runtime, and their gradients against torch."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dl_core.ops import roi

few = settings(max_examples=12, deadline=None, derandomize=True)
BOXES = 6


@st.composite
def regions(draw):
    """Features of two images, boxes in and around them, the image of each, a grid."""
    random = np.random.default_rng(draw(st.integers(0, 999)))
    features = jnp.asarray(random.standard_normal((2, 9, 7, 3)), jnp.float32)
    corners = random.uniform(-20, 60, (BOXES, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0, 60, (BOXES, 2))], 1)
    grid = draw(st.sampled_from([(1, 1), (2, 3), (4, 2)]))
    images = jnp.asarray(random.integers(0, 2, BOXES), jnp.int32)
    return features, jnp.asarray(boxes, jnp.float32), images, grid


def run_onnx(operator, version, inputs, **attributes):
    """Returns what ONNX Runtime computes with one operator."""
    helper = onnx.helper
    node = helper.make_node(operator, list(inputs), ["y"], **attributes)
    typed = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in inputs.items()
    ]
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "one", typed, [result]),
        opset_imports=[helper.make_opsetid("", version)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.moveaxis(session.run(None, inputs)[0], 1, -1)


def channels_first(features):
    return np.ascontiguousarray(np.moveaxis(np.asarray(features), -1, 1))


def float32_edges_are_exact(boxes, bins, scale):
    """Whether the references' bins are those of the formula, for all of the boxes."""
    boxes = np.asarray(boxes) * np.float32(scale)
    corners = np.trunc(boxes + np.copysign(np.float32(0.5), boxes)).astype(int)
    for first, last, n in ((0, 2, bins[1]), (1, 3, bins[0])):
        sizes = np.maximum(corners[:, last] - corners[:, first] + 1, 1)[:, None]
        i, size = np.arange(n, dtype=np.float32), sizes.astype(np.float32) / n
        if (np.floor(i * size) != np.arange(n) * sizes // n).any():
            return False
        if (np.ceil((i + 1) * size) != -(-np.arange(1, n + 1) * sizes // n)).any():
            return False
    return True


@few
@given(regions(), st.sampled_from([1.0, 0.25, 0.125]))
def test_roi_pool_is_onnx_max_roi_pool(case, scale):
    features, boxes, images, grid = case
    assume(float32_edges_are_exact(boxes, grid, scale))
    rois = np.concatenate([np.asarray(images)[:, None], boxes], 1).astype(np.float32)
    expected = run_onnx(
        "MaxRoiPool",
        1,
        {"x": channels_first(features), "rois": rois},
        pooled_shape=grid,
        spatial_scale=scale,
    )
    pool = jax.jit(
        lambda features, boxes, images: roi.roi_pool(
            features, boxes, grid, images, spatial_scale=scale
        )
    )
    np.testing.assert_array_equal(pool(features, boxes, images), expected)


@few
@given(regions(), st.integers(0, 3), st.booleans())
def test_roi_align_is_onnx_roi_align(case, sampling_ratio, aligned):
    features, boxes, images, grid = case
    expected = run_onnx(
        "RoiAlign",
        16,
        {
            "x": channels_first(features),
            "rois": np.asarray(boxes),
            "images": np.asarray(images, np.int64),
        },
        output_height=grid[0],
        output_width=grid[1],
        sampling_ratio=sampling_ratio,
        spatial_scale=0.125,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )
    align = jax.jit(
        lambda features, boxes, images: roi.roi_align(
            features,
            boxes,
            grid,
            images,
            spatial_scale=0.125,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
        )
    )
    np.testing.assert_allclose(align(features, boxes, images), expected, atol=1e-5)


def test_inside_the_image_roi_pool_and_its_gradient_are_torchs_on_the_crop():
    random = np.random.default_rng(0)
    features = random.integers(0, 4, (9, 8, 3)).astype(np.float32)  # Many ties.
    boxes = [(0, 0, 7, 8), (2, 3, 6, 7), (1, 1, 2, 2), (4, 5, 4, 5), (3, 0, 7, 3)]
    tensor = torch.tensor(features.transpose(2, 0, 1).copy(), requires_grad=True)
    expected = torch.stack(
        [
            torch.nn.functional.adaptive_max_pool2d(
                tensor[:, y_min : y_max + 1, x_min : x_max + 1], (3, 2)
            )
            for x_min, y_min, x_max, y_max in boxes
        ]
    )
    pooled, back = jax.vjp(
        lambda x: roi.roi_pool(x, jnp.asarray(boxes, jnp.float32), (3, 2)),
        jnp.asarray(features),
    )
    np.testing.assert_array_equal(pooled, np.moveaxis(expected.detach().numpy(), 1, -1))
    cotangent = random.standard_normal(pooled.shape).astype(np.float32)
    expected.backward(torch.tensor(channels_first(cotangent)))
    gradient = tensor.grad.numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(back(jnp.asarray(cotangent))[0], gradient, atol=1e-5)


def test_roi_align_and_its_gradient_are_torchs_grid_sample():
    random = np.random.default_rng(0)
    height, width, bins, points = 9, 7, 2, 3
    features = random.standard_normal((height, width, 4)).astype(np.float32)
    boxes = np.asarray([(1, 0.5, 5.2, 8), (-3, 2, 3.7, 12), (5, 5, 5.5, 6)], np.float32)

    tensor = torch.tensor(features.transpose(2, 0, 1).copy(), requires_grad=True)
    fractions = (np.arange(bins * points) + 0.5) / (bins * points)
    expected = []
    for x_min, y_min, x_max, y_max in boxes:
        x = x_min + fractions * (x_max - x_min) - 0.5
        y = y_min + fractions * (y_max - y_min) - 0.5
        x, y = np.meshgrid(x, y)
        near = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
        where = np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        sampled = torch.nn.functional.grid_sample(
            tensor[None],
            torch.tensor(where[None], dtype=torch.float32),
            padding_mode="border",
            align_corners=True,
        )
        sampled = sampled * torch.tensor(near, dtype=torch.float32)
        expected.append(torch.nn.functional.avg_pool2d(sampled, points)[0])
    expected = torch.stack(expected)

    aligned, back = jax.vjp(
        lambda x: roi.roi_align(x, jnp.asarray(boxes), bins, sampling_ratio=points),
        jnp.asarray(features),
    )
    np.testing.assert_allclose(
        aligned, np.moveaxis(expected.detach().numpy(), 1, -1), atol=1e-5
    )
    cotangent = random.standard_normal(aligned.shape).astype(np.float32)
    expected.backward(torch.tensor(channels_first(cotangent)))
    gradient = tensor.grad.numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(back(jnp.asarray(cotangent))[0], gradient, atol=1e-5)


@pytest.mark.parametrize("function", [roi.roi_pool, roi.roi_align])
def test_each_image_alone_gives_the_same_and_boxes_get_no_gradient(function):
    random = np.random.default_rng(0)
    features = jnp.asarray(random.standard_normal((2, 6, 5, 3)), jnp.float32)
    boxes = jnp.asarray([[0, 0, 3, 4.2], [1, 2, 4.7, 5.1], [2, 0, 4, 4], [0, 3, 4, 5]])
    images = jnp.asarray([0, 0, 1, 1], jnp.int32)

    def together(features, boxes):
        return function(features, boxes, 2, images)

    apart = jax.vmap(lambda features, boxes: function(features, boxes, 2))
    expected = jnp.concatenate(apart(features, boxes.reshape(2, 2, 4)))
    np.testing.assert_allclose(together(features, boxes), expected, atol=1e-6)

    by_features, by_boxes = jax.grad(lambda *x: (together(*x) ** 2).sum(), (0, 1))(
        features, boxes
    )
    by_features_apart = jax.grad(
        lambda features: (apart(features, boxes.reshape(2, 2, 4)) ** 2).sum()
    )(features)
    np.testing.assert_allclose(by_features, by_features_apart, atol=1e-5)
    np.testing.assert_array_equal(by_boxes, 0)


def test_boxes_far_outside_give_zero_and_no_boxes_give_none():
    features = jnp.full((4, 4, 2), -3.0)
    far = jnp.asarray([[50.0, 50, 60, 60], [-60, -60, -50, -50]])
    for function in (roi.roi_pool, roi.roi_align):
        value, gradient = jax.value_and_grad(
            lambda x, function=function: function(x, far, 2).sum()
        )(features)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
        assert function(features, jnp.zeros((0, 4)), 3).shape == (0, 3, 3, 2)


def test_a_nan_is_the_maximum_of_the_bins_that_hold_it_only():
    features = jnp.ones((4, 4, 1)).at[0, 3].set(jnp.nan).at[2:, :2].set(-jnp.inf)
    pooled = roi.roi_pool(features, jnp.asarray([[0.0, 0, 3, 3]]), 2)
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[1, np.nan], [-np.inf, 1]])


def test_halves_are_rounded_away_from_zero():
    features = jnp.arange(6.0).reshape(1, 6, 1)
    boxes = jnp.asarray([[0, 0, 2.5, 0], [0, 0, 3.5, 0], [0, 0, 2.49, 0]])
    np.testing.assert_array_equal(roi.roi_pool(features, boxes, 1).ravel(), [3, 4, 2])


@pytest.mark.parametrize("function", [roi.roi_pool, roi.roi_align])
def test_shapes_that_do_not_fit_are_told_when_traced(function):
    image, batch = jnp.zeros((6, 5, 3)), jnp.zeros((2, 6, 5, 3))
    boxes, images = jnp.zeros((4, 4)), jnp.zeros(4, jnp.int32)
    for arguments, message in (
        ((batch, boxes, 2), r"\(2, 6, 5, 3\) without"),
        ((image, boxes, 2, images), r"\(6, 5, 3\) with"),
        ((image, jnp.zeros((4, 5)), 2), r"\(boxes, 4\), not \(4, 5\)"),
        ((batch, boxes, 2, images[:3]), r"\(4, 4\) and batch_indices \(3,\)"),
        ((image, boxes, (2, 0)), r"at least 1, not \(2, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(function)(*arguments)


@pytest.mark.parametrize(
    "wrong", [(-1, 0, 2, 2), (0, 0, 11, 2), (3, 0, 2, 2), (0, 0, np.nan, 2)]
)
def test_check_boxes_names_the_first_box_that_is_not_in_the_image(wrong):
    boxes = np.asarray([(0, 0, 10, 8), wrong, wrong], np.float32)
    roi.check_boxes(boxes[:1], 8, 10)
    with pytest.raises(ValueError, match=r"Box 1 of \(3, 4\), .*height 8 and width 10"):
        roi.check_boxes(boxes, 8, 10)


def test_check_boxes_tells_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(boxes, 4\), not \(4,\)"):
        inspect.unwrap(roi.check_boxes)(np.zeros(4, np.float32), 8, 10)
