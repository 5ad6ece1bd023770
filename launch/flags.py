"""The flags that several commands share, and those of an experiment's config.

`--config.optimizer.learning_rate=0.1` sets a field of the config; which fields there
are depends on `--experiment`, so these flags are made once the command line is known.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from dl_core.errors import UserError
from launch import processes, registry

FLAGS = flags.FLAGS

flags.DEFINE_string("experiment", None, "Which experiment; see python -m launch.list.")
flags.DEFINE_string(
    "preset", None, "Which preset of its config: default, paper, smoke."
)
flags.DEFINE_string("config", None, "Start from the config in this JSON file.")
flags.DEFINE_string("workdir", "runs", "Folder under which all runs are.")
flags.DEFINE_string("name", None, "Name of the run or sweep (default: by its config).")
flags.DEFINE_bool("dry_run", False, "Print what would run, and do nothing.")
flags.DEFINE_string(
    "data_dir", None, "Folder of the data sets (default: as for TFDS, TFDS_DATA_DIR)."
)


def define_sweep_flag() -> None:
    """Defines the flag of the commands on one sweep, once."""
    if "sweep" not in FLAGS:
        flags.DEFINE_string("sweep", None, "Which sweep of the experiment.")


def define_run_flags() -> None:
    """Defines the flags of the commands that train, once."""
    if "devices" in FLAGS:
        return
    processes.define_flags()
    flags.DEFINE_integer("devices", None, "Use this many devices (default: all).")
    flags.DEFINE_integer("model_axis", 1, "Split large arrays over this many devices.")
    flags.DEFINE_bool("fsdp", False, "Split the state over the data axis as well.")
    flags.DEFINE_integer(
        "steps_per_call",
        None,
        "Most training steps in one dispatch (default: 1 on CPU, else 50).",
        lower_bound=1,
    )


class _FieldParser(flags.ArgumentParser):
    """Keeps the text; `chosen` reads it, when the whole config is known."""

    syntactic_help = ""

    def parse(self, argument: str) -> str:
        return argument


def define_config_flags(argv: Sequence[str]) -> None:
    """Defines a flag for each field of the config of the experiment in `argv`.

    Raises:
      UserError: for an unknown experiment, preset or field.
    """
    given = _scan(argv)
    fields = [name for name in given if name.startswith("config.")]
    if "experiment" not in given and "config" not in given:
        if fields:
            raise UserError(f"--{fields[0]} needs --experiment, which it is a field of")
        return
    experiment = registry.load(_experiment_name(given))
    base = _base_config(experiment, given)
    from dl_core.config import describe, leaves, unknown_field

    known = leaves(base)
    for field in fields:
        if field.removeprefix("config.") not in known:
            raise UserError(unknown_field(field.removeprefix("config."), known))
    for leaf in known.values():
        kind = "traced" if leaf.traced else "static"
        flags.DEFINE(
            _FieldParser(),
            f"config.{leaf.path}",
            None,
            f"{leaf.help} [{describe(leaf.type)}; default {_text(leaf.value)}; {kind}]",
            module_name=f"experiments.{experiment.name}",
        )


def chosen() -> tuple[Any, Any, dict[str, Any]]:
    """Returns the experiment, its config, and the fields the command line sets.

    Raises:
      UserError: for a value that does not fit.
    """
    given = {k: getattr(FLAGS, k) for k in ("experiment", "preset", "config")}
    given = {name: value for name, value in given.items() if value is not None}
    experiment = registry.load(_experiment_name(given))
    base = _base_config(experiment, given)
    from dl_core.config import leaves, parse, replace

    overrides = {
        path: parse(leaf, text)
        for path, leaf in leaves(base).items()
        if (text := FLAGS[f"config.{path}"].value) is not None
    }
    return experiment, replace(base, overrides), overrides


def _scan(argv: Sequence[str]) -> dict[str, str]:
    """Returns the flags in a raw command line; the last of each counts."""
    given: dict[str, str] = {}
    arguments = iter(FLAGS.read_flags_from_files(list(argv[1:]), force_gnu=True))
    for argument in arguments:
        if argument == "--":
            break
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            spaced = name in ("experiment", "preset", "config") and not equals
            given[name] = next(arguments, "") if spaced else value
    return given


def _experiment_name(given: dict[str, str]) -> str:
    named = given.get("experiment")
    if "config" not in given:
        return registry.check(named)
    saved = _saved(given["config"]).get("experiment", named)
    if named and saved != named:
        raise UserError(f"--config={given['config']} is of {saved}, not of {named}")
    return registry.check(saved)


def _saved(path: str) -> dict[str, Any]:
    from dl_core.files import read_json

    values = read_json(pathlib.Path(path))
    if not isinstance(values, dict):
        raise UserError(f"--config={path} does not hold a config")
    return values


def _base_config(experiment: Any, given: dict[str, str]) -> Any:
    base = experiment.preset(given.get("preset", "default"))
    if "config" not in given:
        return base
    from dl_core.config import flatten, replace

    saved = _saved(given["config"])
    values = saved.get("config", saved)
    if not isinstance(values, dict):
        raise UserError(f"--config={given['config']} does not hold a config")
    return replace(base, flatten(values))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return (
        str(value).lower() if value is None or isinstance(value, bool) else str(value)
    )
