"""The device of a run: which one, its precision and kernels, and its description in the record."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
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

# Set by the configuration files of `accelerate launch`; this project's step is written for none of them.
OTHER_TRAINERS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")


def make_accelerator(cfg: DictConfig) -> Accelerator:
    """The device, precision and trackers of a run, from its config alone.

    Environment variables that accelerate reads (ACCELERATE_...) are overridden where they can change results, or refused.

    Raises:
        DeviceError: the device is not available, or lacks the precision.
        ConfigError: a tracker is not installed; several processes were started for a grid's workers or for fp16; or the
            environment asks accelerate for another device or trainer.
    """
    device = find_device(cfg.runtime.device)
    precision = cfg.protocol.precision
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "no"
    check_accelerate_environment()
    make_deterministic(cfg.runtime.deterministic)
    if cfg.runtime.threads:
        torch.set_num_threads(cfg.runtime.threads)
    trackers = list(cfg.runtime.trackers)
    logging_dir = str(run_folder(cfg) / "trackers")
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # or it keeps the previous run's precision
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            log_with=trackers or None,
            project_config=ProjectConfiguration(logging_dir=logging_dir),
        )
    except (ValueError, ImportError) as error:
        if precision != "no" and precision in str(error):
            raise DeviceError(
                f"This device does not support {precision}: set protocol.precision=no."
            ) from error
        raise ConfigError(f"runtime.trackers={trackers} is not usable ({error}).") from error
    if len(accelerator.log_with) < len(trackers):  # accelerate only warns and then logs nowhere
        raise ConfigError(
            f"runtime.trackers={trackers}: one is not installed: pip install '.[trackers]' or leave it out."
        )
    if accelerator.device.type != device.type:
        raise ConfigError(
            f"runtime.device={cfg.runtime.device} is {device.type} here, but the environment makes accelerate use "
            f"{accelerator.device}: unset ACCELERATE_USE_CPU and ACCELERATE_TORCH_DEVICE."
        )
    if accelerator.num_processes > 1 and (is_worker() or accelerator.mixed_precision == "fp16"):
        raise ConfigError(
            "accelerate launch distributes one run at a time, and not in fp16: set hydra/launcher=basic and "
            "protocol.precision=bf16, or start a grid with python."
        )
    return accelerator


def check_accelerate_environment() -> None:
    """Raise a ConfigError if the environment asks accelerate for a trainer that would take over the step."""
    for name in (f"ACCELERATE_USE_{trainer}" for trainer in OTHER_TRAINERS):
        if os.environ.get(name, "false").lower() not in ("", "0", "false"):
            raise ConfigError(
                f"{name} is set in the environment, and runs are trained without it: unset it, or choose another "
                "configuration for accelerate launch."
            )


def make_deterministic(is_wanted: bool) -> None:
    """Use deterministic algorithms on a GPU, or the fastest ones.

    On a CPU all are deterministic for the same number of threads. Without them a run on a GPU that is interrupted and
    resumed differs by rounding.
    """
    if is_wanted:  # cuBLAS reads it at the first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_wanted)
    torch.backends.cudnn.benchmark = False


def find_device(name: str) -> torch.device:
    """The device that `runtime.device` names; a DeviceError if it is not available."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise DeviceError(
            "runtime.device=cuda, but no CUDA device is available: use runtime.device=auto."
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


FLEET_ON_GPU = 16  # runs; a single one leaves a large GPU idle


def fleet_size(cfg: DictConfig) -> int:
    """How many runs are trained together: `runtime.fleet`; "auto" is 1 on a CPU, where only short texts gain.

    1 if several processes share a run.
    """
    if processes() > 1:
        return 1
    if cfg.runtime.fleet != "auto":
        return cfg.runtime.fleet
    return 1 if find_device(cfg.runtime.device).type == "cpu" else FLEET_ON_GPU


def described_environment(accelerator: Accelerator) -> dict:
    """The environment of a record: versions, machine, commit, and the device of this run."""
    return environment() | {
        "device": device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def round_frozen(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Store frozen linear layers in the precision that autocast would round them to at every step; returns the model.

    The products are the same to the bit, in less time and memory. Layers under an adapter, which may read their weight,
    and the adapter's own layers stay in float32.
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
    """Set how the backbone, and every copy of it, computes attention; returns transformers' name of the implementation.

    "auto" is torch's fused kernels ("sdpa") if the backbone supports them, but "eager" for bfloat16 on a CPU: plain
    matrix products are faster there in training (0.73 of the time for a MiniLM step on MRPC with torch 2.13).

    Raises:
        ConfigError: the backbone does not support runtime.attention.
    """
    name = cfg.runtime.attention
    if name == "auto":
        is_slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
        name = "sdpa" if backbone.model._supports_sdpa and not is_slow else "eager"
    try:
        backbone.model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{cfg.backbone.name} does not support runtime.attention={name} ({first_line(error)}): use auto."
        ) from error
    return name
