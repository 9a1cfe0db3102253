"""A task ready to train on: loaded, split, tokenised and described, once per process."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from condlora.glue.batches import CPU, Encoded, encode
from condlora.glue.sources import load_text
from condlora.glue.splits import HELD_OUT, Splits, make_splits, split_sha256
from condlora.glue.tasks import Task, task_from_config
from condlora.models.backbones import load_backbone
from condlora.runs.recipe import recipe


@dataclass(frozen=True)
class Data:
    """One task, split and tokenised; shared by all runs of a process that ask for the same.

    test_part: the GLUE split of each test row, or "held_out". target_mean, target_sd: of the training targets where the
    protocol standardises them, else 0 and 1. description: what a record says of the data.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    test_part: list[str]
    train: Encoded
    validation: Encoded
    test: Encoded
    target_mean: float
    target_sd: float
    description: dict


def prepare(cfg: DictConfig, device: torch.device = CPU) -> Data:
    """Load, split and tokenise the task of a config; a second call in one process gives the same object.

    device: where the tensors are kept, so that no step waits for them; MNLI's take some 400 MB.

    Raises:
        ConfigError: an unknown kind of validation split, or a limit that does not fit it.
        DataError, NetworkError: see `condlora.glue.sources.load_text`.
    """
    keys = (
        "validation",
        "validation_limit",
        "test_rows_from_train",
        "max_length",
        "regression_targets",
    )
    settings = {
        group: OmegaConf.to_container(cfg[group], resolve=True)
        for group in ("data", "task", "backbone")
    }
    settings["protocol"] = {key: cfg.protocol.get(key) for key in keys}
    settings["content"] = recipe(cfg)["data"]  # a user's file may change under its name
    return _prepare(json.dumps(settings, sort_keys=True), device)


@functools.lru_cache(maxsize=1)  # the device keeps it
def _prepare(settings: str, device: torch.device) -> Data:
    cfg = OmegaConf.create(json.loads(settings))
    task = task_from_config(cfg.task)
    tokenizer = load_backbone(cfg.backbone, num_labels=task.num_labels).tokenizer
    splits = make_splits(
        load_text(cfg.data, task),
        task,
        cfg.protocol.validation,
        cfg.protocol.validation_limit,
        cfg.protocol.test_rows_from_train,
    )
    encoded = {
        name: encode(split, task, tokenizer, max_length=cfg.protocol.max_length, device=device)
        for name, split in splits.items()
    }
    mean, sd = 0.0, 1.0
    if task.is_regression and cfg.protocol.regression_targets == "standardised":
        labels = encoded["train"].labels
        mean, sd = labels.mean().item(), labels.std().item()
    description = {
        "source": cfg.data.source,
        **_counts(task, splits),
        "labels": None if task.labels is None else list(task.labels),
        "split_sha256": {name: split_sha256(split, task) for name, split in splits.items()},
        "truncated": {name: e.truncated for name, e in encoded.items()},
        "majority_score": majority_score(task, splits),
    }
    return Data(
        task=task,
        tokenizer=tokenizer,
        test_part=splits.test_part,
        **encoded,
        target_mean=mean,
        target_sd=sd,
        description=description,
    )


def _counts(task: Task, splits: Splits) -> dict:
    """Rows of each split, and whether they are GLUE's."""
    test_rows = {name: splits.test_part.count(name) for name in task.test_splits}
    further = splits.test_part.count(HELD_OUT)
    return {
        "counts": {name: len(split) for name, split in splits.items()},
        "test_parts": test_rows | ({HELD_OUT: further} if further else {}),
        "official_counts": task.official_rows is not None
        and splits.source_train_rows == task.official_rows["train"]
        and test_rows == task.official_rows["test"],
    }


def majority_score(task: Task, splits: Splits) -> float | None:
    """Test accuracy of always predicting the majority class of the training set; None unless the headline is accuracy."""
    if task.headline != "accuracy":
        return None
    majority = np.bincount(splits.train["label"][:]).argmax()
    return float(np.mean(np.asarray(splits.test["label"][:]) == majority))
