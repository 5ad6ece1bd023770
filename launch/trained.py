"""A trained run, read back from its folder by the commands that put it to use."""

import pathlib
from collections.abc import Callable
from typing import Any

from dl_core.errors import UserError
from launch import registry


def read_config(folder: pathlib.Path, check: Callable[[str], None]) -> tuple[Any, Any]:
    """Returns a run's experiment (`dl_core.experiment.Experiment`), and its config.

    Args:
      folder: of the run.
      check: is given the experiment's name, and raises UserError for one of no use.

    Raises:
      UserError: if there is no such run, or it is damaged.
    """
    from dl_core.config import flatten, replace
    from dl_core.files import read_json

    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"--run={folder}: there is no run in it (no config.json)")
    saved = read_json(file)
    if not isinstance(saved, dict) or "experiment" not in saved:
        raise UserError(f"{file} is damaged: it holds no config")
    check(saved["experiment"])
    if not isinstance(saved.get("config"), dict):
        raise UserError(f"{file} is damaged: it holds no config")
    experiment = registry.load(saved["experiment"])
    return experiment, replace(experiment.preset("default"), flatten(saved["config"]))


def restore(folder: pathlib.Path, shapes_of: Callable[[int], Any]) -> tuple[int, Any]:
    """Returns the step and the state of a run's newest checkpoint, on one device.

    Args:
      folder: of the run.
      shapes_of: returns the shapes of the state that is saved at a step, as
        `jax.eval_shape` gives them; raises UserError for a step of no use.

    Raises:
      UserError: if there is no checkpoint, or it cannot be read.
      OtherStateError: if it is of another state.
    """
    import jax

    from dl_core.train.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        if not (steps := checkpoints.steps()):
            raise UserError(f"--run={folder}: it has not saved a checkpoint yet")
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            shapes_of(steps[-1]),
        )
        state, _ = checkpoints.restore(steps[-1], abstract)
    except OSError as error:
        raise UserError(f"--run={folder}: {error}") from None
    except ValueError as error:
        raise UserError(f"--run={folder}: its checkpoint is damaged: {error}") from None
    finally:
        checkpoints.close()
    return steps[-1], state
