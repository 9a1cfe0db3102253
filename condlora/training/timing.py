"""How fast one run trains without others, and how fast its adapter is in inference after merging."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import DictConfig

from condlora.models.adapters import base_for, load_adapter
from condlora.models.backbones import Backbone
from condlora.models.baselines import baseline_of
from condlora.training.data import Data
from condlora.training.evaluation import collator, fit_to_batches, inputs_of
from condlora.training.state import Training, unchanged
from condlora.training.step import clip_and_step, gradients

WARM_UP_STEPS, TIMED_STEPS = 3, 20
TIMED_ROUNDS = 7  # odd, so that the median is one of them
TIMED_EXAMPLES = 16


def speed_alone(training: Training, batches: Iterable[dict]) -> float:
    """Training examples per second over TIMED_STEPS steps of one run, for a run that was trained jointly.

    Model, optimizer, progress and random generators are the same afterwards. `batches` must be long enough.
    """
    batches = iter(batches)

    def steps(count: int) -> int:
        examples = 0
        for batch in islice(batches, count):
            loss = gradients(training, batch)
            clip_and_step(training)
            training.optimizer.zero_grad()
            examples += len(batch["labels"])
        loss.item()  # waits for the device
        return examples

    with unchanged(training):
        steps(WARM_UP_STEPS)
        started = time.perf_counter()
        return steps(TIMED_STEPS) / (time.perf_counter() - started)


@torch.inference_mode()
def merged_speed(
    cfg: DictConfig, data: Data, backbone: Backbone, accelerator: Accelerator, folder: Path
) -> float | None:
    """Inference throughput after merging, relative to the backbone: 1 where a merged adapter costs nothing.

    None for a method that cannot be merged, see `condlora.models.baselines`. Both models take the first
    TIMED_EXAMPLES of the test set in turns; the median over TIMED_ROUNDS ratios is robust against a machine that
    becomes slower meanwhile.
    """
    alone = copy.deepcopy(backbone.model).to(accelerator.device)
    base = base_for(backbone, cfg.adapter)
    adapted = load_adapter(base, folder / "adapter").to(accelerator.device)
    merged = baseline_of(adapted).merged()
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

    seconds(alone), seconds(merged)  # warm up
    return statistics.median(seconds(alone) / seconds(merged) for _ in range(TIMED_ROUNDS))
