"""A job array of workers on SLURM: the script, its submission, and what SLURM says of it."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from condlora.cluster.settings import SlurmSettings
from condlora.errors import ClusterError
from condlora.paths import ROOT

# SLURM's own client waits for a controller that is down before it gives up.
TIMEOUT = 180  # seconds
# What a worker ends with after a checkpoint: 128 + SIGTERM, SIGUSR1 or SIGUSR2.
INTERRUPTED = (143, 138, 140)

SCRIPT = """#!/bin/bash
{options}

# Kept next to the runs as a record of what was submitted. The same command on every worker: each takes the runs, or the
# trials of a search, that no other has. Submitted again, it continues where it stopped.
{setup}
trap : TERM USR1 USR2  # SLURM signals this script too: it must live on to ask for another turn
cd {folder}
{environment}
srun {command}
status=$?
case $status in {interrupted})
  # A checkpoint was written. Another turn, unless the job was cancelled: then SLURM no longer says that it is running.
  # SLURM_JOB_ID of one of the workers is that of the whole array.
  this="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
  if [ "$(squeue --noheader --jobs "$this" --format %T 2>/dev/null)" = RUNNING ]; then
    scontrol requeue "$this"
    sleep 60
  fi ;;
esac
exit $status
"""


def script(settings: SlurmSettings, workers: int, command: Sequence[str], logs: Path) -> str:
    """The array's script. command: of each worker."""
    throttle = f"%{settings.at_a_time}" if settings.at_a_time else ""
    options = [
        "--job-name=condlora",
        f"--array=1-{workers}{throttle}",
        f"--output={logs}/%A_%a.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{settings.grace}",
        f"--time={settings.time}",
        f"--cpus-per-task={settings.cpus}",
        f"--mem={settings.memory}",
        *([f"--gres=gpu:{settings.gpus}"] if settings.gpus else []),
        *(
            f"--{name}={value}"
            for name in ("partition", "account", "qos")
            if (value := getattr(settings, name))
        ),
        *settings.options,
    ]
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        setup="\n".join(settings.setup),
        folder=shlex.quote(str(Path.cwd())),
        environment=f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        command=shlex.join(command),
        interrupted="|".join(map(str, INTERRUPTED)),
    )


def require_client() -> None:
    """Raise a ClusterError where SLURM's commands are not there, before anything is written."""
    missing = [name for name in ("sbatch", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise ClusterError(
            f"{', '.join(missing)} not found: submit from a machine on which SLURM's commands work, such as a login node."
        )


def launch(
    settings: SlurmSettings, workers: int, command: Sequence[str], logs: Path
) -> tuple[str, Callable[[], bool]]:
    """Write the script to <logs>/workers.sh and submit it; the job's name, and whether a worker is queued or running.

    Raises:
        ClusterError: SLURM refused it or did not answer, in SLURM's words.
    """
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / "workers.sh"
    path.write_text(script(settings, workers, command, logs), encoding="utf-8")
    job = _call("sbatch", "--parsable", str(path)).strip().split(";")[0]
    return f"SLURM job {job}", functools.partial(is_alive, job)


def is_alive(job: str) -> bool:
    """Whether a worker of the array is queued or running."""
    try:
        return bool(_call("squeue", "--noheader", "--jobs", job, "--format", "%T").strip())
    except ClusterError as error:
        if "Invalid job id" in str(error):  # SLURM forgets ended jobs after some minutes
            return False
        raise


def _call(*command: str) -> str:
    # SLURM hands the environment on to the job. Our commands set this variable for themselves; there it asks for tracebacks.
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env=environment
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{command[0]} did not answer within {TIMEOUT} s: SLURM's controller may be down; try again later."
        ) from None
    if found.returncode:
        lines = [
            re.sub(rf"^{command[0]}: (error: )?", "", x) for x in found.stderr.splitlines() if x
        ]
        says = "; ".join(dict.fromkeys(lines)) or f"status {found.returncode}"
        raise ClusterError(
            f"{command[0]} failed ({says}): change the cluster settings or try again later; nothing was submitted."
            if command[0] == "sbatch"
            else f"{command[0]} failed ({says})."
        )
    return found.stdout
