"""Fine-tune, evaluate and record one cell of the grid: `run(cfg)`, read from top to bottom.

    prepare   data, backbone, adapter; everything that can be wrong is found here
    train     the loop, with evaluation, choice of the best checkpoint and early stopping
    test      the saved adapter, loaded afresh, on validation and test
    record    one JSON, see `condlora.records`

The loop is our own, on accelerate, and not transformers' Trainer: what happens between reading a batch and
the optimizer's step is what a reader of the paper wants to see. Which of the authors' settings a step mirrors
is said in `configs/protocol/authors.yaml`.

Three random streams derive from a run's seed: "initialisation" (head, then adapter), "data" (order of
examples) and "dropout". None depends on the adapter, so LoRA and CondLoRA of one seed start from the same
head and see the same batches: their comparison is paired.
"""

from __future__ import annotations

import copy
import datetime
import functools
import hashlib
import json
import logging
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import ProjectConfiguration
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from transformers import get_linear_schedule_with_warmup

from condlora.backbone import (
    Backbone,
    add_adapter,
    fresh_model,
    load_adapter,
    load_backbone,
    save_adapter,
)
from condlora.environment import PeakMemory, device_name, environment
from condlora.errors import (
    ConfigError,
    DeviceError,
    DivergedError,
    RunFolderError,
    UndefinedScore,
    UserError,
)
from condlora.glue.batches import Encoded, encode, evaluation_batches, padder, training_batches
from condlora.glue.metrics import GlueMetric
from condlora.glue.sources import load_text
from condlora.glue.splits import Splits, make_splits, split_sha256
from condlora.glue.tasks import Task, task_from_config
from condlora.progress import RunBar, say
from condlora.records import (
    SCHEMA_VERSION,
    read_record,
    recipe,
    recipe_hash,
    run_folder,
    write_atomically,
    write_record,
)

log = logging.getLogger(__name__)

CHECK_LOSS_EVERY = 10  # steps; reading the loss waits for the device


@dataclass(frozen=True)
class Data:
    """One task, split and tokenised; shared by all runs of a process that ask for the same."""

    task: Task
    splits: Splits
    train: Encoded
    validation: Encoded
    test: Encoded
    target_mean: float  # of the training targets where they are standardised, else 0 and 1
    target_sd: float
    description: dict


@dataclass
class Progress:
    """What the loop knows at a step; `best_score` is the headline metric on validation."""

    step: int = 0
    epoch: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    evaluations_without_improvement: int = 0
    stopped_early: bool = False
    curve: list[dict] = field(default_factory=list)
    train_seconds: float = 0.0
    train_examples: int = 0
    evaluation_seconds: float = 0.0


def run(cfg: DictConfig) -> dict:
    """Fine-tune one cell and return its record; a cell that is done already is not done again.

    A run folder of another recipe or a damaged one is set aside under another name, never overwritten.

    Raises:
        UserError: anything a user can cause; where training had begun, the record says "failed" and why.
    """
    OmegaConf.set_readonly(cfg, True)
    folder, plain = run_folder(cfg), recipe(cfg)
    finished = finished_record(folder, recipe_hash(plain))
    if finished is not None:
        return finished
    started = time.perf_counter()
    accelerator = make_accelerator(cfg)
    record = new_record(cfg, plain, accelerator)
    try:
        data, backbone = prepare(cfg)
        model = initialise(cfg, backbone, record["streams"])
    except Exception as error:
        if not folder.exists():
            write_record(folder, record | failure(error))
        raise
    set_aside(folder)
    record |= {
        "data": data.description,
        "backbone": backbone.description,
        "parameters": count_parameters(model, backbone),
    }
    write_record(folder, record)
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    write_atomically(folder / "config.yaml", lambda path: path.write_text(resolved))
    try:
        memory = PeakMemory(accelerator.device)
        progress = train(cfg, data, model, accelerator, folder, seeds=record["streams"])
        scores = test(cfg, data, backbone, accelerator, folder, expected=progress)
    except Exception as error:
        write_record(folder, record | failure(error))
        raise
    record |= scores | summary(progress, memory)
    record |= {
        "status": "done",
        "total_seconds": time.perf_counter() - started,
        "finished_at": now(),
    }
    write_record(folder, record)
    announce(cfg, record, data.task)
    return record


# Prepare


