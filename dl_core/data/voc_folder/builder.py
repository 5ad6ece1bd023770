"""TFDS builder of `voc_folder`, with the features of TFDS's own `voc`."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from dl_core.data.voc_folder.folder import Content, Example, encoded


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """One folder, by a name that tells its content."""

    content: Content | None = None


class VocFolder(tfds.core.GeneratorBasedBuilder):
    """The images and objects of a folder in the layout of VOC."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        content = self.builder_config.content
        objects = tfds.features.Sequence(
            {
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=list(content.classes)),
                "is_difficult": tfds.features.Scalar(dtype=np.bool_),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images of a folder in the layout of PASCAL VOC.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image/filename": tfds.features.Text(),
                    "objects": objects,
                }
            ),
            metadata=tfds.core.MetadataDict(
                skipped=list(content.skipped), empty=list(content.empty)
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        splits = self.builder_config.content.splits
        return {name: self._generate_examples(found) for name, found in splits.items()}

    def _generate_examples(self, found: list[Example]) -> Iterator[tuple[int, dict]]:
        for index, example in enumerate(found):
            height, width = example.size
            yield (
                index,
                {
                    "image": encoded(example),
                    "image/filename": example.image.name,
                    "objects": [
                        {
                            "bbox": tfds.features.BBox(
                                ymin=y_min / height,
                                xmin=x_min / width,
                                ymax=y_max / height,
                                xmax=x_max / width,
                            ),
                            "label": name,
                            "is_difficult": difficult,
                        }
                        for name, (x_min, y_min, x_max, y_max), difficult in (
                            example.objects
                        )
                    ],
                },
            )
