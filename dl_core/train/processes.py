"""What the processes of one run have to agree on.

Each computes its share of every step, and what is said here is said in all of them in
the same order. In a run of one process nothing is communicated.
"""

import json
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def alone() -> bool:
    """Returns whether the run has this process only."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Returns whether this process is the one that writes files."""
    return jax.process_index() == 0


def agreed(value: T) -> T:
    """Returns the first process's value, in all of them.

    Args:
      value: JSON values, lists rather than tuples.
    """
    if alone():
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(_broadcast(np.int32(len(text))))
    return json.loads(bytes(_broadcast(np.resize(text, size))))


def all_true(holds: bool) -> bool:
    """Returns whether something holds in every process."""
    if alone():
        return holds
    return bool(np.all(multihost_utils.process_allgather(np.bool_(holds))))


def meet(name: str) -> None:
    """Waits until every process has come here."""
    if not alone():
        multihost_utils.sync_global_devices(name)


def _broadcast(value: Any) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(value))
