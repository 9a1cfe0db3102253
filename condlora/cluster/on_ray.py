"""Workers as tasks of a Ray cluster: each runs a command of this project on a node that has room for it."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from condlora.cluster.settings import RaySettings
from condlora.errors import ClusterError, first_line
from condlora.paths import ROOT


def require_client() -> None:
    """Raise a ClusterError where Ray is not installed, before anything is written."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterError(
            "Ray is not installed: run pip install 'condlora[ray]' here and on the machines of the cluster, or use slurm."
        )


def connect(settings: RaySettings) -> ModuleType:
    """The module ray, connected to the cluster.

    Raises:
        ClusterError: no cluster can be reached, or no node of it has what a worker needs.
    """
    import ray

    try:
        _require_open(settings.address)
        ray.init(address=settings.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"No Ray cluster can be reached with cluster.address={settings.address} ({first_line(error)}): start one with "
            "ray start --head, or name another address."
        ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(
        node.get("CPU", 0) >= settings.cpus and node.get("GPU", 0) >= settings.gpus
        for node in nodes
    ):
        ray.shutdown()
        raise ClusterError(
            f"No node of the Ray cluster has {settings.cpus} CPUs and {settings.gpus} GPUs, so no worker would ever "
            "start: set cluster.cpus and cluster.gpus."
        )
    return ray


def _require_open(address: str) -> None:
    """Raise an OSError if nobody answers at an address with a port, of which Ray itself would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def launch(
    settings: RaySettings, workers: int, command: Sequence[str], logs: Path
) -> tuple[str, Callable[[], bool]]:
    """Start the workers; a name for them, and whether one is queued or running, which takes a second to tell.

    command: of each worker, which writes to <logs>/worker-<n>.log.
    """
    ray = connect(settings)
    logs.mkdir(parents=True, exist_ok=True)

    # Within this function, so that Ray hands over the code itself: its processes need not find this package.
    @ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, max_retries=3)
    def work(folder: str, path: str, log: str) -> int:
        import ctypes
        import signal
        import subprocess

        def end_with_parent() -> None:  # SIGTERM, so that it ends with its task
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)

        environment = os.environ | {"PYTHONPATH": path}
        with open(log, "a") as out:
            try:
                found = subprocess.run(
                    command, cwd=folder, env=environment, stdout=out, stderr=out, preexec_fn=end_with_parent
                )  # fmt: skip
            except OSError as error:
                out.write(f"error: {error}\n")
                return 2
        return found.returncode

    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    tasks = [
        work.remote(str(Path.cwd()), path, str(logs / f"worker-{number}.log"))
        for number in range(1, workers + 1)
    ]
    return "tasks to Ray", lambda: bool(ray.wait(tasks, num_returns=len(tasks), timeout=1)[1])
