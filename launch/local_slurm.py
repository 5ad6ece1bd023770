"""A real Slurm on this machine alone: python -m launch.local_slurm -- COMMAND ARGS…

Starts munged, slurmctld and a slurmd for each of `--nodes` nodes, as the user who calls
it, runs COMMAND with SLURM_CONF set, and ends them all, and every job, when it returns.
For trying a sweep before it goes to a cluster, and for tests:

    python -m launch.local_slurm --nodes=4 -- bash

The nodes are called 127.0.0.1, 127.0.0.2, …, so that what looks a node up by its name,
as JAX does for its coordinator, finds this machine. Nothing listens beyond it.
"""

import contextlib
import ctypes
import getpass
import ipaddress
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from absl import flags

from dl_core.errors import UserError
from launch import app

FLAGS = flags.FLAGS
_DAEMONS = ("munged", "slurmctld", "slurmd")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PARTITION = "PartitionName=all Nodes=ALL Default=YES State=UP"


def missing() -> str | None:
    """Returns why this machine cannot run a Slurm of its own, if it cannot."""
    programs = (*_DAEMONS, "sbatch", "srun", "sinfo")
    if absent := [name for name in programs if not shutil.which(name, path=_PATH)]:
        return (
            f"{', '.join(absent)} not found: install Slurm and MUNGE (on Debian: "
            "apt-get install slurm-wlm munge)"
        )
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "nothing"
    # Where its daemons listen, whatever their configuration says.
    if address == "nothing" or not ipaddress.ip_address(address).is_loopback:
        return (
            f"this machine's name {name} stands for {address}, where Slurm would "
            f"listen: let it stand for this machine alone (in /etc/hosts: "
            f"127.0.0.1 {name})"
        )
    return None


@contextlib.contextmanager
def cluster(
    nodes: int,
    *,
    cpus: int = 1,
    partitions: Sequence[str] = (_PARTITION,),
    options: Mapping[str, object] | None = None,
) -> Iterator[dict[str, str]]:
    """Runs a Slurm while the context lasts.

    Args:
      nodes: how many.
      cpus: how many each of them is said to have.
      partitions: their lines in slurm.conf.
      options: further lines of slurm.conf, such as {"MaxArraySize": 100}.

    Yields:
      The environment in which Slurm's commands find it: SLURM_CONF.

    Raises:
      UserError: if this machine cannot, or the nodes do not come up.
    """
    if reason := missing():
        raise UserError(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = pathlib.Path(name)
        conf = folder / "slurm.conf"
        names = [f"127.0.0.{i}" for i in range(1, nodes + 1)]
        conf.write_text(_configuration(folder, names, cpus, partitions, options or {}))
        environment = {"SLURM_CONF": str(conf)}
        try:
            _start(folder, names, os.environ | environment)
            yield environment
        finally:
            _end(environment)


def _configuration(
    folder: pathlib.Path,
    names: Sequence[str],
    cpus: int,
    partitions: Sequence[str],
    options: Mapping[str, object],
) -> str:
    user = getpass.getuser()
    control, *ports = _free_ports(1 + len(names))
    settings = {
        "ClusterName": "local",
        "SlurmctldHost": "localhost(127.0.0.1)",
        "SlurmctldPort": control,
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",
        "StateSaveLocation": f"{folder}/state",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdSpoolDir": f"{folder}/%n",
        "SlurmdPidFile": f"{folder}/%n.pid",
        "SlurmdLogFile": f"{folder}/%n.log",
        "SlurmdParameters": "config_overrides",  # Believe in `cpus`.
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        # What needs neither root nor control groups.
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "ReturnToService": 2,
        "SchedulerParameters": "sched_interval=2,bf_interval=2,batch_sched_delay=0",
        "KillWait": 5,
        **options,
    }
    lines = [f"{key}={value}" for key, value in settings.items()]
    for name, port in zip(names, ports, strict=True):
        where = f"NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
        lines.append(f"NodeName={name} {where} CPUs={cpus} State=UNKNOWN")
    return "\n".join([*lines, *partitions]) + "\n"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


def _start(
    folder: pathlib.Path, names: Sequence[str], environment: dict[str, str]
) -> None:
    """Starts the daemons, and waits until every node is idle."""
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    for name in ("state", *names):
        (folder / name).mkdir()
    munge = [
        "munged",
        "--foreground",
        "--force",  # The folder is nobody else's to look into.
        f"--key-file={key}",
        *(f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")),
        f"--socket={folder}/munge.socket",
    ]
    daemons = [_daemon(munge, environment)]
    _until(lambda: (folder / "munge.socket").exists(), folder)
    daemons.append(_daemon(["slurmctld", "-D"], environment))
    daemons += [_daemon(["slurmd", "-D", "-N", name], environment) for name in names]

    def ready() -> bool:
        if ended := [each.args[0] for each in daemons if each.poll() is not None]:
            raise UserError(f"{ended[0]} has ended{_complaint(folder)}")
        query = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
        found = subprocess.run(query, env=environment, capture_output=True, text=True)
        return set(names) <= set(found.stdout.split())

    _until(ready, folder)


def _daemon(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen:
    program = shutil.which(command[0], path=_PATH)
    parent = os.getpid()

    def end_with_parent() -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        [program, *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the command, and for us.
        preexec_fn=end_with_parent,
    )


def _until(happens, folder: pathlib.Path, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not happens():
        if time.monotonic() > end:
            raise UserError(f"the nodes do not come up{_complaint(folder)}")
        time.sleep(0.1)


def _complaint(folder: pathlib.Path) -> str:
    """Returns the last error that the daemons wrote down, for the end of a sentence."""
    lines = [
        line
        for log in sorted(folder.glob("*.log"))
        for line in log.read_text(errors="replace").splitlines()
        if "error:" in line.lower() and "pmix" not in line
    ]
    return f": {lines[-1]}" if lines else ""


def _end(environment: Mapping[str, str]) -> None:
    """Kills the daemons, the jobs and what they started: all with this environment."""
    marks = {f"{name}={value}".encode() for name, value in environment.items()}
    while found := [pid for pid in _others() if marks <= _environment_of(pid)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        time.sleep(0.05)


def _others() -> list[int]:
    found = (path.name for path in pathlib.Path("/proc").glob("[0-9]*"))
    return [int(name) for name in found if int(name) != os.getpid()]


def _environment_of(pid: int) -> set[bytes]:
    """Returns a process's environment; nothing, if it is over or someone else's."""
    with contextlib.suppress(OSError):
        return set(pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return set()


def _define_flags(argv: Sequence[str]) -> None:
    # Not on import: launch.slurm has a flag of the first's name.
    flags.DEFINE_integer("nodes", 4, "Nodes.", lower_bound=1, upper_bound=200)
    flags.DEFINE_integer("cpus", 1, "Processors of a node.", lower_bound=1)


def main(args: list[str]) -> int:
    """Runs the command that the arguments are; returns its exit code."""
    if not args:
        raise UserError("what shall run? give a command after the flags, such as bash")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with cluster(FLAGS.nodes, cpus=FLAGS.cpus) as environment:
        try:
            code = subprocess.run(args, env=os.environ | environment).returncode
        except OSError as error:
            raise UserError(f"{args[0]}: {error.strerror}") from None
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    app.run(main, _define_flags)
    sys.exit()
