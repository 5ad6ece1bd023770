"""TFDS builder of `tatoeba_small`, English sentences in French; downloads nothing."""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from dl_core.data.translation import FOLDER, SPLITS, tatoeba


class TatoebaSmall(tfds.core.GeneratorBasedBuilder):
    """39,950 pairs, in the order of the file; `subset` says how they were chosen."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "English sentences of the Tatoeba project, no two the same up to "
                "capitals and punctuation, each with one in French: 38,000 pairs for "
                "training, 510 for "
                "validation and 1,440 for testing, a sixth of 1-4, 5-6, 7-8, 9-10, "
                "11-13 and 14 or more English words each. No sentence of validation or "
                "test, English or French, is in another split."
            ),
            features=tfds.features.FeaturesDict(
                {"en": tfds.features.Text(), "fr": tfds.features.Text()}
            ),
            supervised_keys=("en", "fr"),
            homepage="https://tatoeba.org",
            license=(FOLDER / "LICENSE").read_text(),
            citation=(
                "@misc{tatoeba2017, title={English-French sentence pairs of the "
                "Tatoeba project}, author={The contributors of tatoeba.org and "
                "www.manythings.org/anki}, year={2017}}"
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, (english, french) in enumerate(tatoeba()[split]):
            yield index, {"en": english, "fr": french}
