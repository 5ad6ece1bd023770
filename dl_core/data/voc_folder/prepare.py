"""Preparing a folder in the layout of VOC, once for each content that it has."""

import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable

from dl_core.data.folders import find, resolve
from dl_core.data.prepare import prepare
from dl_core.data.voc_folder.folder import LISTS, Content, digest, listed, read
from dl_core.errors import UserError
from dl_core.files import read_json

Log = Callable[[str], None]


def prepare_folder(
    path: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    *,
    skip: bool = False,
    needed: Iterable[str] = (),
    log: Log | None = None,
) -> str:
    """Prepares a user's folder as a TFDS data set, if its content is not prepared.

    Args:
      path: the folder, with JPEGImages, Annotations and ImageSets/Main.
      data_dir: the root of the prepared data sets.
      skip: leave out images and objects that cannot be used.
      needed: the splits that are to be read, beside train; others may be missing.
      log: is told each of these, and images without objects; by default stderr.

    Returns:
      The name of the data set, which tells the content.

    Raises:
      UserError: if the folder has not the layout, or something in it cannot be used and
        is not to be skipped.
    """
    log = log or _to_stderr
    folder, root = pathlib.Path(path).expanduser(), resolve(data_dir)
    if not os.fspath(path) or not folder.is_dir():
        raise UserError(
            f"--config.data.path: there is no folder {os.fspath(path)!r}; expected one "
            "with JPEGImages, Annotations and ImageSets/Main"
        )
    splits = listed(folder)
    for split in sorted({*needed, "train"} & {*LISTS} - {*splits}):
        raise UserError(
            f"{folder / 'ImageSets/Main' / LISTS[split]}.txt is missing: list images "
            f"in it, or name another split by --config.data.{split}"
        )
    kind = hashlib.sha256(f"{digest(splits)} {skip}".encode()).hexdigest()[:12]
    readable = re.sub(r"\W+", "_", folder.resolve().name).strip("_")[:40]
    name = f"voc_folder/{readable}-{kind}"
    prepared = find(name, root)
    if prepared is None:
        content = read(splits, skip=skip)
        for sentence in content.skipped:
            log(f"skipped: {sentence}")
        for image in content.empty:
            log(f"an image without objects: {image}")
        _register(name.partition("/")[2], content)
        prepared = prepare(name, root, log=log)
    skipped = read_json(prepared / "metadata.json")["skipped"]
    if skipped:
        log(
            f"{folder}: {len(skipped)} images or objects that cannot be used are left "
            f"out, named in {prepared / 'metadata.json'}"
        )
    return name


def _register(config: str, content: Content) -> None:
    from dl_core.data.voc_folder.builder import FolderConfig, VocFolder

    # The configurations of a TFDS builder are fixed by its class but for this.
    VocFolder.builder_configs[config] = FolderConfig(name=config, content=content)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
