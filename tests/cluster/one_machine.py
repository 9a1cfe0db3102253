"""A SLURM cluster on this machine: a controller and two nodes, all state in one folder, on the loopback interface.

Partitions: `main` (preemptible, 5 s of grace) and `urgent`, whose jobs preempt those of `main`, which are queued again.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=30
SlurmdTimeout=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=32000
PartitionName=main Nodes=node[1-2] Default=YES State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=node[1-2] State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """What has to be installed for it; it also needs root."""
    return [name for name in PROGRAMS if not shutil.which(name)] + ["root"] * bool(os.geteuid())


@contextlib.contextmanager
def cluster(folder: Path, port: int = 26900) -> Iterator[dict[str, subprocess.Popen]]:
    """The cluster with SLURM_CONF set; its processes are ended at the end. Yields the daemon of each node."""
    folder.chmod(0o755)
    for name in ("state", "spool-node1", "spool-node2"):
        (folder / name).mkdir()
    key, socket = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, first=port + 1, last=port + 2))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    processes = []

    def start(*command: str) -> subprocess.Popen:
        with (folder / f"{command[0]}-{len(processes)}.out").open("w") as out:
            started = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        processes.append(started)
        return started

    try:
        munge = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
        start("munged", "-F", "--force", f"--socket={socket}", f"--key-file={key}", *munge)
        _until(socket.exists)
        start("slurmctld", "-D")
        _until(lambda: _says("scontrol", "ping", has="is UP"))
        nodes = {name: start("slurmd", "-D", "-N", name) for name in ("node1", "node2")}
        _until(lambda: _says("sinfo", "-h", "-o", "%T", has="idle"))
        yield nodes
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def kill_node(daemon: subprocess.Popen) -> None:
    """As a node that loses its power: its daemon and all that runs under it are gone, and nobody is notified."""
    name = psutil.Process(daemon.pid).cmdline()[-1]
    jobs = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURMD_NODENAME") == name:
                jobs.append(process)
    # What would report the end of the jobs goes first; it is no child of the daemon.
    watching = {p.parent() for p in jobs if p.parent() and p.parent().name() == "slurmstepd"}
    for process in (psutil.Process(daemon.pid), *watching, *jobs):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _says(*command: str, has: str) -> bool:
    return has in subprocess.run(command, capture_output=True, text=True).stdout


def _until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(
                "the cluster did not start; its logs are in the folder of SLURM_CONF"
            )
        time.sleep(0.2)
