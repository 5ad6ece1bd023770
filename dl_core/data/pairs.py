"""Pairs of images, an input and what to make of it: edges to photograph, photo to map.

Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR
2017. Two kinds of pairs: photographs of blood cells, which ship with the project, and
the edges found in them (Canny, "A computational approach to edge detection", 1986); and
images that lie side by side in one file, as in all of the paper's data sets (maps,
facades, Cityscapes, edges to shoes).

Training images are a little larger than what the network sees, and are cropped and
mirrored at random in the compiled step: section 6.2 of the paper, "random jitter".
"""

import functools
import io
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8
from PIL import Image
from scipy import ndimage

from dl_core.config import config, static
from dl_core.data.blood_cells import photographs
from dl_core.errors import UserError
from dl_core.ops.augment import compose, random_crop, random_flip, warp

Pairs = dict[str, UInt8[np.ndarray, "pairs height width _"]]
"""`input` and `target`, of one height and width; channels may differ."""

_JITTER = 286 / 256
"""How much larger than the crop an image is in training."""
_SUFFIXES = (".jpg", ".jpeg", ".png")
_GREY = np.array([0.299, 0.587, 0.114])


@config
class PairsConfig:
    """Which pairs."""

    name: Literal["bccd_small", "side_by_side"] = static(
        "bccd_small", "Edges to photographs of blood cells, or the pairs of a folder."
    )
    path: str = static(
        "", "Of side_by_side: a folder with train and val, folders or zip files."
    )
    reverse: bool = static(
        False, "Of side_by_side: make the left image of the right one."
    )
    size: int = static(64, "Pixels a side that the networks see.", at_least=4)
    reduce: int = static(
        2, "Of bccd_small: pixels a side that are averaged to one.", at_least=1
    )


@functools.lru_cache(maxsize=4)
def load_pairs(chosen: PairsConfig, *, train: bool) -> Pairs:
    """Returns the pairs to train on, to be cropped, or those to test on, cropped.

    Of photographs of blood cells, both are cut from the reduced photographs: for tests
    in a fixed grid of as many crops as fit. Images that lie side by side are resized:
    for training to 286/256 of the size, for tests (`val`) to the size.

    Raises:
      UserError: if a crop does not fit, or the files are not there or not pairs.
    """
    size = chosen.size
    if chosen.name == "side_by_side":
        side = round(size * _JITTER) if train else size
        return side_by_side(
            chosen.path, "train" if train else "val", side, chosen.reverse
        )
    whole = photographs("train" if train else "test")
    height, width = (side // chosen.reduce for side in whole.shape[1:3])
    if size > min(height, width):
        raise UserError(
            f"--config.data.size={size}: the photographs have {height}×{width} pixels "
            f"with --config.data.reduce={chosen.reduce}"
        )
    pairs = edges_to_photographs(reduced(whole, chosen.reduce))
    if train:
        return pairs
    return {name: grid_of_crops(images, size) for name, images in pairs.items()}


def edges_to_photographs(photographs: UInt8[np.ndarray, "n height width 3"]) -> Pairs:
    """Returns the edges of photographs, black (0) on white (255), and photographs."""
    grey = photographs @ _GREY / 255
    edges = np.stack([canny(image) for image in grey])[..., None]
    return {"input": np.where(edges, 0, 255).astype(np.uint8), "target": photographs}


def canny(
    image: Float[np.ndarray, "height width"],
    sigma: float = 1.0,
    low: float = 0.1,
    high: float = 0.2,
) -> Bool[np.ndarray, "height width"]:
    """Returns where the edges of a grey image are, a pixel thick.

    An edge is where the slope (of Sobel's filters, after smoothing) is larger than to
    both sides along its direction, linearly interpolated, and is at least `low`; of the
    connected edges those stay that somewhere reach `high`. As
    `skimage.feature.canny(image, sigma, low, high, mode="nearest")`.

    Args:
      image: values from 0 to 1.
      sigma: standard deviation of the Gaussian that smooths, in pixels.
      low: the least slope.
      high: the least slope somewhere on an edge.
    """
    smooth = ndimage.gaussian_filter(image, sigma, mode="nearest")
    down, across = ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)
    slope = np.sqrt(down**2 + across**2)
    # The outermost pixels have no neighbour on one side.
    y, x = np.nonzero(np.pad(slope[1:-1, 1:-1] >= low, 1) & (slope > 0))
    dy, dx = down[y, x], across[y, x]
    up, right = np.where(dy < 0, -1, 1), np.where(dx < 0, -1, 1)
    steep = np.abs(dy) > np.abs(dx)
    lesser, larger = np.sort(np.abs([dy, dx]), axis=0)
    diagonal = lesser / larger

    def beside(way: int) -> np.ndarray:
        straight = slope[y + way * steep * up, x + way * ~steep * right]
        corner = slope[y + way * up, x + way * right]
        return diagonal * corner + (1 - diagonal) * straight

    here = slope[y, x]
    largest = (beside(1) <= here) & (beside(-1) <= here)
    thin = np.zeros_like(slope, bool)
    thin[y[largest], x[largest]] = True
    labels, _ = ndimage.label(thin, np.ones((3, 3)))
    return thin & np.isin(labels, np.unique(labels[thin & (slope >= high)]))


