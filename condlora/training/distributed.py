"""One run over several processes, as `accelerate launch` starts them: each computes a share of every batch.

Gradients are summed over the processes, a few MiB a step, so all take the same steps, keep the same checkpoint, stop at
the same step and hold the same weights: those of one process but for rounding and dropout's draws. The first writes the
run's folder. Each other writes the same files to a folder of its own, which is removed, and goes on from the first's
checkpoint where the run was begun before.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from condlora.errors import RunFolderError
from condlora.runs.record import read_record, run_folder


def processes() -> int:
    """How many do this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", 0))


def own_rows(size: int) -> torch.Tensor:
    """The rows of a batch that are this process's share; none of a batch smaller than the processes are many."""
    return torch.arange(size).tensor_split(processes())[rank()]


def sum_over_processes(parameters: Iterable[nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Sum gradients, in place, and losses over the processes; the loss comes back. All in one message, in float32."""
    if processes() == 1:
        return loss
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:  # no row was this process's
            parameter.grad = torch.zeros_like(parameter)
    message = torch.cat([loss.view(1), *(p.grad.float().flatten() for p in parameters)])
    torch.distributed.all_reduce(message)
    loss, *sums = message.split([1, *(p.numel() for p in parameters)])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad.copy_(total.view_as(parameter))
    return loss.squeeze(0)


def asked_of_any(signal: int | None, device: torch.device) -> int | None:
    """The signal that any of the processes was sent, so that all end at one step."""
    if processes() == 1:
        return signal
    number = torch.tensor(signal or 0, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number) or None


@contextlib.contextmanager
def beside_the_first(cfg: DictConfig, digest: str) -> Iterator[DictConfig]:
    """For another process than the first: the run's config with a folder of its own, which holds the first's checkpoints.

    digest: of the run's recipe; checkpoints of another are not the run's.
    """
    own = copy.deepcopy(cfg)
    OmegaConf.set_readonly(own, False)
    with tempfile.TemporaryDirectory() as place:
        own.runs = place
        with contextlib.suppress(RunFolderError):
            first = run_folder(cfg)
            if read_record(first)["recipe_hash"] == digest and (first / "checkpoints").is_dir():
                Path(run_folder(own)).mkdir(parents=True)
                shutil.copy(first / "record.json", run_folder(own))
                shutil.copytree(first / "checkpoints", run_folder(own) / "checkpoints")
        OmegaConf.set_readonly(own, True)
        yield own
