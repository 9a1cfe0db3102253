"""The cost of checkpoints relative to training, at the shape of RoBERTa-base with random weights.

Measured by `python scripts/benchmark.py 'measures=[checkpoints]'`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, get_peft_model
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    get_constant_schedule,
)

from condlora import CondLoraConfig
from condlora.models.adapters import save_adapter
from condlora.paths import CONFIGS
from condlora.runs.lease import Claim
from condlora.training.checkpoints import Checkpoints
from condlora.training.state import Progress, Training

METHODS = {"lora": LoraConfig, "condlora": CondLoraConfig}


def checkpoints(cfg: DictConfig) -> dict[str, float]:
    """Median seconds to write and verify a checkpoint, its size in MiB, and its share of the training time.

    share: with the shipped interval between checkpoints. steps_at_2_percent: the number of steps (16 x 32 tokens)
    between two checkpoints at which checkpoints cost 2 % of the time on this machine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shipped = OmegaConf.load(CONFIGS / "runtime" / "default.yaml")
    found = {}
    for name, method in METHODS.items():
        training = at_the_first_step(cfg, method, device)
        step = min(timed(take_step, training, device) for _ in range(cfg.repeats))
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "profile", "task", name, "seed-0")
            folder.mkdir(parents=True)
            save_adapter(training.model, folder / "adapter")
            with Claim(folder) as claim:
                kept = Checkpoints(folder, shipped, {"name": name}, claim)
                save = statistics.median(
                    timed(next_save, kept, training) for _ in range(cfg.repeats)
                )
        found |= {
            f"{name}_seconds": save,
            f"{name}_mib": training.progress.checkpoint_bytes / 2**20,
            f"{name}_share": save / (save + 60 * shipped.checkpoint_minutes),
            f"{name}_steps_at_2_percent": save / (0.02 * step),
        }
    return found


def at_the_first_step(cfg: DictConfig, method: type, device: torch.device) -> Training:
    """A classifier with an adapter whose optimizer has taken one step."""
    shape = RobertaConfig(
        vocab_size=1000,
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.hidden_size // 64,
        intermediate_size=4 * cfg.hidden_size,
    )
    adapter = method(r=cfg.rank, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(RobertaForSequenceClassification(shape), adapter).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    schedule = get_constant_schedule(optimizer)
    progress = Progress(step=1, best_step=1)
    training = Training(model, optimizer, schedule, Accelerator(), 1.0, progress)
    take_step(training, device)
    return training


def take_step(training: Training, device: torch.device) -> None:
    ids = torch.randint(3, 1000, (16, 32), device=device)
    training.model(input_ids=ids, labels=ids[:, 0] % 2).loss.backward()
    training.optimizer.step()
    training.optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def next_save(kept: Checkpoints, training: Training) -> None:
    training.progress.step += 1
    kept.save(training)


def timed(work: Callable, *arguments) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started
