"""Affine maps and the warp against torch, SciPy and kornia, and exactly where exact."""

import inspect

import jax
import jax.numpy as jnp
import kornia.geometry.transform
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.ops import augment

few = settings(max_examples=12, deadline=None, derandomize=True)
# So that two warps of the same shape share a program.
warp = jax.jit(augment.warp, static_argnames=("size", "method", "border"))
SCIPY = {"constant": "grid-constant", "edge": "nearest", "reflect": "reflect"}
TORCH = {"constant": "zeros", "edge": "border", "reflect": "reflection"}


@st.composite
def maps(draw):
    """An image, a size for the result, and a matrix far from the identity."""
    height, width, channels, new_height, new_width = draw(
        st.sampled_from([(7, 9, 3, 6, 11), (8, 5, 1, 8, 5), (4, 4, 2, 9, 3)])
    )
    random = np.random.default_rng(draw(st.integers(0, 99)))
    image = random.random((height, width, channels), np.float32)
    size = (height, width)
    matrix = augment.compose(
        augment.shear(*random.uniform(-30, 30, 2), size),
        augment.scaling(*random.uniform(0.5, 2, 2), size),
        augment.rotation(random.uniform(-180, 180), size),
        augment.translation(*random.uniform(-3, 3, 2)),
    )
    return jnp.asarray(image), matrix, (new_height, new_width)


def random_image(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).random(shape), jnp.float32)


def scipy_warp(image, matrix, size, order, border, fill=0.0):
    back = np.linalg.inv(np.asarray(matrix, np.float64))[:2]
    # To rows and columns, and from the corners of pixels to their centres.
    linear = back[::-1, 1::-1]
    offset = back[::-1, 2] + linear @ [0.5, 0.5] - 0.5
    moved = [
        scipy.ndimage.affine_transform(
            channel, linear, offset, size, order=order, mode=SCIPY[border], cval=fill
        )
        for channel in np.moveaxis(np.asarray(image, np.float64), -1, 0)
    ]
    return np.stack(moved, -1)


@few
@given(maps(), st.sampled_from(list(SCIPY)), st.sampled_from([0.0, 0.25]))
def test_warps_are_scipys(case, border, fill):
    image, matrix, size = case
    smooth = warp(image, matrix, size, border=border, fill=fill)
    expected = scipy_warp(image, matrix, size, 1, border, fill)
    np.testing.assert_allclose(smooth, expected, atol=1e-5)
    nearest = warp(image, matrix, size, method="nearest", border=border, fill=fill)
    expected = scipy_warp(image, matrix, size, 0, border, fill)
    np.testing.assert_allclose(nearest, expected, atol=1e-6)


@few
@given(maps(), st.sampled_from(list(TORCH)))
def test_bilinear_warps_and_both_gradients_are_torchs(case, border):
    image, matrix, size = case
    cotangent = random_image(*size, image.shape[-1])

    @jax.jit
    def compute(image, matrix):
        moved, back = jax.vjp(
            lambda x, m: augment.warp(x, m, size, border=border), image, matrix
        )
        return moved, *back(cotangent)

    height, width = image.shape[:2]
    pixels = torch.tensor(np.moveaxis(np.asarray(image), -1, 0)[None].astype(float))
    forward = torch.tensor(np.asarray(matrix, np.float64))
    pixels.requires_grad_(), forward.requires_grad_()
    to_pixels = torch.diag(torch.tensor([2 / width, 2 / height, 1])).double()
    to_pixels[:2, 2] = -1
    from_new = torch.diag(torch.tensor([size[1] / 2, size[0] / 2, 1])).double()
    from_new[:2, 2] = from_new.diagonal()[:2]
    theta = to_pixels @ torch.linalg.inv(forward) @ from_new
    grid = torch.nn.functional.affine_grid(
        theta[None, :2], (1, 1, *size), align_corners=False
    )
    expected = torch.nn.functional.grid_sample(
        pixels, grid, padding_mode=TORCH[border], align_corners=False
    )
    weights = torch.tensor(
        np.moveaxis(np.asarray(cotangent), -1, 0)[None].astype(float)
    )
    (expected * weights).sum().backward()
    moved, by_image, by_matrix = compute(image, matrix)
    as_ours = lambda x: np.moveaxis(x.detach().numpy()[0], 0, -1)  # noqa: E731
    np.testing.assert_allclose(moved, as_ours(expected), atol=1e-5)
    np.testing.assert_allclose(by_image, as_ours(pixels.grad), atol=2e-5)
    # torch's is by all of the matrix, ours by the part that an affine map has.
    expected = forward.grad.numpy()[:2]
    np.testing.assert_allclose(by_matrix[:2], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
@pytest.mark.parametrize("degrees", [-200.0, 33.0, 90.0])
def test_rotations_are_kornias(size, degrees):
    image = random_image(*size, 3)
    ours = warp(image, augment.rotation(degrees, size))
    tensor = torch.tensor(np.moveaxis(np.asarray(image), -1, 0)[None])
    theirs = kornia.geometry.transform.rotate(tensor, torch.tensor([degrees]))
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy()[0], 0, -1), atol=1e-5)


