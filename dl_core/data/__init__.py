"""Data sets by their TFDS names, prepared, verified and read without TensorFlow.

    arrays = load("mnist_subset", "train")             # decoded once, then mapped
    source = open_source("voc/2007", "train[:90%]")    # read at random from disk

`load` is for what fits in memory (`decoded_bytes` estimates it), `open_source` for what
does not. Both prepare what is not prepared: by downloading, or from the official files
in a folder (`prepare`). `mnist_subset`, `bccd_small`, `jsb_chorales`,
`novels_small`, `shakespeare_small` and `tatoeba_small` ship with the project.
"""

from dl_core.data.folders import EMBEDDED, Prepared, default_data_dir, prepared
from dl_core.data.memory import load
from dl_core.data.prepare import prepare
from dl_core.data.source import Source, decoded_bytes, open_source
from dl_core.data.verify import verify

__all__ = [
    "EMBEDDED",
    "Prepared",
    "Source",
    "decoded_bytes",
    "default_data_dir",
    "load",
    "open_source",
    "prepare",
    "prepared",
    "verify",
]
