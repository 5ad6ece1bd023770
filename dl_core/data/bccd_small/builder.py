"""TFDS builder of `bccd_small`, blood cells with boxes; downloads nothing.

The official photographs, twice as large on a side, are TFDS's own `bccd`.
"""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from dl_core.data.blood_cells import FOLDER, LABELS, Split, read

MOST = 30
"""Boxes in the photograph that has most of them."""


class BccdSmall(tfds.core.GeneratorBasedBuilder):
    """The 364 photographs of BCCD at half their size, in the official splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Photographs of blood smears through a microscope, with a box around "
                "each red blood cell, white blood cell and platelet: 205 for training, "
                "87 for validation, 72 for testing, as the authors split them. The "
                "photographs are reduced from 640×480 to 320×240 pixels, and the boxes "
                "(x_min, y_min, x_max, y_max) with them: their coordinates are half "
                "those of the XML files. Boxes and labels are padded to 30, boxes with "
                "0 and labels with -1. Two boxes of no area are left out, a red blood "
                "cell each in BloodImage_00338 and BloodImage_00343, of 4,888."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(240, 320, 3)),
                    "boxes": tfds.features.Tensor(shape=(MOST, 4), dtype=np.float32),
                    "labels": tfds.features.Tensor(shape=(MOST,), dtype=np.int64),
                    "name": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(labels=list(LABELS)),
            homepage="https://github.com/Shenggan/BCCD_Dataset",
            license=(FOLDER / "LICENSE").read_text(),
            citation=(
                "@online{BCCD_Dataset, author={Shenggan}, title={BCCD Dataset}, "
                "year={2017}, url={https://github.com/Shenggan/BCCD_Dataset}}"
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        splits: tuple[Split, ...] = ("train", "validation", "test")
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict]]:
        for index, photograph in enumerate(read(split)):
            padding = MOST - len(photograph.labels)
            yield (
                index,
                {
                    # Encoded files TFDS takes as they are, without TensorFlow.
                    "image": io.BytesIO(photograph.jpeg),
                    "boxes": np.pad(photograph.boxes, ((0, padding), (0, 0))),
                    "labels": np.pad(
                        photograph.labels, (0, padding), constant_values=-1
                    ),
                    "name": photograph.name,
                },
            )
