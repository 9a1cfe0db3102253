"""What a command checks before anything is loaded: the machine, the hub, the data folder, every setting of every run."""

from __future__ import annotations

import os
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from condlora.errors import ConfigError, DataError, DeviceError, NetworkError
from condlora.glue.folder import data_folder
from condlora.grid.cells import compose_common, each_config
from condlora.runs.environment import has_cuda
from condlora.runs.recipe import recipe
from condlora.runs.settings import SeedSettings, run_faults
from condlora.settings import faults, folder_fault, refuse

# The number of processes, by MPI's starters. Without a GPU accelerate goes by it, but says so only once a run has begun.
MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def preflight(overrides: list[str], *, on_this_machine: bool = True) -> None:
    """Refuse within seconds what cannot run: a missing GPU, hub or data folder, an unfinished recipe, a wrong value.

    on_this_machine: False where the runs will be done elsewhere, on machines that may have a GPU or the hub.

    Raises:
        DeviceError, NetworkError: with all that is missing in one sentence. ConfigError: with all settings that are wrong.
        DataError: see `condlora.glue.folder.data_folder`, or a user's file is missing.
    """
    check_launcher(os.environ)
    common = compose_common(tuple(overrides))
    if on_this_machine:
        _require_machine(common)
    if common.data.source == "directory":
        data_folder(common.data)
    if "${now:" in str(OmegaConf.to_container(common, resolve=False)["runs"]):
        raise ConfigError(
            "runs has the time in it, so every run would have another folder: set runs=... on the command line."
        )
    refuse([*folder_fault("runs", str(common.runs)), *_faults_of_runs(overrides)])


def check_launcher(environment: Mapping[str, str]) -> None:
    """Raise a ConfigError if a launcher was asked for several processes and started processes that know of no other."""
    if "WORLD_SIZE" in environment:  # torchrun, and accelerate launch on GPUs
        return
    # `accelerate launch --cpu` and on a machine without GPUs: it names the place where the processes should meet.
    if "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs: start one run with "
            "torchrun --nproc-per-node N scripts/train.py ..., or leave --num_processes out."
        )
    if not has_cuda() and any(int(environment.get(name, 1)) > 1 for name in MPI_SIZES):
        raise ConfigError(
            "MPI started several processes, which cannot share a run: start one run with torchrun --nproc-per-node N "
            "scripts/train.py ..., also under srun, and workers for a grid with scripts/submit.py or srun --mpi=none."
        )


def _faults_of_runs(overrides: list[str]) -> list[str]:
    """What is wrong with the settings of each run; runs that differ in the seed alone share all but that."""
    found: list[str] = []
    for cfg, is_fresh in each_config(tuple(overrides)):
        if not is_fresh:
            found += faults(SeedSettings, {"seed": cfg.seed})
            continue
        of_run = run_faults(cfg)
        try:
            recipe(cfg)
        except ConfigError as error:
            of_run.append(str(error))
        except (DataError, OmegaConfBaseException):
            if not of_run:
                raise
        found += of_run
    return found


def _require_machine(common: DictConfig) -> None:
    """Raise a DeviceError or NetworkError if a GPU or repositories of the hub are needed and not available."""
    no_gpu = "cuda" in common.profile.requires and not has_cuda()
    unreachable = _unreachable(common)
    missing = ["a CUDA GPU"] * no_gpu
    if unreachable:
        missing.append(f"the Hugging Face hub (for {' and '.join(unreachable)})")
    if missing:
        needs = f"needs {' and '.join(missing)}, not found here"
        raise (DeviceError if no_gpu else NetworkError)(
            f"This run {needs}: use backbone=minilm with data=synthetic or data=directory, which need neither."
            if common.profile.name == "adhoc"
            else f"PROFILE={common.profile.name} {needs}: use PROFILE=embedded, which needs neither."
        )
    if common.runtime.device == "cuda" and not has_cuda():
        raise DeviceError(
            "runtime.device=cuda, but no CUDA device is available: use runtime.device=auto."
        )


def _unreachable(cfg: DictConfig) -> list[str]:
    """Repositories the config needs that are neither cached nor reachable."""
    wanted = []
    if cfg.backbone.source == "hub":
        wanted.append((cfg.backbone.model, cfg.backbone.revision, "model"))
    if cfg.data.source == "hub" or (cfg.data.source == "dataset" and cfg.data.revision):
        wanted.append((cfg.data.dataset, cfg.data.revision, "dataset"))
    return [repo for repo, revision, kind in wanted if not _is_available(repo, revision, kind)]


def _is_available(repo: str, revision: str, kind: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(
            repo, revision=revision, repo_type=kind, local_files_only=True
        )
        return True
    except Exception:  # not cached, in any of the ways the library says so
        pass
    try:
        huggingface_hub.HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=5)
        return True
    except Exception:  # offline, blocked, unknown: all the same to the user who waits
        return False
