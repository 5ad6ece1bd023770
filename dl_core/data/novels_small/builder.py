"""TFDS builder of `novels_small`, nine English novels; downloads nothing."""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from dl_core.data.novels import FOLDER, read_texts


class NovelsSmall(tfds.core.GeneratorBasedBuilder):
    """Nine English novels, an example each."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Nine English novels of 1839 to 1911, about 1.2 million words, an "
                "example each. dl_core.data.novels holds two sentences of a hundred "
                "out, for validation and for testing."
            ),
            features=tfds.features.FeaturesDict(
                {"name": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            license=(FOLDER / "LICENSE").read_text(encoding="utf-8"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for number, (name, text) in enumerate(read_texts().items()):
            yield number, {"name": name, "text": text}