def make_accelerator(cfg: DictConfig) -> Accelerator:
    """The device, precision and trackers of a run.

    Raises:
        DeviceError: the device is not there, or lacks the precision.
        ConfigError: a tracker is not installed.
    """
    device, precision = cfg.runtime.device, cfg.protocol.precision
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"Unknown runtime.device {device!r}: choose auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "runtime.device=cuda, and no CUDA GPU is to be seen here: use runtime.device=auto."
        )
    if precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"Unknown protocol.precision {precision!r}: choose no, bf16 or fp16.")
    if cfg.runtime.threads:
        torch.set_num_threads(cfg.runtime.threads)
    trackers = list(cfg.runtime.trackers)
    try:
        return Accelerator(
            cpu=device == "cpu",
            mixed_precision=precision,
            log_with=trackers or None,
            project_config=ProjectConfiguration(project_dir=str(run_folder(cfg)), logging_dir=str(run_folder(cfg) / "trackers")),
            dataloader_config=DataLoaderConfiguration(split_batches=True),  # batch_size is over all processes
        )  # fmt: skip
    except (ValueError, ImportError) as error:
        if "fp16" in str(error) or "bf16" in str(error):
            raise DeviceError(
                f"This device has no {precision}: set protocol.precision=no."
            ) from error
        raise ConfigError(
            f"runtime.trackers={trackers} is not usable ({error}): install it or leave it out."
        ) from error


def prepare(cfg: DictConfig) -> tuple[Data, Backbone]:
    """Load and tokenise the task, load the backbone; both come from a cache after the first run."""
    task = task_from_config(cfg.task)
    backbone = load_backbone(cfg.backbone, num_labels=task.num_labels)
    limit = min(backbone.tokenizer.model_max_length, backbone.model.config.max_position_embeddings)
    if cfg.protocol.max_length > limit:
        raise ConfigError(
            f"protocol.max_length is {cfg.protocol.max_length}, and {cfg.backbone.name} reads at most {limit} tokens: "
            f"set protocol.max_length={limit}."
        )
    settings = {
        "data": OmegaConf.to_container(cfg.data, resolve=True),
        "task": OmegaConf.to_container(cfg.task, resolve=True),
        "backbone": OmegaConf.to_container(cfg.backbone, resolve=True),
        "validation": cfg.protocol.validation,
        "max_length": cfg.protocol.max_length,
        "regression_targets": cfg.protocol.regression_targets,
    }
    return prepare_data(json.dumps(settings, sort_keys=True)), backbone


@functools.lru_cache(maxsize=2)
def prepare_data(settings: str) -> Data:
    """Split, tokenise and describe a task; `settings` is JSON, so that it can be a cache's key."""
    cfg = OmegaConf.create(json.loads(settings))
    task = task_from_config(cfg.task)
    tokenizer = load_backbone(cfg.backbone, num_labels=task.num_labels).tokenizer
    splits = make_splits(load_text(cfg.data, task), task, cfg.validation)
    encoded = {
        name: encode(split, task, tokenizer, max_length=cfg.max_length)
        for name, split in splits.items()
    }
    mean, sd = 0.0, 1.0
    if task.is_regression and cfg.regression_targets == "standardised":
        labels = encoded["train"].labels
        mean, sd = labels.mean().item(), labels.std().item()
    rows = {"train": len(splits.train), "validation": len(splits.validation)}
    rows |= {name: splits.test_part.count(name) for name in task.test_splits}
    train_rows = rows["train"] + (rows["validation"] if cfg.validation == "tenth_of_train" else 0)
    official = task.official_rows
    test_rows = {name: rows[name] for name in task.test_splits}
    description = {
        "source": cfg.data.source,
        "counts": {name: len(split) for name, split in splits.items()},
        "test_parts": test_rows,
        "official_counts": train_rows == official["train"] and test_rows == official["test"],
        "labels": None if task.labels is None else list(task.labels),
        "split_sha256": {name: split_sha256(split, task) for name, split in splits.items()},
        "truncated": {name: e.truncated for name, e in encoded.items()},
        "majority_score": majority_score(task, splits),
    }
    return Data(task, splits, **encoded, target_mean=mean, target_sd=sd, description=description)


def majority_score(task: Task, splits: Splits) -> float | None:
    """Test accuracy of always saying the commonest training label; None where the headline is a correlation."""
    if task.headline != "accuracy":
        return None
    commonest = np.bincount(splits.train["label"][:]).argmax()
    return float(np.mean(np.asarray(splits.test["label"][:]) == commonest))


