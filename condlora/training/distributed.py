"""One run on several processes, as `accelerate launch` starts them: each computes a share of every batch.

Gradients are summed over the processes, a few MiB a step, so all processes take the same steps, stop at the same step
and hold the same weights: those of one process except for rounding and the draws of dropout. The first process writes
the run's folder. Every other one writes the same files to a temporary folder; it resumes from the first process's
checkpoint.
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
    """The number of processes of this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def own_rows(size: int) -> torch.Tensor:
    """The rows of a batch that this process computes; possibly none, if the batch is smaller than `processes()`."""
    return torch.arange(size).tensor_split(processes())[rank()]


def sum_over_processes(parameters: Iterable[nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Sum gradients, in place, and losses over the processes, in one float32 message; returns the loss."""
    if processes() == 1:
        return loss
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:  # this process had no row
            parameter.grad = torch.zeros_like(parameter)
    message = torch.cat([loss.view(1), *(p.grad.float().flatten() for p in parameters)])
    torch.distributed.all_reduce(message)
    loss, *sums = message.split([1, *(p.numel() for p in parameters)])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad.copy_(total.view_as(parameter))
    return loss.squeeze(0)


def seed_dropout(seed: int, step: int) -> None:
    """Give each of several processes its own draws of dropout for its rows, from a step on."""
    if processes() > 1:
        torch.manual_seed(seed + rank() + processes() * step)


def signal_of_any(signal: int | None, device: torch.device) -> int | None:
    """The signal that any of the processes received, so that all end at the same step."""
    if processes() == 1:
        return signal
    number = torch.tensor(signal or 0, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number) or None


@contextlib.contextmanager
def with_own_folder(cfg: DictConfig, digest: str) -> Iterator[DictConfig]:
    """The run's config with a temporary folder, for every process but the first; it holds copies of the checkpoints.

    digest: of the run's recipe; checkpoints of another recipe are not copied.
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
