"""Finds experiments: every module in a topic's folder of `experiments` is one."""

import ast
import dataclasses
import importlib
import pathlib

import experiments
from dl_core.errors import UserError, nearest

ROOT = pathlib.Path(experiments.__path__[0])


def names() -> list[str]:
    """Returns the names of all experiments: "classification.batch_norm", …"""
    paths = ROOT.glob("*/[a-z]*.py")
    return sorted(f"{path.parent.name}.{path.stem}" for path in paths)


def topics() -> dict[str, list[str]]:
    """Returns the names of all experiments by topic."""
    found: dict[str, list[str]] = {}
    for name in names():
        found.setdefault(name.split(".")[0], []).append(name)
    return found


def check(name: str | None) -> str:
    """Returns the name of an experiment that exists.

    Raises:
      UserError: if it does not, or is missing.
    """
    known = names()
    if name in known:
        return name
    if not name:
        raise UserError(f"--experiment is missing; there are {', '.join(known)}")
    hint = nearest(name, known) or f"; there are {', '.join(known)}"
    raise UserError(f"--experiment={name}: there is no such experiment{hint}")


def load(name: str):
    """Imports an experiment and returns it as a `dl_core.experiment.Experiment`.

    Raises:
      UserError: if there is no such experiment.
    """
    module = importlib.import_module(f"experiments.{check(name)}")
    from dl_core.experiment import Experiment  # JAX is not needed before this point.

    return Experiment.from_module(name, module)


def results_folder(name: str) -> pathlib.Path:
    """Returns the folder of an experiment's published results."""
    return ROOT / name.split(".")[0] / "results"


@dataclasses.dataclass(frozen=True)
class Outline:
    """What an experiment's source says of it, read without importing it."""

    name: str
    topic: str
    presets: tuple[str, ...]
    sweeps: tuple[str, ...]
    figures: tuple[str, ...]


def outline(name: str) -> Outline:
    """Reads an experiment's outline from its source, without importing JAX.

    The names come from the dictionary displays of `PRESETS`, `SWEEPS` and `FIGURES`.
    """
    topic, module = name.split(".")
    tree = ast.parse((ROOT / topic / f"{module}.py").read_text())
    keys: dict[str, tuple[str, ...]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            (target,) = node.targets
            found = [k.value for k in node.value.keys if isinstance(k, ast.Constant)]
            keys[target.id] = tuple(found)
    doc = (ast.get_docstring(tree) or "").splitlines()
    return Outline(
        name,
        doc[0] if doc else "",
        *(keys.get(k, ()) for k in ("PRESETS", "SWEEPS", "FIGURES")),
    )
