"""Decoding images with Pillow, the same on every machine.

TFDS's own decoding gives other pixels where OpenCV is installed (the colours of a label
map's palette instead of its labels), and other numbers of channels than its features
declare.
"""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps

from dl_core.errors import UserError

_MODES = {3: "RGB", 4: "RGBA"}


def decode_image(
    data: bytes, channels: int | None = 3, dtype: Any = np.uint8
) -> Shaped[np.ndarray, "height width channels"]:
    """Decodes an image file.

    Args:
      data: the file's bytes: PNG, JPEG or whatever Pillow reads.
      channels: 3 and 4 convert to RGB and RGBA, 1 to grey; a file of one channel is
        then taken as it is, so a palette's indices are kept (they are labels). None
        takes every file as it is.
      dtype: of the values; float32 reads each RGBA pixel as one number, as TFDS writes
        them.

    Raises:
      OSError: if the bytes are not an image.
      UserError: if the image is to have several channels of 16 bits.
    """
    if dtype == np.uint16 and channels != 1:
        raise UserError("images of 16 bits can be read with one channel only")
    with Image.open(io.BytesIO(data)) as image:
        if dtype == np.float32:
            return np.asarray(image.convert("RGBA")).view(np.float32)
        if channels in _MODES:
            # Cameras store which way is up beside the pixels.
            image = ImageOps.exif_transpose(image).convert(_MODES[channels])
        elif channels == 1 and len(image.getbands()) > 1:
            image = ImageOps.exif_transpose(image).convert("L")
        pixels = np.asarray(image)
    if pixels.dtype == np.uint16 and dtype == np.uint8:
        pixels = pixels >> 8
    pixels = pixels.astype(dtype, copy=False)
    return pixels if pixels.ndim == 3 else pixels[..., None]


class ImageDecoder:
    """Takes the place of a TFDS image feature's own decoding."""

    def setup(self, *, feature: Any) -> None:
        """Is told the feature by TFDS, before decoding."""
        self._channels = feature.shape[-1] or None
        self._dtype = np.dtype(feature.np_dtype)

    def decode_example_np(self, data: bytes) -> np.ndarray:
        """Decodes one image."""
        return decode_image(data, self._channels, self._dtype)

    def decode_batch_example_np(self, batch: Iterable[bytes]) -> np.ndarray | list:
        """Decodes a sequence of images, of one size or not."""
        images = [self.decode_example_np(data) for data in batch]
        same = len({image.shape for image in images}) == 1
        return np.stack(images) if same else images


def image_decoders(feature: Any) -> Any:
    """Returns the `decoders` for TFDS that put ours to every image of a feature."""
    import tensorflow_datasets as tfds

    match feature:
        case tfds.features.Image():
            return ImageDecoder()
        case tfds.features.FeaturesDict():
            parts = {name: image_decoders(part) for name, part in feature.items()}
            return {name: part for name, part in parts.items() if part} or None
        case tfds.features.Sequence():
            return image_decoders(feature.feature)
        case _:
            return None
