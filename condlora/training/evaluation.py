"""Predictions and scores of a model in training and of the adapter that a run has kept."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from omegaconf import DictConfig
from peft import PeftModel

from condlora.errors import (
    ConfigError,
    DeviceError,
    DivergedError,
    RunFolderError,
    UndefinedScore,
)
from condlora.files import write_atomically
from condlora.glue.batches import Collate, Encoded, evaluation_batches, padder
from condlora.glue.metrics import GlueMetric
from condlora.glue.tasks import Task
from condlora.models.adapters import base_for, load_adapter
from condlora.models.backbones import Backbone
from condlora.models.packing import leave_padded, pack
from condlora.training.data import Data
from condlora.training.state import Progress

ROUNDING = (
    0.01  # by which a score may move when a run is resumed with another evaluation batch size
)


@torch.inference_mode()
def predict(
    cfg: DictConfig, data: Data, split: Encoded, model: PeftModel, accelerator: Accelerator
) -> np.ndarray:
    """Predictions (n,) in the split's order: int64 labels, or float64 scores in the targets' own scale.

    Raises:
        DivergedError: an output is NaN or infinite, which argmax would turn into a label.
        DeviceError: a batch does not fit into the device's memory.
    """
    model = accelerator.unwrap_model(model).eval()
    size = min(batch_size(cfg, accelerator.device), len(split))
    batches, order = evaluation_batches(split, collator(cfg, data), batch_size=size)
    outputs = []
    for batch in batches:
        inputs = inputs_of(batch, accelerator)
        with contextlib.suppress(torch.OutOfMemoryError), accelerator.autocast():
            outputs.append(model(**inputs).logits.float())
            continue
        raise DeviceError(  # outside, so that the error does not hold on to the memory
            f"An evaluation batch of {size} examples does not fit into the device's memory: set "
            f"runtime.evaluation_batch_size={max(1, size // 2)} and run the same command again."
        )
    logits = torch.cat(outputs).cpu()
    if not logits.isfinite().all():
        raise DivergedError(
            f"The model's outputs are not finite: lower protocol.learning_rate (now {cfg.protocol.learning_rate:g})."
        )
    logits = torch.empty_like(logits).index_copy_(0, order, logits)
    if data.task.is_regression:
        return logits.squeeze(-1).double().numpy() * data.target_sd + data.target_mean
    return logits.argmax(dim=-1).numpy()


def batch_size(cfg: DictConfig, device: torch.device) -> int:
    """Examples in an evaluation batch: `runtime.evaluation_batch_size`; "auto" is 64 on a CPU and 512 on a GPU."""
    if cfg.runtime.evaluation_batch_size != "auto":
        return cfg.runtime.evaluation_batch_size
    return 64 if device.type == "cpu" else 512


def inputs_of(batch: dict, accelerator: Accelerator) -> dict:
    """The model's inputs in a batch, on the run's device."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    return send_to_device(inputs, accelerator.device, non_blocking=True)


def collator(cfg: DictConfig, data: Data) -> Collate:
    """The padding function of a run."""
    return padder(data.tokenizer, padding=cfg.runtime.padding, max_length=cfg.protocol.max_length)


def fit_to_batches(model: torch.nn.Module, cfg: DictConfig) -> torch.nn.Module:
    """Prepare the model, in place, for the batches of the run's `collator`; "auto" packs if the model supports it.

    Raises:
        ConfigError: runtime.padding=packed, and the model does not support it.
    """
    if cfg.runtime.padding not in ("auto", "packed"):
        return model
    try:
        return pack(model)
    except ConfigError:
        if cfg.runtime.padding == "packed":
            raise
        return leave_padded(model)


def metric_of(cfg: DictConfig, task: Task) -> GlueMetric:
    """The task's metrics; `protocol.undefined_score`, if the protocol has it, replaces a score without a value."""
    return GlueMetric(task, cfg.protocol.get("undefined_score"))


def score(cfg: DictConfig, task: Task, predictions: np.ndarray, split: Encoded) -> dict[str, float]:
    """All metrics of the task on a split, as fractions."""
    labels = split.labels.cpu().numpy()
    return metric_of(cfg, task).compute(predictions=predictions, references=labels)


def test_kept(
    cfg: DictConfig,
    data: Data,
    backbone: Backbone,
    accelerator: Accelerator,
    folder: Path,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Scores of the adapter that the run has kept, on validation and test.

    Raises:
        UndefinedScore: no evaluation gave the headline metric a value, so none was kept; or a metric has no value.
        RunFolderError: its scores on validation differ from those during training.
    """
    if progress.best_step == 0:
        raise UndefinedScore(
            f"{data.task.headline} was undefined at every evaluation of {cfg.task.name}, as the model predicts a single "
            "class: train longer (protocol.max_steps, protocol.epochs) or change protocol.learning_rate."
        )
    started = time.perf_counter()
    scores = test_saved(cfg, data, backbone, accelerator, folder)
    seen = next((row for row in progress.curve if row["step"] == progress.best_step), {})
    is_same_batch = progress.best_batch_size in (None, batch_size(cfg, accelerator.device))
    for metric in scores["validation"].keys() & seen.keys():
        value = seen[metric]
        if abs(scores["validation"][metric] - value) > (0 if is_same_batch else ROUNDING):
            raise RunFolderError(
                f"The saved adapter in {folder} has {scores['validation'][metric]} {metric} on validation where training "
                f"measured {value}: do not use this run, and report it with its config."
            )
    progress.evaluation_seconds += time.perf_counter() - started
    return scores


def test_saved(
    cfg: DictConfig, data: Data, backbone: Backbone, accelerator: Accelerator, folder: Path
) -> dict[str, dict[str, float]]:
    """Load the adapter in a run folder, score it on validation and test, and write its predictions.

    Raises:
        UndefinedScore: a metric has no value for these predictions.
    """
    model = load_adapter(base_for(backbone, cfg.adapter), folder / "adapter").to(accelerator.device)
    fit_to_batches(model, cfg)
    scores = {}
    for name, split in (("validation", data.validation), ("test", data.test)):
        predictions = predict(cfg, data, split, model, accelerator)
        scores[name] = score(cfg, data.task, predictions, split)
        table = pd.DataFrame({"label": split.labels.cpu().numpy(), "prediction": predictions})
        if name == "test":
            table.insert(0, "part", data.test_part)
            scores[name] |= scores_by_part(metric_of(cfg, data.task), table)
        path = folder / f"predictions_{name}.parquet"
        write_atomically(path, lambda path, table=table: table.to_parquet(path))
    return scores


def scores_by_part(metric: GlueMetric, table: pd.DataFrame) -> dict[str, float]:
    """The scores on each part of the test set, and none if it has one part.

    MNLI has `accuracy_matched` and `accuracy_mismatched`; with further test rows from the training set there are
    `accuracy_held_out` and `accuracy_validation`.

    Raises:
        UndefinedScore: a metric has no value on a part.
    """
    if table["part"].nunique() == 1:
        return {}
    scores = {}
    for part, rows in table.groupby("part"):
        of_part = metric.compute(
            predictions=rows["prediction"].to_numpy(), references=rows["label"].to_numpy()
        )
        suffix = str(part).removeprefix("validation_")
        scores |= {f"{name}_{suffix}": value for name, value in of_part.items()}
    return scores