def streams(seed: int, task: str) -> dict[str, int]:
    """Seeds of the three random streams of a run, from its seed and task."""
    return {
        name: int.from_bytes(hashlib.sha256(f"{name}/{task}/{seed}".encode()).digest()[:4], "big")
        for name in ("initialisation", "data", "dropout")
    }


def initialise(cfg: DictConfig, backbone: Backbone, seeds: dict[str, int]) -> PeftModel:
    """Backbone with a new head, drawn first and so the same for every adapter, and a new adapter."""
    torch.manual_seed(seeds["initialisation"])
    return add_adapter(fresh_model(backbone), cfg.adapter, backbone.head)


def count_parameters(model: PeftModel, backbone: Backbone) -> dict[str, int]:
    """Trainable parameters: of the adapter (Table 4 counts these), of the head, and all there are."""
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    head = sum(size for name, size in trainable.items() if ".modules_to_save." in name)
    total = sum(p.numel() for p in backbone.model.parameters())
    adapter = sum(trainable.values()) - head
    return {"trainable": adapter + head, "adapter": adapter, "head": head, "backbone": total}


# Train


def train(
    cfg: DictConfig,
    data: Data,
    model: PeftModel,
    accelerator: Accelerator,
    folder: Path,
    *,
    seeds: dict[str, int],
) -> Progress:
    """The training loop. Leaves the chosen adapter in `folder/adapter` and the curve in `folder/curve.csv`.

    Raises:
        DivergedError: the loss is not finite.
        UndefinedScore: no evaluation gave the headline metric a value.
    """
    protocol = cfg.protocol
    collate = collator(cfg, data)
    batches = training_batches(
        data.train, collate, batch_size=protocol.batch_size, seed=seeds["data"]
    )
    total_steps = protocol.max_steps or protocol.epochs * len(batches)
    evaluate_every = min(protocol.evaluate_every or math.inf, len(batches), total_steps)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=protocol.learning_rate, weight_decay=protocol.weight_decay
    )
    schedule = get_linear_schedule_with_warmup(
        optimizer, math.ceil(protocol.warmup_ratio * total_steps), total_steps
    )
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    if cfg.runtime.trackers:
        accelerator.init_trackers("condlora", config={"recipe": str(recipe(cfg))})

    progress, bar = Progress(), RunBar(cfg, total_steps)
    loss_sum, loss_steps = torch.zeros((), device=accelerator.device), 0
    torch.manual_seed(seeds["dropout"])
    started = time.perf_counter()
    while progress.step < total_steps and not progress.stopped_early:
        batches.set_epoch(progress.epoch)
        for batch in batches:
            model.train()
            labels = batch.pop("labels")
            if data.task.is_regression:
                labels = (labels - data.target_mean) / data.target_sd
            loss = model(**batch, labels=labels).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trainable, protocol.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            progress.step += 1
            progress.train_examples += len(labels) * accelerator.num_processes
            loss_sum, loss_steps = loss_sum + loss.detach(), loss_steps + 1
            bar.step()
            if progress.step % CHECK_LOSS_EVERY == 0 or progress.step % evaluate_every == 0:
                mean_loss = finite_loss(loss_sum / loss_steps, progress.step, protocol)
                bar.show(loss=mean_loss)
            if progress.step % evaluate_every == 0:
                progress.train_seconds += time.perf_counter() - started
                evaluate(cfg, data, model, accelerator, folder, progress, mean_loss)
                bar.show(score=progress.curve[-1][data.task.headline], best=progress.best_score)
                loss_sum, loss_steps = torch.zeros_like(loss_sum), 0
                started = time.perf_counter()
            if progress.step == total_steps or progress.stopped_early:
                break
        progress.epoch += 1
    progress.train_seconds += time.perf_counter() - started
    bar.close()
    if protocol.select == "last":
        keep(model, accelerator, folder, progress)
    if cfg.runtime.trackers:
        accelerator.end_training()
    if progress.best_step == 0:
        raise UndefinedScore(
            f"{data.task.headline} was undefined at every evaluation of {cfg.task.name}: the model says one thing "
            "for all examples; train longer (protocol.max_steps, protocol.epochs) or change protocol.learning_rate."
        )
    return progress


