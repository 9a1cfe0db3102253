"""The device of a run: which one, in what precision, with what kernels, and how it is described in the record."""

from __future__ import annotations

import os
import re

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from omegaconf import DictConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from condlora.errors import ConfigError, DeviceError, first_line
from condlora.models.backbones import Backbone
from condlora.runs.environment import device_name, environment, has_bf16
from condlora.runs.record import run_folder
from condlora.training.bars import is_worker
from condlora.training.distributed import processes


def make_accelerator(cfg: DictConfig) -> Accelerator:
    """The device, precision and trackers of a run.

    Raises:
        DeviceError: the device is not there, or lacks the precision.
        ConfigError: a tracker is not installed, or several processes were started for a grid's workers or fp16.
    """
    device = find_device(cfg.runtime.device)
    precision = cfg.protocol.precision
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "no"
    make_deterministic(cfg.runtime.deterministic)
    if cfg.runtime.threads:
        torch.set_num_threads(cfg.runtime.threads)
    trackers = list(cfg.runtime.trackers)
    logging_dir = str(run_folder(cfg) / "trackers")
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # precision is the run's, not the process's
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            log_with=trackers or None,
            project_config=ProjectConfiguration(logging_dir=logging_dir),
        )
    except (ValueError, ImportError) as error:
        if precision != "no" and precision in str(error):
            raise DeviceError(
                f"This device has no {precision}: set protocol.precision=no."
            ) from error
        raise ConfigError(f"runtime.trackers={trackers} is not usable ({error}).") from error
    if len(accelerator.log_with) < len(trackers):  # accelerate only warns, and would log nowhere
        raise ConfigError(
            f"runtime.trackers={trackers}: one is not installed: pip install '.[trackers]' or leave it out."
        )
    if accelerator.num_processes > 1 and (is_worker() or accelerator.mixed_precision == "fp16"):
        raise ConfigError(
            "accelerate launch spreads one run after the other, and not in fp16: set hydra/launcher=basic and "
            "protocol.precision=bf16, or start a grid with python."
        )
    return accelerator


def make_deterministic(is_wanted: bool) -> None:
    """Have torch use algorithms on a GPU that give the same bits each time, or again whatever is fastest.

    On a CPU they do so anyway, for the same number of threads. Without it a run on a GPU that is interrupted and
    continued differs by rounding.
    """
    if is_wanted:  # cuBLAS reads it when the first product is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_wanted)
    torch.backends.cudnn.benchmark = False


def find_device(name: str) -> torch.device:
    """The device that `runtime.device` names; a DeviceError where it is not there."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise DeviceError(
            "runtime.device=cuda, and no CUDA GPU is to be seen here: use runtime.device=auto."
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


FLEET_ON_GPU = 16  # runs; a step of one leaves a large GPU idle


def fleet_size(cfg: DictConfig) -> int:
    """How many runs are trained together: `runtime.fleet`, or for "auto" one on a CPU, where only short texts gain.

    One where several processes share a run.
    """
    if processes() > 1:
        return 1
    if cfg.runtime.fleet != "auto":
        return cfg.runtime.fleet
    return 1 if find_device(cfg.runtime.device).type == "cpu" else FLEET_ON_GPU


def described_environment(accelerator: Accelerator) -> dict:
    """The environment of a record: versions, machine, commit, and the device this run is on."""
    return environment() | {
        "device": device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def same_for_checkpoints(environment: dict) -> dict:
    """What of a record's environment a checkpoint must share with the run that continues it.

    Not the names of platform and processor, nor a CPU's as a device: a float32 run that another processor continues
    differs by rounding, and a grid may then move between machines. The record names every device that took steps.
    """
    same = {k: v for k, v in environment.items() if k not in ("platform", "processor")}
    return same | {"device": re.sub(r"^cpu \(.*", "cpu", environment["device"])}


def round_frozen(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Hold frozen linear layers in the precision that autocast would round them to at every step; returns the model.

    The products are the same to the bit, in less time and memory. Layers under an adapter, which may read their weight,
    and the adapter's own stay as they are.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    of_adapter = tuple(
        f"{path}."
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    )
    for path, module in model.named_modules():
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if dtype and type(module) is nn.Linear and is_frozen and not path.startswith(of_adapter):
            module.to(dtype)
    return model


def choose_attention(cfg: DictConfig, backbone: Backbone, accelerator: Accelerator) -> str:
    """Set how the backbone, and every copy made of it, computes attention; the name transformers gives it.

    "auto" is torch's fused kernels ("sdpa") where the backbone can, but "eager" for bfloat16 on a CPU: there plain
    matrix products are faster in training, a MiniLM step on MRPC taking 0.73 of the time (torch 2.13).

    Raises:
        ConfigError: the backbone has no such attention.
    """
    name = cfg.runtime.attention
    if name == "auto":
        is_slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
        name = "sdpa" if backbone.model._supports_sdpa and not is_slow else "eager"
    try:
        backbone.model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{cfg.backbone.name} has no runtime.attention={name} ({first_line(error)}): use auto."
        ) from error
    return name
