"""TFDS builder of `jsb_chorales`, piano rolls of chorales; downloads nothing."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from dl_core.data.music import CHORALES, KEYS, Split, padded, read

LONGEST = 160
"""Frames of the longest chorale."""


class JsbChorales(tfds.core.GeneratorBasedBuilder):
    """The 382 chorales, in the order and the splits of the file."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Four-part chorales of J. S. Bach as piano rolls: 229 for training, 76 "
                "for validation, 77 for testing. A frame says which of the 88 keys of "
                "a piano, the lowest first, sound in it. The rolls are padded to 160 "
                "frames with 0; a frame of rest is 0 as well, so `length` says where a "
                "chorale ends."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "roll": tfds.features.Tensor(shape=(LONGEST, KEYS), dtype=np.uint8),
                    "length": tfds.features.Scalar(dtype=np.int64),
                }
            ),
            homepage="http://www-etud.iro.umontreal.ca/~boulanni/icml2012",
            license=(CHORALES.parent / "LICENSE").read_text(),
            citation=(
                "@inproceedings{boulanger2012modeling, title={Modeling temporal "
                "dependencies in high-dimensional sequences}, author={Nicolas "
                "Boulanger-Lewandowski and Yoshua Bengio and Pascal Vincent}, "
                "booktitle={ICML}, year={2012}}"
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        splits: tuple[Split, ...] = ("train", "validation", "test")
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict]]:
        arrays = padded(read()[split], LONGEST)
        for index, roll in enumerate(arrays["roll"]):
            yield index, {"roll": roll, "length": arrays["length"][index]}