def finite_loss(mean: torch.Tensor, step: int, protocol: DictConfig) -> float:
    """The mean loss as a number; once one step's loss is NaN or infinite, so is the mean."""
    value = mean.item()
    if not math.isfinite(value):
        raise DivergedError(
            f"The loss is {value} at step {step}: lower protocol.learning_rate (now {protocol.learning_rate:g})."
        )
    return value


def evaluate(
    cfg: DictConfig,
    data: Data,
    model: PeftModel,
    accelerator: Accelerator,
    folder: Path,
    progress: Progress,
    mean_loss: float,
) -> None:
    """Score on validation, extend the curve, keep the adapter if it is the best so far, count patience."""
    started = time.perf_counter()
    predictions = predict(cfg, data, data.validation, model, accelerator)
    try:
        scores = score(data.task, predictions, data.validation)
    except (
        UndefinedScore
    ):  # a model that still says one thing for all: no number, and never the best
        scores = dict.fromkeys(data.task.metrics)
    headline = scores[data.task.headline]
    improved = headline is not None and (
        progress.best_score is None or headline > progress.best_score
    )
    if improved:
        progress.best_score = headline
    if improved and cfg.protocol.select == "best":
        keep(model, accelerator, folder, progress)
    progress.evaluations_without_improvement = (
        0 if improved else progress.evaluations_without_improvement + 1
    )
    patience = cfg.protocol.early_stopping_patience
    progress.stopped_early = (
        patience is not None and progress.evaluations_without_improvement >= patience
    )
    row = {"step": progress.step, "epoch": progress.epoch, "train_loss": mean_loss, **scores}
    progress.curve.append(row)
    if accelerator.is_main_process:
        curve = pd.DataFrame(progress.curve)
        write_atomically(folder / "curve.csv", lambda path: curve.to_csv(path, index=False))
    accelerator.log({k: v for k, v in row.items() if v is not None}, step=progress.step)
    progress.evaluation_seconds += time.perf_counter() - started


