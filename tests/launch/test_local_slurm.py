"""A Slurm on this machine alone, and nothing of it afterwards."""

import os
import pathlib
import signal
import subprocess

import processes
import psutil
import pytest

from launch import local_slurm

LACKING = local_slurm.missing()
if LACKING:
    pytest.skip(f"no Slurm here: {LACKING}", allow_module_level=True)


def of_cluster(conf):
    """The processes that have SLURM_CONF=conf in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF") == conf:
                found.append(process)
        except psutil.Error:
            continue
    return found


def addresses(found):
    """Where processes listen."""
    return {
        connection.laddr.ip
        for process in found
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_jobs_run_and_nothing_listens_beyond_this_machine_or_outlives_it():
    with local_slurm.cluster(3) as environment:
        run = dict(env=os.environ | environment, capture_output=True, text=True)
        told = subprocess.run(["srun", "-N3", "printenv", "SLURMD_NODENAME"], **run)
        names = {"127.0.0.1", "127.0.0.2", "127.0.0.3"}
        assert set(told.stdout.split()) == names, told
        job = ["sbatch", "--output=/dev/null", "--wrap=setsid sleep 500"]
        subprocess.run(job, check=True, **run)
        conf = environment["SLURM_CONF"]
        processes.until(lambda: any(p.name() == "sleep" for p in of_cluster(conf)))
        assert addresses(of_cluster(conf)) == {"127.0.0.1"}
    assert of_cluster(conf) == []
    assert not pathlib.Path(conf).exists()


def test_the_command_has_the_cluster_and_gives_its_exit_code():
    script = 'test "$(sinfo -h -o %D)" = 2 && echo "$0" && exit 7'
    words = ("--nodes=2", "--", "bash", "-c", script, "a b; $(c)")
    result = processes.run("launch.local_slurm", *words)
    assert result.code == 7, result
    assert result.stdout == "a b; $(c)\n"


def test_it_ends_with_all_that_it_started_when_it_is_told_to():
    words = ("--nodes=1", "--", "bash", "-c", 'echo "$SLURM_CONF" >&2; sleep 500')
    command = processes.start("launch.local_slurm", *words)
    processes.until(lambda: "slurm.conf" in command.told(), command)
    conf = command.told().strip()
    command.send(signal.SIGTERM)
    assert command.wait().code == 128 + signal.SIGTERM
    assert of_cluster(conf) == []


def test_what_is_no_command_is_refused():
    result = processes.fork("launch.local_slurm", "--nodes=1").wait()
    assert result.code == 2
    assert "what shall run?" in result.stderr
