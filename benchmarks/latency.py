"""Inference latency of merged LoRA and CondLoRA and of bottleneck adapters, after table 1 of Hu et al. 2022 (arXiv 2106.09685).

Measured by `python scripts/benchmark.py 'measures=[latency]'`; models with random weights, examples without padding. A merged
adapter leaves the backbone's computation as it is; a bottleneck adapter adds layers that are computed one after the other.
"""

from __future__ import annotations

import itertools
import statistics
import time

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from benchmarks.rates import wait_for
from benchmarks.workload import SEED, backbone_of, cell
from condlora.models.adapters import start
from condlora.models.backbones import Backbone, fresh_model
from condlora.models.baselines import baseline_of
from condlora.training.device import make_accelerator

BACKBONE, AGAIN = "backbone", "backbone_again"


def latency(cfg: DictConfig) -> pd.DataFrame:
    """Time of a forward pass, one row for each model, method and shape of the inputs.

    Methods take turns, and every turn begins with another method. "backbone_again" is a copy of the backbone: how far its ratio
    is from 1 is the precision of this measurement. LoRA and CondLoRA are timed merged. Columns:

    - ms, ms_min, ms_max: median and range over the turns of a forward pass: on a GPU its time, on a CPU the process's CPU time,
      which other processes on the machine change less.
    - over_backbone, over_backbone_min, over_backbone_max: of the ratio to the backbone in the same turn.
    """
    wanted = OmegaConf.create({**cfg.training, **cfg.latency})
    rows = []
    for model in wanted.models:
        contestants = {name: contestant(wanted, model, name) for name in (BACKBONE, AGAIN, *wanted.methods)}  # fmt: skip
        vocabulary = contestants[BACKBONE].config.vocab_size
        for batch, tokens, calls in wanted.inputs:
            ids = torch.randint(10, min(1000, vocabulary), (batch, tokens))
            turns = take_turns(contestants, {"input_ids": ids}, calls, wanted.turns)
            about = {"model": model, "batch": batch, "tokens": tokens}
            rows += [about | row for row in summary(turns)]
    return pd.DataFrame(rows)


def contestant(wanted: DictConfig, model: str, name: str) -> nn.Module:
    """A classifier in evaluation mode: the backbone, or one with a method's adapter, merged where it can be."""
    is_plain = name in (BACKBONE, AGAIN)
    cfg = cell(wanted, model, "sst2", "lora" if is_plain else name, "longest")
    device = make_accelerator(cfg).device
    backbone = backbone_of(cfg)
    found = fresh_model(backbone) if is_plain else adapted(cfg.adapter, backbone)
    return found.to(device).eval().requires_grad_(False)


def adapted(adapter: DictConfig, backbone: Backbone) -> nn.Module:
    """The backbone with a trained adapter of some size: what is trained is moved from its start, where LoRA's B is 0."""
    model = start(adapter, backbone, SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return baseline_of(model).merged() or model


@torch.inference_mode()
def take_turns(
    contestants: dict[str, nn.Module], inputs: dict[str, torch.Tensor], calls: int, turns: int
) -> list[dict[str, float]]:
    """Seconds of a forward pass by contestant, the mean of `calls` calls, for each turn after one that warms up."""
    names = list(contestants)
    device = next(contestants[names[0]].parameters()).device
    inputs = {name: values.to(device) for name, values in inputs.items()}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found = []
    for number in range(turns + 1):
        turn = {}
        for name in itertools.islice(itertools.cycle(names), number, number + len(names)):
            wait_for(device)
            began = clock()
            for _ in range(calls):
                contestants[name](**inputs)
            wait_for(device)
            turn[name] = (clock() - began) / calls
        found.append({name: turn[name] for name in names})
    return found[1:]


def summary(turns: list[dict[str, float]]) -> list[dict]:
    """A row for each contestant: milliseconds and the ratio to the backbone, both as median and range over turns."""
    rows = []
    for name in turns[0]:
        row: dict = {"method": name, "turns": len(turns)}
        row |= _spread("ms", [1000 * turn[name] for turn in turns])
        row |= _spread("over_backbone", [turn[name] / turn[BACKBONE] for turn in turns])
        rows.append(row)
    return rows


def _spread(name: str, values: list[float]) -> dict[str, float]:
    found = {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}  # fmt: skip
    return {key: round(value, 4) for key, value in found.items()}
