"""TFDS builder of `shakespeare_small`, a million characters; downloads nothing.

The same text, with the same splits, is TFDS's own `tiny_shakespeare`, which downloads.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from dl_core.data.text import FOLDER, SPLITS, shakespeare


class ShakespeareSmall(tfds.core.GeneratorBasedBuilder):
    """40,000 lines of Shakespeare's plays, an example each split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "40,000 lines from Shakespeare's plays, 1,115,394 characters, as "
                "gathered by Andrej Karpathy. The first 90 % of the characters are for "
                "training, half of the others for validation, the rest for testing: "
                "one long text each, as in TFDS's tiny_shakespeare."
            ),
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://github.com/karpathy/char-rnn",
            license=(FOLDER / "LICENSE").read_text(),
            citation=(
                "@misc{karpathy2015charrnn, author={Andrej Karpathy}, "
                "title={char-rnn}, year={2015}, "
                "howpublished={https://github.com/karpathy/char-rnn}}"
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        yield 0, {"text": shakespeare()[split]}