def side_by_side(path: str, split: str, size: int, reverse: bool = False) -> Pairs:
    """Returns the pairs in the images of a folder, or of a zip file, by name.

    Args:
      path: the folder that holds the folder `split`, or the file `split`.zip.
      split: `train` or `val`.
      size: pixels a side to which both halves are resized (bicubic).
      reverse: whether the right half is the input, not the left.

    Raises:
      UserError: if there is no such folder, there are no images in it, or one of them
        cannot be read, is of odd width, or of another size than the first.
    """
    halves, first = [], None
    for name, content in _images(path, split):
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except (OSError, SyntaxError):
            raise UserError(f"{name} cannot be read as an image") from None
        width, height = image.size
        first = first or image.size
        if image.size != first:
            raise UserError(
                f"{name}: all images must have one size, this has {width}×{height} "
                f"pixels, the first {first[0]}×{first[1]}"
            )
        if width % 2:
            raise UserError(
                f"{name}: two images side by side have an even width, this has {width} "
                "pixels"
            )
        boxes = (0, 0, width // 2, height), (width // 2, 0, width, height)
        resized = [
            image.resize((size, size), Image.Resampling.BICUBIC, box) for box in boxes
        ]
        halves.append([np.asarray(half) for half in resized])
    left, right = np.stack(halves, axis=1)
    if reverse:
        left, right = right, left
    return {"input": left, "target": right}


def _images(path: str, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the content of each image file of a split."""
    flag = f"--config.data.path={path}"
    if not path:
        raise UserError(
            "--config.data.path: pairs side by side are read from a folder that holds "
            "train and val, folders or zip files of images; none was given"
        )
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{flag}: there is no such folder")
    folder, archive = root / split, root / f"{split}.zip"
    if folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
        yield from ((str(file), file.read_bytes()) for file in files)
        found = len(files)
    elif archive.is_file():
        try:
            opened = zipfile.ZipFile(archive)
        except zipfile.BadZipFile:
            raise UserError(f"{archive} is not a whole zip file") from None
        with opened:
            names = sorted(
                n for n in opened.namelist() if n.lower().endswith(_SUFFIXES)
            )
            for name in names:
                try:
                    content = opened.read(name)
                except (zipfile.BadZipFile, RuntimeError, zlib.error) as error:
                    raise UserError(
                        f"{archive}: {name} cannot be read ({error})"
                    ) from None
                yield f"{archive}/{name}", content
            found = len(names)
    else:
        raise UserError(f"{flag}: there is neither {folder} nor {archive}")
    if not found:
        where = folder if folder.is_dir() else archive
        raise UserError(f"{where} holds no images ({', '.join(_SUFFIXES)})")


def reduced(
    images: UInt8[np.ndarray, "n height width channels"], factor: int
) -> UInt8[np.ndarray, "n new_height new_width channels"]:
    """Returns the images with squares of pixels averaged; what is over is cut off."""
    count, height, width, channels = images.shape
    height, width = height // factor, width // factor
    cut = images[:, : height * factor, : width * factor]
    squares = cut.reshape(count, height, factor, width, factor, channels)
    return np.round(squares.mean(axis=(2, 4))).astype(np.uint8)


def grid_of_crops(
    images: UInt8[np.ndarray, "n height width channels"], size: int
) -> UInt8[np.ndarray, "crops size size channels"]:
    """Returns as many square crops of each image as fit beside each other, centred."""
    (top, rows), (left, columns) = (
        (side % size // 2, side // size) for side in images.shape[1:3]
    )
    cut = images[:, top : top + rows * size, left : left + columns * size]
    parts = cut.reshape(len(images), rows, size, columns, size, -1)
    return parts.swapaxes(2, 3).reshape(-1, size, size, images.shape[-1])


def jitter(
    key: Key[Array, ""], pairs: Mapping[str, UInt8[Array, "n _ _ _"]], size: int
) -> dict[str, UInt8[Array, "n size size _"]]:
    """Returns a random square of each pair, mirrored or not: of both images the same.

    Args:
      key: the randomness.
      pairs: arrays of one height and width.
      size: height and width of the squares.
    """
    images = jnp.concatenate(list(pairs.values()), axis=-1)
    shape, new_shape = images.shape[1:3], (size, size)

    def one(key, image):
        crop, flip = jax.random.split(key)
        matrix = compose(
            random_crop(crop, shape, new_shape), random_flip(flip, new_shape)
        )
        return warp(image, matrix, new_shape, method="nearest")

    images = jax.vmap(one)(jax.random.split(key, len(images)), images)
    ends = np.cumsum([x.shape[-1] for x in pairs.values()])[:-1]
    return dict(zip(pairs, jnp.split(images, ends, axis=-1), strict=True))


def to_unit(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Returns bytes as numbers from -1 to 1, what the networks take and give."""
    return images.astype(jnp.float32) / 127.5 - 1
