"""Our decoding against pixels that were put into the files."""

import io

import numpy as np
import pytest
from PIL import Image

from dl_core.data.images import decode_image
from dl_core.errors import UserError

_RNG = np.random.default_rng(0)


def _file(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("shape", "channels"), [((4, 5), 1), ((4, 5, 3), 3), ((4, 5, 4), 4)]
)
def test_png_is_exact(shape, channels):
    pixels = _RNG.integers(0, 256, shape, np.uint8)
    decoded = decode_image(_file(Image.fromarray(pixels)), channels)
    np.testing.assert_array_equal(decoded, pixels.reshape(4, 5, channels))


def test_palette_of_a_label_map_is_kept_as_indices():
    labels = _RNG.integers(0, 3, (6, 7), np.uint8)
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    data = _file(image)
    assert Image.open(io.BytesIO(data)).mode == "P"
    np.testing.assert_array_equal(decode_image(data, 1)[..., 0], labels)
    np.testing.assert_array_equal(decode_image(data, None)[..., 0], labels)
    colours = decode_image(data, 3)
    np.testing.assert_array_equal(
        colours[labels == 1], [[128, 0, 0]] * (labels == 1).sum()
    )


def test_channels_are_those_of_the_feature():
    grey = _RNG.integers(0, 256, (4, 5), np.uint8)
    as_colour = decode_image(_file(Image.fromarray(grey)), 3)
    np.testing.assert_array_equal(as_colour, np.stack([grey] * 3, -1))
    colour = np.stack([grey] * 3, -1)
    np.testing.assert_array_equal(
        decode_image(_file(Image.fromarray(colour)), 1)[..., 0], grey
    )
    cmyk = Image.fromarray(colour).convert("CMYK")
    assert decode_image(_file(cmyk, "JPEG"), 3).shape == (4, 5, 3)


def test_16_bits():
    pixels = _RNG.integers(0, 2**16, (4, 5), np.uint16)
    data = _file(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode_image(data, 1, np.uint16)[..., 0], pixels)
    np.testing.assert_array_equal(decode_image(data, 1)[..., 0], pixels >> 8)
    with pytest.raises(UserError, match="16 bits"):
        decode_image(data, 3, np.uint16)


def test_camera_orientation_is_applied():
    pixels = _RNG.integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to view
    data = _file(Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data, 3), np.rot90(pixels, -1))


def test_what_is_no_image_is_refused():
    with pytest.raises(OSError, match="cannot identify"):
        decode_image(b"no image", 3)