def keep(model: PeftModel, accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Save adapter and head as the run's result so far."""
    progress.best_step, progress.best_epoch = progress.step, progress.epoch
    if accelerator.is_main_process:
        unwrapped = accelerator.unwrap_model(model)
        write_atomically(folder / "adapter", lambda path: save_adapter(unwrapped, path))


def collator(cfg: DictConfig, data: Data):
    """The padding function of this run's tokenizer."""
    tokenizer = load_backbone(cfg.backbone, num_labels=data.task.num_labels).tokenizer
    return padder(tokenizer, padding=cfg.runtime.padding, max_length=cfg.protocol.max_length)


@torch.inference_mode()
def predict(
    cfg: DictConfig, data: Data, split: Encoded, model: PeftModel, accelerator: Accelerator
) -> np.ndarray:
    """Predictions (n,) in the split's order: int64 labels, or float64 scores in the targets' own scale.

    Every process of a distributed run predicts the whole split, so all agree on what is best.
    """
    model = accelerator.unwrap_model(model).eval()
    batches, order = evaluation_batches(
        split, collator(cfg, data), batch_size=cfg.runtime.evaluation_batch_size
    )
    outputs = []
    for batch in batches:
        inputs = {k: v.to(accelerator.device) for k, v in batch.items() if k != "labels"}
        with accelerator.autocast():
            outputs.append(model(**inputs).logits.float())
    logits = torch.cat(outputs).cpu()
    logits = torch.empty_like(logits).index_copy_(0, order, logits)
    if data.task.is_regression:
        return logits.squeeze(-1).double().numpy() * data.target_sd + data.target_mean
    return logits.argmax(dim=-1).numpy()


def score(task: Task, predictions: np.ndarray, split: Encoded) -> dict[str, float]:
    """All metrics of the task on a split, as fractions."""
    return GlueMetric(task).compute(predictions=predictions, references=split.labels.numpy())


# Test and record


def test(
    cfg: DictConfig,
    data: Data,
    backbone: Backbone,
    accelerator: Accelerator,
    folder: Path,
    *,
    expected: Progress,
) -> dict:
    """Score the saved adapter, loaded afresh, on validation and test; write the predictions.

    Raises:
        RunFolderError: the saved adapter does not score on validation what training saw.
        UndefinedScore: a metric has no value on the test set.
    """
    started = time.perf_counter()
    model = load_adapter(copy.deepcopy(backbone.model), folder / "adapter").to(accelerator.device)
    parts = np.asarray(data.splits.test_part)
    scores = {}
    for name, split in (("validation", data.validation), ("test", data.test)):
        predictions = predict(cfg, data, split, model, accelerator)
        scores[name] = score(data.task, predictions, split)
        table = pd.DataFrame({"label": split.labels.numpy(), "prediction": predictions})
        if name == "test":
            table.insert(0, "part", parts)
            scores[name] |= scores_by_part(data.task, table)
        if accelerator.is_main_process:
            path = folder / f"predictions_{name}.parquet"
            write_atomically(path, lambda path, table=table: table.to_parquet(path))
    seen = next(row for row in expected.curve if row["step"] == expected.best_step)
    for metric in data.task.metrics:
        if scores["validation"][metric] != seen[metric]:
            raise RunFolderError(
                f"The saved adapter in {folder} scores {scores['validation'][metric]} {metric} on validation where "
                f"training saw {seen[metric]}: do not use this run, and report it with its config."
            )
    expected.evaluation_seconds += time.perf_counter() - started
    return scores


def scores_by_part(task: Task, table: pd.DataFrame) -> dict[str, float]:
    """MNLI's matched and mismatched scores apart, as `accuracy_matched` and so on; none for other tasks."""
    if len(task.test_splits) == 1:
        return {}
    scores = {}
    for part, rows in table.groupby("part"):
        of_part = GlueMetric(task).compute(
            predictions=rows["prediction"].to_numpy(), references=rows["label"].to_numpy()
        )
        suffix = str(part).removeprefix("validation_")
        scores |= {f"{metric}_{suffix}": value for metric, value in of_part.items()}
    return scores


def new_record(cfg: DictConfig, plain: dict, accelerator: Accelerator) -> dict:
    """The record of a run that begins."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "reason": None,
        "profile": cfg.profile.name,
        "task": cfg.task.name,
        "adapter": cfg.adapter.name,
        "seed": cfg.seed,
        "recipe_hash": recipe_hash(plain),
        "recipe": plain,
        "runtime": OmegaConf.to_container(cfg.runtime, resolve=True),
        "streams": streams(cfg.seed, cfg.task.name),
        "headline": cfg.task.headline,
        "effective_batch": cfg.protocol.batch_size,
        "environment": environment()
        | {
            "device": device_name(accelerator.device),
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
        },
        "started_at": now(),
    }


def summary(progress: Progress, memory: PeakMemory) -> dict:
    """The record's fields that the loop knows."""
    return {
        "best": {"step": progress.best_step, "epoch": progress.best_epoch},
        "steps": progress.step,
        "epochs": progress.epoch,
        "stopped_early": progress.stopped_early,
        "train_seconds": progress.train_seconds,
        "train_examples_per_second": progress.train_examples / progress.train_seconds,
        "evaluation_seconds": progress.evaluation_seconds,
        "peak_memory_mib": memory.mib(),
    }


def failure(error: BaseException) -> dict:
    """The record's fields of a run that failed; a defect of ours is named by its type."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return {"status": "failed", "reason": reason, "finished_at": now()}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def finished_record(folder: Path, digest: str) -> dict | None:
    """The record of this very cell and recipe if it is done."""
    try:
        record = read_record(folder)
    except RunFolderError:
        return None
    return record if record["status"] == "done" and record["recipe_hash"] == digest else None


def set_aside(folder: Path) -> None:
    """Make room for a run: finished or damaged work is renamed, an unfinished run's is removed."""
    if not folder.exists():
        return
    try:
        record = read_record(folder)
        if record["status"] != "done":
            shutil.rmtree(folder)
            return
        name = f"{folder.name}.stale-{record['recipe_hash'][:8]}"
    except RunFolderError:
        name = f"{folder.name}.damaged-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}"
    target = folder.with_name(name)
    if target.exists():
        shutil.rmtree(folder)  # this recipe's work has been set aside before
    else:
        folder.rename(target)


def announce(cfg: DictConfig, record: dict, task: Task) -> None:
    """One line for a finished run."""
    say(
        f"{task.name} {cfg.adapter.name} seed {cfg.seed}: test {task.headline} {record['test'][task.headline]:.3f}, "
        f"validation {record['validation'][task.headline]:.3f}, {record['total_seconds']:.0f} s"
    )
