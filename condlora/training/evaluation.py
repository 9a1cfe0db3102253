"""Predictions and scores of an adapted model, in training and of a saved adapter."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from omegaconf import DictConfig
from peft import PeftModel

from condlora.errors import ConfigError, DeviceError, DivergedError
from condlora.files import write_atomically
from condlora.glue.batches import Collate, Encoded, evaluation_batches, padder
from condlora.glue.metrics import GlueMetric
from condlora.glue.prepare import Data
from condlora.glue.tasks import Task
from condlora.models import methods
from condlora.models.adapters import base_for, load_adapter
from condlora.models.backbones import Backbone
from condlora.models.packing import leave_padded, pack

TIMED_ROUNDS = 7  # odd, so that the median is one of them
TIMED_EXAMPLES = 32


@torch.inference_mode()
def predict(
    cfg: DictConfig, data: Data, split: Encoded, model: PeftModel, accelerator: Accelerator
) -> np.ndarray:
    """Predictions (n,) in the split's order: int64 labels, or float64 scores in the targets' own scale.

    Raises:
        DivergedError: an output is NaN or infinite, of which argmax would make a label.
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
        raise DeviceError(  # here, as an error that came of the other would hold on to the memory
            f"An evaluation's batch of {size} examples does not fit into the device's memory: set "
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
    """Examples of an evaluation's batch: `runtime.evaluation_batch_size`, or for "auto" more on a GPU than on a CPU."""
    if cfg.runtime.evaluation_batch_size != "auto":
        return cfg.runtime.evaluation_batch_size
    return 64 if device.type == "cpu" else 512


def inputs_of(batch: dict, accelerator: Accelerator) -> dict:
    """What the model takes of a batch, on the run's device."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    return send_to_device(inputs, accelerator.device, non_blocking=True)


def collator(cfg: DictConfig, data: Data) -> Collate:
    """The padding function of a run."""
    return padder(data.tokenizer, padding=cfg.runtime.padding, max_length=cfg.protocol.max_length)


def fit_to_batches(model: torch.nn.Module, cfg: DictConfig) -> torch.nn.Module:
    """The model, which takes the batches of the run's `collator` from now on; "auto" packs where the model can.

    Raises:
        ConfigError: it cannot, and packed batches were asked for.
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
    """The task's metrics; `protocol.undefined_score`, where a protocol has it, stands for a score without a value."""
    return GlueMetric(task, cfg.protocol.get("undefined_score"))


def score(cfg: DictConfig, task: Task, predictions: np.ndarray, split: Encoded) -> dict[str, float]:
    """All metrics of the task on a split, as fractions."""
    labels = split.labels.cpu().numpy()
    return metric_of(cfg, task).compute(predictions=predictions, references=labels)


def test_saved(
    cfg: DictConfig, data: Data, backbone: Backbone, accelerator: Accelerator, folder: Path
) -> dict[str, dict[str, float]]:
    """Score the adapter saved in a run folder, loaded afresh, on validation and test; write its predictions.

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


@torch.inference_mode()
def merged_speed(
    cfg: DictConfig, data: Data, backbone: Backbone, accelerator: Accelerator, folder: Path
) -> float | None:
    """How fast the saved adapter answers once merged, over the backbone alone: 1 where merging costs nothing.

    None for a method that cannot be merged, see `condlora.models.methods.merged`.

    Both answer the first TIMED_EXAMPLES of the test set by turns; the median over TIMED_ROUNDS turns, which a
    machine that slows down in between leaves where it is.
    """
    alone = copy.deepcopy(backbone.model).to(accelerator.device)
    base = base_for(backbone, cfg.adapter)
    adapted = load_adapter(base, folder / "adapter").to(accelerator.device)
    merged = methods.merged(adapted)
    if merged is None:
        return None
    first = range(min(TIMED_EXAMPLES, len(data.test)))
    inputs = inputs_of(collator(cfg, data)(data.test, first), accelerator)
    for model in (alone, merged):
        fit_to_batches(model, cfg)

    def seconds(model: torch.nn.Module) -> float:
        started = time.perf_counter()
        with accelerator.autocast():
            model(**inputs).logits.cpu()  # waits for the device
        return time.perf_counter() - started

    seconds(alone), seconds(merged)  # the first call of each pays for what later ones find
    return statistics.median(seconds(alone) / seconds(merged) for _ in range(TIMED_ROUNDS))


def scores_by_part(metric: GlueMetric, table: pd.DataFrame) -> dict[str, float]:
    """The scores of each part of the test set: of MNLI `accuracy_matched` and `accuracy_mismatched`, with further test rows
    from the training set `accuracy_held_out` and `accuracy_validation`; none where the test set has one part.

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