def test_matrices_and_their_order_are_kornias():
    size, (x, y), factors, degrees = (9, 14), (1.5, -2.0), (0.7, 1.3), 25.0
    ours = augment.compose(
        augment.shear(12, -7, size),
        augment.scaling(*factors, size),
        augment.rotation(degrees, size),
        augment.translation(x, y),
    )
    center = torch.tensor([[size[1] / 2, size[0] / 2]])
    rotated = kornia.geometry.transform.get_affine_matrix2d(
        torch.tensor([[x, y]]), center, torch.ones(1, 2), torch.tensor([-degrees])
    )
    scaled = kornia.geometry.transform.get_affine_matrix2d(
        torch.zeros(1, 2), center, torch.tensor([factors]), torch.zeros(1)
    )
    sheared = kornia.geometry.transform.get_shear_matrix2d(
        center, *torch.deg2rad(torch.tensor([[-12.0], [7.0]]))
    )
    np.testing.assert_allclose(ours, (rotated @ scaled @ sheared)[0], atol=1e-5)
    np.testing.assert_allclose(
        augment.invert(ours), np.linalg.inv(np.asarray(ours, np.float64)), atol=1e-5
    )


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int32])
def test_what_moves_whole_pixels_is_exact(method, dtype):
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (6, 6, 3)).astype(dtype)
    image = image if np.issubdtype(dtype, np.integer) else image * dtype(0.1)
    turn = lambda k, x: np.rot90(x, k)  # noqa: E731
    for element in range(8):
        moved = warp(
            jnp.asarray(image), augment.dihedral(element, (6, 6)), method=method
        )
        mirrored = image[:, ::-1] if element >= 4 else image
        np.testing.assert_array_equal(moved, turn(element % 4, mirrored))
        assert moved.dtype == dtype
    wide = image[:4]
    for degrees in (0, 180, -360):
        moved = warp(
            jnp.asarray(wide), augment.rotation(degrees, (4, 6)), method=method
        )
        np.testing.assert_array_equal(moved, turn(degrees // 90, wide))
    moved = warp(
        jnp.asarray(wide), augment.translation(1, -2), method=method, fill=dtype(9)
    )
    expected = np.full_like(wide, 9)
    expected[:2, 1:] = wide[2:, :-1]
    np.testing.assert_array_equal(moved, expected)


def test_the_dihedral_maps_are_a_group():
    elements = [np.asarray(augment.dihedral(i, (5, 5))) for i in range(8)]
    known = {element.tobytes() for element in elements}
    assert len(known) == 8
    for first in elements:
        for second in elements:
            product = augment.compose(jnp.asarray(first), jnp.asarray(second))
            assert (np.asarray(product) + 0.0).tobytes() in known


def smooth_image(size):
    y, x = np.indices(size)
    return jnp.asarray(
        np.stack([np.sin(x / 9 + y / 13), np.cos(y / 11)], -1), jnp.float32
    )


def test_two_warps_are_the_warp_of_the_product_and_one_is_undone_by_its_inverse():
    size = (48, 48)
    image = smooth_image(size)
    first = augment.rotation(20, size)
    second = augment.compose(
        augment.scaling(1.1, 0.9, size), augment.translation(2.3, -1.6)
    )
    twice = warp(warp(image, first, border="edge"), second, border="edge")
    once = warp(image, augment.compose(first, second), border="edge")
    inner = np.s_[14:34, 14:34]
    np.testing.assert_allclose(twice[inner], once[inner], atol=5e-3)
    assert np.abs(once[inner] - image[inner]).max() > 0.1
    back = warp(once, augment.invert(augment.compose(first, second)), border="edge")
    np.testing.assert_allclose(back[inner], image[inner], atol=5e-3)


def test_a_crop_of_the_whole_is_torchs_resize():
    image = random_image(6, 9, 2)
    box = jnp.array([0.0, 0.0, 9.0, 6.0])
    ours = warp(image, augment.crop(box, (11, 7)), (11, 7), border="edge")
    theirs = torch.nn.functional.interpolate(
        torch.tensor(np.moveaxis(np.asarray(image), -1, 0)[None]),
        (11, 7),
        mode="bilinear",
        align_corners=False,
    )
    np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy()[0], 0, -1), atol=1e-5)


def test_bytes_are_rounded_to_the_nearest_level():
    image = np.random.default_rng(1).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    matrix = augment.rotation(17, (9, 9))
    moved = warp(jnp.asarray(image), matrix)
    exact = scipy_warp(image, matrix, (9, 9), 1, "constant")
    assert moved.dtype == jnp.uint8
    assert np.abs(moved - exact).max() <= 0.5 + 1e-3


def test_a_fill_of_one_number_a_channel():
    moved = warp(
        random_image(3, 3, 2), augment.translation(10, 0), fill=jnp.array([0.5, 0.25])
    )
    np.testing.assert_array_equal(moved, np.broadcast_to([0.5, 0.25], (3, 3, 2)))


def test_a_map_that_is_singular_reads_only_the_image():
    moved = warp(random_image(3, 3, 1), jnp.diag(jnp.array([0.0, 0.0, 1.0])))
    assert not np.isfinite(moved).any()


@pytest.mark.parametrize(
    ("image", "matrix", "options", "words"),
    [
        ((2, 3, 3, 1), (3, 3), {}, r"\(2, 3, 3, 1\)"),
        ((3,), (3, 3), {}, r"\(3,\)"),
        ((3, 3, 1), (2, 3), {}, r"\(2, 3\)"),
        ((3, 3, 1), (3, 3), {"method": "cubic"}, "cubic"),
        ((3, 3, 1), (3, 3), {"border": "wrap"}, "wrap"),
    ],
)
def test_what_does_not_fit_is_told(image, matrix, options, words):
    plain = inspect.unwrap(augment.warp)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(
            lambda x, m: plain(x, m, **options), jnp.zeros(image), jnp.zeros(matrix)
        )


def test_masks_of_booleans_are_not_interpolated():
    with pytest.raises(ValueError, match="nearest"):
        augment.warp(jnp.zeros((3, 3), bool), jnp.eye(3))


def test_only_squares_have_eight_symmetries():
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        augment.dihedral(1, (3, 4))
