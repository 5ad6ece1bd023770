"""The TFDS data set `voc_folder`: any folder of the user's in the layout of VOC."""

from dl_core.data.voc_folder.prepare import prepare_folder

__all__ = ["prepare_folder"]
