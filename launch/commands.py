"""The commands that run a sweep's points, as argument lists and fit for a shell.

A point's command holds every flag that was given, but for those that say how the whole
sweep is run, and `--index`. Nothing passes through a shell on the way.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from launch.point_numbers import numbers_text
from launch.points import Sweep

FLAGS = flags.FLAGS
_HOW = ("launch.sweep", "launch.slurm", "launch.kubernetes")
"""Modules whose flags say how a sweep is run, and not what."""


def of_point(sweep: Sweep, index: object) -> list[str]:
    """Returns the command that runs one point.

    Args:
      sweep: the sweep.
      index: the point's number, or what a scheduler replaces by it.
    """
    return [*_sweep(sweep), f"--index={index}"]


def of_group(sweep: Sweep, numbers: Sequence[int]) -> list[str]:
    """Returns the command that runs some points as one compiled program."""
    how = ["--executor=vmap", f"--vmap_mode={FLAGS.vmap_mode}"]
    if FLAGS.memory_gib is not None:
        how.append(f"--memory_gib={FLAGS.memory_gib}")
    return [*_sweep(sweep), *how, f"--points={numbers_text(numbers)}"]


def shell(command: Sequence[str]) -> str:
    """Returns a command as a line for a shell, with "python" for this interpreter."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(words)


def of_sweep(module: str, sweep: Sweep, *, places: bool = True) -> str:
    """Returns a command on a sweep, with the flags that choose its config and folder.

    Args:
      module: "launch.sweep", "launch.figures", …
      sweep: the sweep.
      places: say where it is too, if it was said.
    """
    names = ("preset", "config", *(("workdir", "name") if places else ()))
    chosen = [n for n in FLAGS if n in names or n.startswith("config.")]
    given = [f"--{n}={FLAGS[n].value}" for n in sorted(chosen) if FLAGS[n].present]
    words = ["python", "-m", module, f"--experiment={sweep.experiment.name}", *given]
    if module == "launch.sweep":
        words.append(f"--sweep={sweep.name}")
    return shlex.join(words)


def of_config(sweep: Sweep, changes: Mapping[str, Any]) -> str:
    """Returns the command that runs a sweep's base config, changed, on its own."""
    words = [of_sweep("launch.run", sweep, places=False)]
    for name in ("workdir", "data_dir"):
        if FLAGS[name].present:
            words.append(shlex.quote(f"--{name}={FLAGS[name].value}"))
    for path, value in changes.items():
        plain = value is None or isinstance(value, bool)
        text = str(value).lower() if plain else value
        words.append(shlex.quote(f"--config.{path}={text}"))
    return " ".join(words)


def _sweep(sweep: Sweep) -> list[str]:
    return [sys.executable, "-m", "launch.sweep", *_given()]


def _given() -> list[str]:
    """Returns the flags that were given and that a point's process needs too."""
    by_module = FLAGS.flags_by_module_dict()
    # absl names the module that runs by its file.
    how = {f.name for m in (sys.argv[0], *_HOW) for f in by_module.get(m, ())}
    how |= {"dry_run", "flagfile"}
    words = []
    for name in sorted(FLAGS):
        flag = FLAGS[name]
        if flag.present and name not in how:
            values = flag.value if isinstance(flag, flags.MultiFlag) else [flag.value]
            words += [f"--{name}={value}" for value in values]
    return words
