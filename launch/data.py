"""Prepares, lists and verifies data sets:

  python -m launch.data prepare NAME [--manual_dir=FOLDER] [--offline]
  python -m launch.data list
  python -m launch.data verify NAME

each with --data_dir=FOLDER, if data sets are kept elsewhere than TFDS keeps them.

NAME is a TFDS name (mnist, voc/2007), or mnist_subset, which ships with the project. A
prepared folder can be copied to any machine; TensorFlow is needed nowhere.
"""

from collections.abc import Sequence

from absl import flags, logging

from dl_core.errors import UserError, nearest
from launch import app

_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where prepared data sets are kept; $TFDS_DATA_DIR or ~/tensorflow_datasets if not "
    "given.",
)
_MANUAL_DIR = flags.DEFINE_string(
    "manual_dir",
    None,
    "A folder with a data set's official files, used instead of downloading.",
)
_OFFLINE = flags.DEFINE_bool(
    "offline", False, "Do not try the network; so does DL_CORE_OFFLINE=1."
)

_USAGE = "use 'prepare NAME', 'list' or 'verify NAME'"


def main(arguments: Sequence[str]) -> None:
    """Does what the command line says.

    Raises:
      UserError: if it says nothing that can be done, or doing it fails.
    """
    logging.set_verbosity(logging.ERROR)
    match list(arguments):
        case ["prepare", name]:
            _prepare(name)
        case ["verify", name]:
            _verify(name)
        case ["list"]:
            _list()
        case []:
            raise UserError(f"nothing to do: {_USAGE}")
        case ["prepare" | "verify" as action, *names]:
            raise UserError(f"{action!r} takes one name, not {len(names)}: {_USAGE}")
        case ["list", *_]:
            raise UserError(f"'list' takes no name: {_USAGE}")
        case [action, *_]:
            hint = nearest(action, ["prepare", "list", "verify"])
            raise UserError(f"{action!r} is not known: {_USAGE}{hint}")


# TFDS is imported by what needs it, so that --help and mistakes answer at once.
def _prepare(name: str) -> None:
    from dl_core.data import prepare

    prepare(
        name,
        _DATA_DIR.value,
        manual_dir=_MANUAL_DIR.value,
        offline=_OFFLINE.value,
        log=_say,
    )


def _verify(name: str) -> None:
    from dl_core.data import verify

    verify(name, _DATA_DIR.value, _say)
    _say(f"{name} is whole")


def _list() -> None:
    from dl_core.data import EMBEDDED, default_data_dir, prepared

    found = prepared(_DATA_DIR.value)
    rows = [
        (
            data.name,
            data.version,
            ", ".join(f"{split} {n:,}" for split, n in data.splits.items()),
            f"{data.bytes / 2**20:,.1f} MiB",
            "embedded" if data.name in EMBEDDED else "",
        )
        for data in found
    ]
    names = {data.name for data in found}
    rows += [
        (name, "", "prepared when it is first used", "", "embedded")
        for name in EMBEDDED
        if name not in names
    ]
    _say(f"in {_DATA_DIR.value or default_data_dir()}:")
    for line in _table([("name", "version", "examples", "size", ""), *rows]):
        _say(f"  {line}")
    _say("any other TFDS name can be prepared: python -m launch.data prepare NAME")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    app.run(main)
