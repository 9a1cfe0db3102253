"""Validation during training: the curve, which step's adapter the run keeps, and when it stops early."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from omegaconf import DictConfig
from peft import PeftModel
from safetensors import SafetensorError

from condlora.errors import DivergedError, RunFolderError, UndefinedScore, first_line
from condlora.files import write_atomically
from condlora.models.adapters import save_adapter
from condlora.models.baselines import baseline_of
from condlora.training.data import Data
from condlora.training.evaluation import batch_size, predict, score
from condlora.training.state import Progress, Training


def finite_loss(progress: Progress, protocol: DictConfig) -> float:
    """The mean training loss since the last evaluation; reading it waits for the device.

    Raises:
        DivergedError: the loss of one of these steps was NaN or infinite, and so is the mean.
    """
    value = float(progress.loss_sum) / progress.loss_steps
    if not math.isfinite(value):
        raise DivergedError(
            f"The loss is {value} at step {progress.step}: lower protocol.learning_rate (now "
            f"{protocol.learning_rate:g})."
        )
    return value


def validate(cfg: DictConfig, data: Data, training: Training, folder: Path) -> None:
    """Score on validation, extend the curve, keep the adapter if it is the best so far, count patience."""
    progress, accelerator = training.progress, training.accelerator
    started, mean_loss = time.perf_counter(), finite_loss(progress, cfg.protocol)
    progress.loss_sum, progress.loss_steps = 0.0, 0
    scores = _scores(cfg, data, training)
    headline = scores[data.task.headline]
    may_be_kept = baseline_of(training.unwrapped).may_be_kept(progress.step)
    improved = (
        may_be_kept
        and headline is not None
        and (progress.best_score is None or headline > progress.best_score)
    )
    if improved:
        progress.best_score = headline
    if improved or cfg.protocol.select == "last":
        progress.best_batch_size = batch_size(cfg, accelerator.device)
    if improved and cfg.protocol.select == "best":
        keep(training.model, accelerator, folder, progress)
    progress.evaluations_without_improvement = (
        0 if improved or not may_be_kept else progress.evaluations_without_improvement + 1
    )
    patience = cfg.protocol.early_stopping_patience
    progress.stopped_early = (
        patience is not None and progress.evaluations_without_improvement >= patience
    )
    row = {"step": progress.step, "epoch": progress.epoch, "train_loss": mean_loss, **scores}
    progress.curve.append(row)
    curve = pd.DataFrame(progress.curve)
    write_atomically(folder / "curve.csv", lambda path: curve.to_csv(path, index=False))
    accelerator.log({k: v for k, v in row.items() if v is not None}, step=progress.step)
    progress.evaluation_seconds += time.perf_counter() - started


def _scores(cfg: DictConfig, data: Data, training: Training) -> dict[str, float | None]:
    """All metrics on validation; None for all while one is undefined, as when a model predicts a single class."""
    predictions = predict(cfg, data, data.validation, training.model, training.accelerator)
    try:
        return score(cfg, data.task, predictions, data.validation)
    except UndefinedScore:
        return dict.fromkeys(data.task.metrics)


def keep(model: PeftModel, accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Save adapter and head as the run's result so far.

    Raises:
        RunFolderError: safetensors cannot write them, for example because the disk is full.
    """
    progress.best_step, progress.best_epoch = progress.step, progress.epoch
    _write_adapter(model, accelerator, folder / "adapter")


def keep_at_step(model: PeftModel, accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save adapter and head as they are after `step` steps, apart from the run's result; 0: before the first step.

    `runtime.keep_adapters_at` names the steps; the analyses of adapters over training read these folders.

    Raises:
        RunFolderError: safetensors cannot write them, for example because the disk is full.
    """
    _write_adapter(model, accelerator, folder / f"adapter_at_{step}")


def _write_adapter(model: PeftModel, accelerator: Accelerator, folder: Path) -> None:
    unwrapped = accelerator.unwrap_model(model)
    with accelerator.autocast():  # P-tuning computes its prompts when it is saved
        try:
            write_atomically(folder, lambda path: save_adapter(unwrapped, path))
        except SafetensorError as error:
            raise RunFolderError(
                f"The adapter cannot be written to {folder.parent} ({first_line(error)}): free some space on the disk and "
                "run the same command to resume."
            ) from error
