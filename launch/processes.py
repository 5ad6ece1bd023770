"""Many processes, one run: joins this process to the others, once, before JAX starts.

It happens by itself under srun with several tasks, mpirun, and on the hosts of a TPU
slice; elsewhere `--coordinator`, `--processes` and `--process` say who is who.
"""

import collections
import contextlib
import importlib.util
import ipaddress
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from absl import flags

from dl_core.errors import UserError
from launch import app

FLAGS = flags.FLAGS
T = TypeVar("T")
_PORTS = 4096
"""Slurm jobs take one of so many ports, the last there are, as JAX has it."""
_HEARTBEAT = 30
"""Seconds after which a process that is not heard of is taken for dead."""

_PATIENCE = 15
"""Seconds within which processes that fail alike do so."""

_joined: list[int] = []
_counts: collections.Counter[str] = collections.Counter()
"""How often the processes were asked whether to stop, and how often all failed."""


def define_flags() -> None:
    """Defines the flags that say which processes make up a run."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port at which process 0 is reached, where many processes make one run.",
    )
    flags.DEFINE_integer(
        "processes", None, "How many processes make the run.", lower_bound=1
    )
    flags.DEFINE_integer(
        "process", None, "Which of them this one is, from 0.", lower_bound=0
    )


def join() -> None:
    """Joins this process to the others of its run, if there are others.

    Leaves with the exit code of a failure, which may be tried again, if they do not
    meet in time.

    Raises:
      UserError: for flags that do not fit.
    """
    arguments = _by_flags() or _by_slurm() or _by_others()
    if arguments is None or _joined:
        return
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT, **arguments)
    except (RuntimeError, ValueError) as error:
        if not arguments and isinstance(error, ValueError):
            return  # JAX has found no others: libtpu is installed, but here is no TPU.
        reason = str(error).strip().splitlines()[0]
        app.fail(f"the processes of the run do not meet: {reason}", app.FAILED)
    _joined.append(jax.process_index())


def are_many() -> bool:
    """Returns whether flags or srun say that this process is one of several."""
    return bool(_by_flags() or _by_slurm())


def is_first() -> bool:
    """Returns whether this process is to speak and to write; JAX is not started."""
    return _joined in ([], [0])


def by_first(act: Callable[[], T]) -> T:
    """Returns, in all processes, what a function returns in the one that writes.

    If it fails there all leave, with the same sentence and exit code: those that went
    on would wait for the others.

    Args:
      act: called in that process alone; it returns JSON values.
    """
    result = told = None
    if is_first():
        try:
            result = act()
        except UserError as error:
            told = [str(error), app.MISUSED]
        except OSError as error:
            told = [f"{error.strerror}: {error.filename}", app.FAILED]
    if _joined:
        from dl_core.train.processes import agreed

        result, told = agreed([result, told])
    if told is not None and is_first():
        app.fail(*told)
    elif told is not None:
        sys.exit(told[1])
    return result


def abandon(code: int) -> None:
    """Leaves without ceremony if others wait for this process: they end with it.

    Where all have failed at one place none waits, and they go on to what is next.
    """
    if not _joined:
        return
    import jax
    from orbax.checkpoint import multihost

    meet = multihost.get_barrier_sync_fn()
    place = f"failure {_counts['failed']} after {_counts['asked']} steps"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Not all of them come.
        meet(key=place, timeout_ms=1000 * _PATIENCE)
        _counts["failed"] += 1
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_together(came: Callable[[], bool]) -> Callable[[], bool]:
    """Returns a function that says, in all processes at one step, whether to stop.

    JAX itself listens to SIGTERM once processes have joined, in any of them; an
    interrupt (SIGINT) is passed on to it.

    Args:
      came: whether a signal has come to this process, which tells it if it is alone.
    """
    if not _joined:
        return came
    from jax.experimental import multihost_utils

    told: list[bool] = []

    def stop() -> bool:
        if came():
            os.kill(os.getpid(), signal.SIGTERM)
        _counts["asked"] += 1
        asked = _counts["asked"]
        if not told and multihost_utils.reached_preemption_sync_point(asked):
            told.append(True)
        return bool(told)

    return stop


def may_have_tpu() -> bool:
    """Returns whether JAX will look for a TPU here; JAX is not started."""
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    return "tpu" in platforms and importlib.util.find_spec("libtpu") is not None


def signals() -> tuple[int, ...]:
    """Returns the signals that this program handles itself."""
    return (signal.SIGINT,) if _joined else (signal.SIGTERM, signal.SIGINT)


def _by_flags() -> dict | None:
    given = {n: FLAGS[n].value for n in ("coordinator", "processes", "process")}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        return None
    if missing:
        raise UserError(
            f"--{missing[0]} is missing: --coordinator, --processes and --process go "
            "together"
        )
    address, count, index = given.values()
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"--coordinator={address}: expected host:port")
    if index >= count:
        raise UserError(f"--process={index}: expected less than --processes={count}")
    # Nothing else is to be found out, as from a Slurm job around them.
    alone = {"cluster_detection_method": "deactivate"}
    return {"num_processes": count, "process_id": index} | alone | _at(address)


def _by_slurm() -> dict | None:
    """JAX finds all but a coordinator's address to which it may be bound."""
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if nodes is None or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return None
    # "node7", "node7,node9" or "node[7-9,12]".
    first = re.sub(r"\[([^-,\]]+).*|,.*", r"\1", nodes)
    port = 2**16 - _PORTS + int(os.environ["SLURM_JOB_ID"]) % _PORTS
    return _at(os.environ.get("JAX_COORDINATOR_ADDRESS", f"{first}:{port}"))


def _by_others() -> dict | None:
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return {}
    return {} if may_have_tpu() else None


def _at(address: str) -> dict:
    """Returns where the coordinator is; one that is local listens to no one else."""
    host, _, _ = address.rpartition(":")
    # A name may lead to the loopback on its own machine, and elsewhere on the others.
    local = host == "localhost"
    with contextlib.suppress(ValueError):
        local = local or ipaddress.ip_address(host.strip("[]")).is_loopback
    bound = {"coordinator_bind_address": address} if local else {}
    return {"coordinator_address": address, **bound}
