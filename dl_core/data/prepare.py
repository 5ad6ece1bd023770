"""Preparing a TFDS data set: download or take official files, generate, record."""

import contextlib
import io
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from dl_core.data.builders import make_builder, needs_package
from dl_core.data.folders import (
    CHECKSUMS,
    EMBEDDED,
    examples,
    find,
    record_checksums,
    resolve,
)
from dl_core.data.network import NoNetworkError, check_before_download, is_offline
from dl_core.data.official import check_official, list_official, missing_official
from dl_core.data.without_tensorflow import without_tensorflow
from dl_core.errors import UserError
from dl_core.files import LockedError, locked

Log = Callable[[str], Any]

_OURS = (UserError, NoNetworkError)


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    manual_dir: str | os.PathLike | None = None,
    offline: bool = False,
    log: Log = print,
) -> pathlib.Path:
    """Prepares a TFDS data set, once, for reading at random without TensorFlow.

    One process prepares a data set at a time; others wait and find it prepared. A
    process that is killed leaves nothing that harms the next.

    Args:
      name: `name[/config][:version]`, one of TFDS's or an embedded one.
      data_dir: the root of the prepared data sets; `default_data_dir()` if None.
      manual_dir: a folder with the official files under their official names; each is
        used only if its SHA-256 is the one that TFDS registers.
      offline: do not try the network; so does `DL_CORE_OFFLINE=1`.
      log: is told, in a line each, what is done.

    Returns:
      The prepared folder.

    Raises:
      UserError: if the name is unknown, the files can be had from neither `manual_dir`
        nor the network, one of them is not the official one, or the builder needs a
        package that is not installed.
    """
    root = resolve(data_dir)
    folder = find(name, root)
    if folder is None:
        manual = _existing(manual_dir)
        offline = offline or is_offline()
        builder = make_builder(name, root)
        work = root / "downloads" / builder.name
        with _writable(root), _turn(work, name, log):
            folder = find(_full_name(builder), root)
            if folder is None:
                return _generate(builder, name, root, work, manual, offline, log)
    log(f"{name} is prepared already, in {folder}")
    if not (folder / CHECKSUMS).exists():
        # Prepared by TFDS itself, or killed just before; a read-only copy is as good.
        with contextlib.suppress(OSError):
            record_checksums(folder)
    return folder


def _generate(
    builder: Any,
    name: str,
    root: pathlib.Path,
    work: pathlib.Path,
    manual_dir: pathlib.Path | None,
    offline: bool,
    log: Log,
) -> pathlib.Path:
    """Generates the data set, whose lock is held, and returns its folder."""
    import tensorflow_datasets as tfds

    folder = pathlib.Path(builder.data_dir)
    if folder.exists():
        raise UserError(f"{folder} is not a whole data set: remove it and try again")
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and manual_dir is None:
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(
            f"the files of {name!r} have to be fetched by hand and their folder given "
            f"as --manual_dir; TFDS says: {instructions}"
        )
    _clear(folder, work)
    log(f"preparing {_full_name(builder)} in {root}")
    start = time.monotonic()
    check_before_download(builder, offline=offline)
    # A folder of its own, for TFDS names extracted files by their base names only: with
    # a common one, MNIST and Fashion-MNIST get each other's (tensorflow/datasets#2267).
    config = tfds.download.DownloadConfig(
        extract_dir=work / "extracted",
        manual_dir=manual_dir or work / "manual",
        try_download_gcs=False,
    )
    with _explained(builder, name, manual_dir):
        bars = sys.stderr.isatty() and builder.name not in EMBEDDED
        with without_tensorflow(name), _quiet(bars):
            builder.download_and_prepare(
                download_dir=root / "downloads", download_config=config
            )
    record_checksums(folder)
    _clear(folder, work)
    counts = ", ".join(f"{split} {n:,}" for split, n in examples(folder).items())
    log(f"prepared {counts} in {folder} ({time.monotonic() - start:.0f} s)")
    return folder


def _clear(folder: pathlib.Path, work: pathlib.Path) -> None:
    """Removes what a killed process left half-done, and what is extracted."""
    shutil.rmtree(work / "extracted", ignore_errors=True)
    for path in (*folder.parent.glob("incomplete.*"), *work.rglob("*.tmp.*")):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _explained(
    builder: Any, name: str, manual_dir: pathlib.Path | None
) -> Iterator[None]:
    """Tells in a sentence what TFDS reports as an error."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager, extractor

    try:
        yield
    except Exception as raised:
        causes = (e for e in _causes(raised) if isinstance(e, _OURS))
        error = next(causes, raised)
        text = " ".join(str(error).split())
        match error:
            case UserError():
                sentence = text
            case NoNetworkError():
                sentence = _missing(builder, name, manual_dir, error.outcome, error.url)
            case requests.RequestException() | tfds.download.DownloadError():
                sentence = _missing(builder, name, manual_dir, f"was tried: {text}")
            case download_manager.NonMatchingChecksumError():
                check_official(builder, manual_dir)
                sentence = text.partition(" To debug")[0]
            case ImportError():
                sentence = needs_package(name, error)
            case OSError() | extractor.ExtractError():
                sentence = f"{name!r} could not be prepared: {text}"
            case _:
                raise
        raise UserError(sentence) from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that it wraps, for TFDS wraps what it catches."""
    while error is not None:
        yield error
        error = error.__cause__


def _missing(
    builder: Any,
    name: str,
    manual_dir: pathlib.Path | None,
    outcome: str,
    url: str | None = None,
) -> str:
    """Says what is missing, where it was sought, and the ways to get it."""
    sought = f"{builder.data_dir} does not exist"
    if manual_dir:
        sought += f", {missing_official(builder, manual_dir, url)} not in {manual_dir}"
    official = list_official(builder)
    by_hand = (
        "or put its official files into a folder and give that as --manual_dir "
        f"({official}); "
        if official
        else ""
    )
    return (
        f"the data set {name!r} is missing: {sought}, and the network {outcome}; "
        f"either prepare it where there is a network (python -m launch.data prepare "
        f"{name}) and copy the folder {builder.name} into {builder.data_dir_root}; "
        f"{by_hand}"
        f"or use a data set that ships with the project ({', '.join(EMBEDDED)})"
    )


@contextlib.contextmanager
def _turn(work: pathlib.Path, name: str, log: Log) -> Iterator[None]:
    """Holds the lock of a data set; says so if that takes waiting for another."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(work))
        except LockedError:
            log(f"waiting for another process, which prepares {name}")
            stack.enter_context(locked(work, wait=True))
        yield


@contextlib.contextmanager
def _writable(root: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data sets cannot be prepared in {root} ({error}): choose another folder "
            "with --data_dir or TFDS_DATA_DIR"
        ) from None


@contextlib.contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """Hides what TFDS prints, and its progress bars unless they are wanted."""
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(bars)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)


def _existing(manual_dir: str | os.PathLike | None) -> pathlib.Path | None:
    if manual_dir is None:
        return None
    path = pathlib.Path(manual_dir).expanduser()
    if not path.is_dir():
        raise UserError(f"the folder of official files {path} does not exist")
    return path


def _full_name(builder: Any) -> str:
    config = f"/{builder.builder_config_name}" if builder.builder_config_name else ""
    return f"{builder.name}{config}:{builder.version}"
