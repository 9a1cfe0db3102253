"""Rates the training benchmark compares with: operations of linear layers, of one large product, and hours of a grid."""

from __future__ import annotations

import functools
import math
import statistics
import time

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import nn

from benchmarks.workload import FLEET, SEED, backbone_of, cell, data_of
from condlora.grid.cells import compose_cells, compose_common
from condlora.training.evaluation import collator
from condlora.training.setup import initialise, streams


def wait_for(device: torch.device) -> None:
    """Return when the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_per_token(wanted: DictConfig, model: str, task: str, length: int) -> float:
    """Operations of the linear layers per token, with LoRA, in a step on examples of `length` tokens."""
    cfg = cell(wanted, model, task, "lora", "longest")
    backbone = backbone_of(cfg)
    data = data_of(cfg, backbone, np.array([length] * 2))
    classifier = initialise(cfg, backbone, streams(SEED, task), data).train()
    classifier = classifier.to(data.train.labels.device)
    batch = collator(cfg, data)(data.train, [0, 1])
    return linear_flops(classifier, batch) / (2 * length)


def linear_flops(model: nn.Module, inputs: dict) -> int:
    """Operations of all nn.Linear in a step: the forward pass and the gradients that are required."""
    found = []

    def count(layer: nn.Linear, arguments: tuple, _) -> None:
        (x,) = arguments
        products = 1 + x.requires_grad + layer.weight.requires_grad
        found.append(2 * products * x.numel() * layer.out_features)

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return sum(found)


def matrix_rate(wanted: DictConfig, accelerator: Accelerator) -> float:
    """Operations per second of one large matrix product on the device, in the precision of the steps."""
    precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = precisions.get(accelerator.mixed_precision, torch.float32)
    return product_rate(accelerator.device, dtype, wanted.matrix[accelerator.device.type])


@functools.lru_cache
def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations per second in the fastest of five products of two (size, size) matrices."""
    x = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):  # the first warms up
        wait_for(device)
        started = time.perf_counter()
        x @ x
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])


def projected_hours(table: pd.DataFrame, profiles: list[str]) -> pd.DataFrame:
    """Hours of training the profiles' grids would take on this machine, run after run, by variant.

    Counts the runs whose backbone and method were measured, with all their steps and without evaluation. A task that
    was not measured gets the harmonic mean of the measured rates. NaN where a method was not measured in a variant.
    """
    rates = table.pivot_table(
        index=["model", "method"], columns=["variant", "task"], values="examples_per_second"
    )
    rows = []
    for profile in profiles:
        common = compose_common((f"profile={profile}",))
        if common.backbone.name not in set(table["model"]):
            continue
        seeds = len(common.hydra.sweeper.params.seed.split(","))
        cells = [
            cfg
            for cfg in compose_cells(
                (f"profile={profile}", "seed=0")
            )  # all seeds take the same time
            if (cfg.backbone.name, cfg.adapter.name) in rates.index
        ]
        row = {"profile": profile, "runs": len(cells) * seeds}
        for variant in table["variant"].unique():
            if variant not in ("longest", "packed") and not variant.startswith(FLEET):
                continue
            hours = 0.0
            for cfg in cells:
                found = rates.loc[(cfg.backbone.name, cfg.adapter.name), variant].dropna()
                mean = statistics.harmonic_mean(list(found)) if len(found) else math.nan
                hours += seeds * trained_examples(cfg) / found.get(cfg.task.name, mean) / 3600
            row[f"hours_{variant}"] = round(hours, 2)
        rows.append(row)
    return pd.DataFrame(rows)


def trained_examples(cfg: DictConfig) -> int:
    """Training examples of a run without early stopping; an epoch is nine tenths of GLUE's training set."""
    protocol = cfg.protocol
    epoch = math.ceil(0.9 * cfg.task.official_rows.train / protocol.batch_size)
    return protocol.batch_size * (protocol.max_steps or protocol.epochs * epoch)
