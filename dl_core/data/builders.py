"""TFDS builders by name: the embedded ones, and the hundreds that TFDS knows."""

import contextlib
import importlib
import io
import pathlib
import pkgutil
import re
from typing import Any

from dl_core.data.folders import EMBEDDED, parse
from dl_core.data.without_tensorflow import without_tensorflow
from dl_core.errors import UserError, nearest


def make_builder(name: str, data_dir: pathlib.Path) -> Any:
    """Returns the TFDS builder that can prepare a data set under a root.

    Args:
      name: a TFDS name, `name[/config][:version]`.
      data_dir: the root of the prepared data sets.

    Raises:
      UserError: if TFDS knows no such name, configuration or version, or if the builder
        needs a Python package that is not installed.
    """
    dataset, config, version = parse(name)
    # TFDS prints a banner where a package is missing, besides raising an error.
    with contextlib.redirect_stdout(io.StringIO()):
        return _make_builder(name, data_dir, dataset, config, version)


def _make_builder(
    name: str,
    data_dir: pathlib.Path,
    dataset: str,
    config: str | None,
    version: str | None,
) -> Any:
    try:
        builder_class = _builder_class(dataset)
        configs = builder_class.builder_configs
        if config and config not in configs:
            raise UserError(_unknown_config(dataset, config, list(configs)))
        with without_tensorflow(name):
            return builder_class(
                data_dir=str(data_dir),
                config=config,
                version=version,
                file_format="array_record",
            )
    except ImportError as error:
        raise UserError(needs_package(name, error)) from None
    except AssertionError:
        if version is None:
            raise
        raise UserError(
            f"TFDS has no version {version} of {dataset!r}; leave the version out to "
            "prepare the one it has"
        ) from None


def needs_package(name: str, error: ImportError) -> str:
    """Returns the sentence for a builder that imports what is not installed."""
    found = re.search(r"No module named '([\w.]+)'", str(error))
    package = error.name or (found and found[1])
    if not package:
        return f"the TFDS builder of {name!r} lacks a Python package: {error}"
    return (
        f"the TFDS builder of {name!r} needs the Python package {package!r}, which is "
        f"not installed: install it (pip install {package}), or prepare the data set "
        "where it is and copy its folder"
    )


def _builder_class(dataset: str) -> Any:
    from tensorflow_datasets.core import registered

    if dataset in EMBEDDED:
        importlib.import_module(EMBEDDED[dataset])
    found = _registered(dataset)
    if found is None:
        _import_families()
        found = _registered(dataset)
    if found is None:
        known = sorted({*registered.list_imported_builders(), *EMBEDDED})
        raise UserError(
            f"there is no data set {dataset!r} in TFDS{nearest(dataset.lower(), known)}"
        )
    return found


def _registered(dataset: str) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    try:
        found = tfds.builder_cls(dataset)
    except registered.DatasetNotFoundError:
        return None
    # TFDS takes "MNIST" for "mnist" as well, but a data set's folder has one name.
    return found if found.name == dataset else None


def _import_families() -> None:
    """Imports every package of builders that can be imported.

    TFDS (4.9.10) stops at the first that cannot, which hides those after it.
    """
    import tensorflow_datasets as tfds

    for package in pkgutil.iter_modules(tfds.__path__):
        if package.ispkg and package.name not in ("core", "scripts", "testing"):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{package.name}")


def _unknown_config(dataset: str, config: str, configs: list[str]) -> str:
    if not configs:
        return f"the data set {dataset!r} has no configurations: leave /{config} out"
    some = ", ".join(configs[:12]) + (", …" if len(configs) > 12 else "")
    return (
        f"the data set {dataset!r} has no configuration {config!r} (it has {some})"
        f"{nearest(config, configs)}"
    )
