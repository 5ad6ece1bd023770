"""Batches of images with boxes, for every detector alike.

An image is a row of bytes on the device until the step that uses it makes it numbers,
and moves and recolours it and its boxes (`augment`). A batch has

    image       float32 (batch, height, width, 3), (x / 255 − 0.5) / 0.25
    boxes       float32 (batch, most, 4), xyxy in pixels of the image; padding is 0
    labels      int32 (batch, most); padding is −1
    difficult   bool (batch, most): not to be counted against a detector
    scale       float32 (batch, 2): pixels of the original image on one here, along x, y
    example     int32 (batch,): the image's number in its split

and, where they are asked for, `proposals` (batch, most, 4) with `proposal_mask`.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped, UInt8

from dl_core.config import config, static, traced
from dl_core.data import boxed_images, digit_scenes
from dl_core.data.batches import Batch, Data, InMemory, Prepare
from dl_core.data.boxed_images import read_image
from dl_core.data.detection_augment import augment
from dl_core.data.folders import resolve
from dl_core.data.voc_folder import prepare_folder
from dl_core.errors import UserError
from dl_core.ops.proposals import ProposalConfig, cached

__all__ = ["DetectionData", "classes", "detection_data", "read_image", "to_input"]

SHOWN = 6
"""Images of the test set that `Data.shown` holds."""
_MEAN, _SPREAD = 0.5, 0.25
_SCENES = "digit_scenes"
_DIGITS = 6
"""Digits in a scene at most."""
_EVALUATED = 256
"""Scenes in a set to evaluate on."""


@config
class DetectionData:
    """Which images, at what size, and how they are varied in training."""

    name: str = static(
        "bccd_small",
        "bccd_small, voc_folder (with path), digit_scenes, or TFDS's with boxes: "
        "voc/2007.",
    )
    path: str = static("", "Folder in the layout of VOC, for voc_folder.")
    bad_boxes: Literal["error", "skip"] = static(
        "error", "What a box or file of that folder that cannot be used does."
    )
    train: str = static("train", "Split to train on, or a slice of one.")
    validation: str = static("validation", "Split to validate on.")
    test: str = static("test", "Split to test on.")
    height: int = static(120, "Pixels of the network's input.", at_least=1)
    width: int = static(160, "Pixels of the network's input.", at_least=1)
    examples: int = static(0, "Images to train on; all if 0.", at_least=0)
    evaluated: int = static(
        0, "Images of each set to evaluate on; all (256 scenes) if 0.", at_least=0
    )
    augment: Literal["none", "flip", "ssd", "yolo"] = static(
        "flip",
        "How training images are varied: mirrored, and as in these papers; not scenes.",
    )
    flip: float = traced(0.5, "Probability of a mirror image.", at_least=0, at_most=1)
    patch: float = traced(
        1.0, "ssd: probability of choosing a patch.", at_least=0, at_most=1
    )
    zoom_out: float = traced(
        0.5, "ssd: probability of zooming out.", at_least=0, at_most=1
    )
    zoom_out_side: float = traced(
        4.0, "ssd: side of the largest canvas, in sides of the image.", at_least=1
    )
    distort: float = traced(
        1.0, "ssd: how strongly colours change, in units of the paper's.", at_least=0
    )
    scaling: float = traced(
        0.2, "yolo: share by which an image is scaled at most.", at_least=0
    )
    translation: float = traced(
        0.2, "yolo: share of its sides by which an image moves at most.", at_least=0
    )
    saturation: float = traced(
        1.5, "yolo: largest factor of the saturation, in HSV.", at_least=1
    )
    exposure: float = traced(1.5, "yolo: largest factor of the value.", at_least=1)


def detection_data(
    config: Any,
    data_dir: str | os.PathLike | None,
    prepare: Prepare | None = None,
    *,
    proposals: ProposalConfig | None = None,
) -> Data:
    """Returns the training batches, the sets to evaluate on, and images to show.

    Args:
      config: has the `DetectionData` as `data`, and `batch_size`.
      data_dir: the root of the prepared data sets.
      prepare: applied to a batch at the end, in the compiled step: a module-level
        function.
      proposals: how to propose boxes for each image, at the network's size, if at all.

    Returns:
      Evaluation sets "validation" and "test"; where `data.examples` says to train on
      few, these, as they are, are the set "train".

    Raises:
      UserError: if the data set cannot be had, or has no boxes.
    """
    settings: DetectionData = config.data
    if settings.name == _SCENES:
        return _scenes(config, data_dir, prepare, proposals)
    name, root = _where(settings, data_dir)
    size = settings.height, settings.width
    sets = {
        key: boxed_images.read(name, split, root, size, first)
        for key, split, first in (
            ("train", settings.train, settings.examples),
            ("validation", settings.validation, settings.evaluated),
            ("test", settings.test, settings.evaluated),
        )
    }
    most = max(images.labels.shape[1] for images in sets.values())
    arrays = {
        name: boxed_images.pad(images, most)._asdict() for name, images in sets.items()
    }
    if proposals is not None:
        folder = resolve(data_dir) / "dl_core_cache" / "proposals"
        for fields in arrays.values():
            found = cached(fields["image"], folder, proposals)
            fields["proposals"], fields["proposal_mask"] = found
    plain = _Prepare(False, prepare)
    first = {field: array[:SHOWN] for field, array in arrays["test"].items()}
    return Data(
        InMemory(arrays["train"], config.batch_size, _Prepare(True, prepare)),
        {
            name: InMemory(array, config.batch_size, plain)
            for name, array in arrays.items()
            if name != "train" or settings.examples
        },
        {**first, "image": np.asarray(normalize(first["image"]))},
    )


def classes(
    settings: DetectionData, data_dir: str | os.PathLike | None = None
) -> tuple[str, ...]:
    """Returns the names of the classes; a label is a place among them.

    Args:
      settings: which data set; it is prepared if it is not.
      data_dir: the root of the prepared data sets.

    Raises:
      UserError: if the data set cannot be had.
    """
    if settings.name == _SCENES:
        return digit_scenes.CLASSES
    return boxed_images.names(*_where(settings, data_dir))


def to_input(
    image: UInt8[np.ndarray, "height width 3"], settings: DetectionData
) -> tuple[Float[np.ndarray, "new_height new_width 3"], Float[np.ndarray, " 2"]]:
    """Returns a picture as a network's input, and its `scale`.

    Args:
      image: as `read_image` has it.
      settings: the size.
    """
    size = settings.height, settings.width
    resized = boxed_images.resize(image, size)
    return np.asarray(normalize(resized)), boxed_images.scale_of(image, size)


def normalize(
    image: UInt8[np.ndarray, "..."] | Num[Array, "..."],
) -> Float[Array, "..."]:
    """Returns numbers from 0 to 255 as such from -2 to 2."""
    return (jnp.asarray(image, jnp.float32) / 255 - _MEAN) / _SPREAD


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """Makes the rows of bytes a batch for the network."""

    augmented: bool
    then: Prepare | None

    def __call__(
        self, config: Any, batch: Batch, key: Any
    ) -> Mapping[str, Shaped[Array, "batch ..."]]:
        settings: DetectionData = config.data
        if self.augmented and settings.augment != "none":
            keys = jax.random.split(key, len(batch["image"]))
            batch = jax.vmap(augment, (None, 0, 0))(settings, batch, keys)
        batch = {**batch, "image": normalize(batch["image"])}
        return batch if self.then is None else self.then(config, batch, key)


def _scenes(
    config: Any,
    data_dir: str | os.PathLike | None,
    prepare: Prepare | None,
    proposals: ProposalConfig | None,
) -> Data:
    """Returns scenes of digits, which are drawn anew for every step."""
    settings: DetectionData = config.data
    if settings.examples or proposals is not None:
        what = "data.examples" if settings.examples else "proposals"
        raise UserError(f"{what} cannot be had of {_SCENES}, which are never the same")
    most = -(-(settings.evaluated or _EVALUATED) // config.batch_size)
    sets = {
        split: digit_scenes.SceneBatches(
            digit_scenes.read_digits(split, data_dir),
            _Scenes(prepare),
            config.batch_size,
            most,
        )
        for split in ("train", "validation", "test")
    }
    test = sets["test"]
    plain = digit_scenes.SceneBatches(test.resident, _Scenes(None), config.batch_size)
    batch = jax.jit(plain.assemble)(
        config, test.resident, next(test.eval_inputs()), jax.random.key(0)
    )
    shown = {
        field: np.asarray(array[:SHOWN])
        for field, array in batch.items()
        if field != "mask"
    }
    return Data(sets.pop("train"), sets, shown)


@dataclasses.dataclass(frozen=True)
class _Scenes:
    """Draws scenes of digits that fit the canvas, and makes them a batch."""

    then: Prepare | None

    def __call__(self, config: Any, digits: Any, key: Any) -> Batch:
        settings: DetectionData = config.data
        count, side = config.batch_size, min(settings.height, settings.width)
        scene = digit_scenes.SceneConfig(
            height=settings.height,
            width=settings.width,
            most=_DIGITS,
            smallest=side / 6,
            largest=side / 2,
        )
        batch = digit_scenes.generate(scene, key, digits, count)
        batch |= {
            "image": normalize(jnp.repeat(batch["image"], 3, axis=-1)),
            "difficult": jnp.zeros((count, _DIGITS), bool),
            "scale": jnp.ones((count, 2)),
            "example": jnp.arange(count, dtype=jnp.int32),
        }
        return batch if self.then is None else self.then(config, batch, key)


def _where(
    settings: DetectionData, data_dir: str | os.PathLike | None
) -> tuple[str, str | None]:
    """Returns the TFDS name of a data set, and the root that it is in."""
    root = None if data_dir is None else os.fspath(data_dir)
    if settings.name != "voc_folder":
        return settings.name, root
    needed = settings.train, settings.validation, settings.test
    skip = settings.bad_boxes == "skip"
    return _prepared_folder(settings.path, root, skip, needed), root


@functools.cache
def _prepared_folder(
    path: str, root: str | None, skip: bool, needed: tuple[str, ...]
) -> str:
    """Looks at a folder once in a process, as its digest takes reading all of it."""
    return prepare_folder(path, root, skip=skip, needed=needed)
