"""Examples per second of a training step: transformers' Trainer, this project's loop with each padding, and joint runs.

Measured by `python scripts/benchmark.py 'measures=[training]'`; models with random weights, texts of GLUE's lengths.
"""

from __future__ import annotations

import math
import statistics
import tempfile

import pandas as pd
import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.rates import flops_per_token, matrix_rate, projected_hours
from benchmarks.steps import Clock, member, take_step
from benchmarks.workload import (
    COMPILED,
    FLEET,
    LONG,
    OURS,
    SEED,
    TRAINERS,
    backbone_of,
    batch_size,
    cell,
    data_of,
    sample,
)
from condlora.glue.batches import ShuffledEachEpoch
from condlora.models.backbones import Backbone
from condlora.runs.environment import PeakMemory
from condlora.training.compatibility import find_kinds
from condlora.training.data import Data
from condlora.training.device import choose_attention, make_accelerator
from condlora.training.setup import initialise, streams


def training(cfg: DictConfig) -> pd.DataFrame:
    """Throughput of a training step, one row per model, task, method and variant.

    Variants take turns. Each turn builds model, optimizer and loop again; its first step is a warm-up and the next
    `steps` are timed, including the making of batches. fleet_4 is four runs of four seeds, packed and trained jointly;
    its rates are the sum over the four. Columns:

    - examples_per_second, tokens_per_second: medians over `turns`; padding does not count as tokens.
    - over_<trainer>: median ratio to the Trainer's examples per second with LoRA in the same turn.
    - of_matrix_rate: operations the linear layers need for these tokens, forward and backward, divided by the rate of
      one large product in the same precision. The rest of the time goes to padding, attention and everything else.
    - first_step_seconds: the first step, in which torch.compile compiles.
    - peak_memory_mib: of the device; on a CPU, of the process.
    """
    wanted = cfg.training
    rows = []
    for model in wanted.models:
        for task in wanted.tasks:
            ours = [*OURS, *(f"{FLEET}{size}" for size in wanted.fleets)]
            if wanted.compiled:
                ours.append(COMPILED)
            contests = [(method, variant) for method in wanted.methods for variant in ours]
            contests = [("lora", variant) for variant in TRAINERS] + contests
            turns = [
                {contest: turn(wanted, model, task, *contest) for contest in contests}
                for _ in range(wanted.turns)
            ]
            about = {"model": model, "task": task}
            rows += [about | row for row in summary(wanted, model, task, turns)]
    table = pd.DataFrame(rows)
    hours = projected_hours(table, wanted.profiles)
    if len(hours):
        print("hours of training, all runs at the variant's rate, fleets being full")
        print(hours.to_string(index=False))
    return table


def growth(cfg: DictConfig) -> pd.DataFrame:
    """`training` over numbers of joint runs and lengths, on examples of one length."""
    return training(OmegaConf.create({"training": OmegaConf.merge(cfg.training, cfg.growth)}))


def summary(wanted: DictConfig, model: str, task: str, turns: list[dict]) -> list[dict]:
    """One row per (method, variant), from turns that map each of these to the result of `turn`."""
    lengths = sample(wanted, task, 1000)
    flops = flops_per_token(wanted, model, task, round(lengths.mean()))
    accelerator = make_accelerator(cell(wanted, model, task, "lora", "longest"))
    limit = matrix_rate(wanted, accelerator)
    rows = []
    for contest in turns[0]:
        examples = statistics.median(t[contest][0] for t in turns)
        over = {
            f"over_{base}": statistics.median(t[contest][0] / t["lora", base][0] for t in turns)
            for base in TRAINERS
        }
        tokens = examples * lengths.mean()
        row = {
            "method": contest[0],
            "variant": contest[1],
            "batch": batch_size(wanted, contest[1]),
            "precision": accelerator.mixed_precision,
            "turns": len(turns),
            "examples_per_second": examples,
            "tokens_per_second": tokens,
            "of_matrix_rate": tokens * flops / limit,
            "peak_memory_mib": max(t[contest][1] or math.nan for t in turns),
            "first_step_seconds": statistics.median(t[contest][2] for t in turns),
        }
        rows.append(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in (row | over).items()}
        )
    return rows


# One turn


def turn(
    wanted: DictConfig, model: str, task: str, method: str, variant: str
) -> tuple[float, float | None, float]:
    """Examples per second, peak memory in MiB, and seconds to the end of the first step."""
    is_trainer, members = variant in TRAINERS, members_in(variant)
    padding = "packed" if members > 1 else variant if variant in OURS else "longest"
    cfg = cell(wanted, model, task, method, padding)
    size = batch_size(wanted, variant)
    cfg.protocol.batch_size = size
    accelerator = make_accelerator(cfg)
    memory = PeakMemory(accelerator.device)
    backbone = backbone_of(cfg)
    data = data_of(cfg, backbone, sample(wanted, task, (wanted.steps + 1) * size))
    clock = Clock(accelerator.device, wanted.steps)
    run = with_trainer if is_trainer else with_our_loop
    run(cfg, backbone, data, accelerator, clock, variant)
    return members * wanted.steps * size / clock.seconds, memory.mib(), clock.first_seconds


def members_in(variant: str) -> int:
    return int(variant.removeprefix(FLEET)) if variant.startswith(FLEET) else 1


def with_our_loop(
    cfg: DictConfig, backbone: Backbone, data: Data, accelerator: Accelerator, clock: Clock, variant: str
) -> None:  # fmt: skip
    choose_attention(cfg, backbone, accelerator)
    members = [
        member(cfg, backbone, data, accelerator, seed) for seed in range(members_in(variant))
    ]
    if variant == COMPILED:
        torch.compiler.reset()  # forget what the previous turn compiled
        members[0].training.model.compile(dynamic=True)
    find_kinds(members)
    clock.begin()
    for _ in range(clock.steps + 1):
        take_step(members)
        clock.tick()
    accelerator.free_memory()


def with_trainer(
    cfg: DictConfig, backbone: Backbone, data: Data, accelerator: Accelerator, clock: Clock, variant: str
) -> None:  # fmt: skip
    """The same model, examples and precision; all else, attention too, is transformers' default."""
    backbone.model.set_attn_implementation("sdpa")
    model = initialise(cfg, backbone, streams(SEED, cfg.task.name), data)
    is_long = variant in LONG
    collate = DataCollatorWithPadding(
        data.tokenizer,
        padding="max_length" if is_long else True,
        max_length=cfg.protocol.max_length if is_long else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=cfg.protocol.batch_size,
            max_steps=clock.steps + 1,
            bf16=accelerator.mixed_precision == "bf16",
            fp16=accelerator.mixed_precision == "fp16",
            use_cpu=accelerator.device.type == "cpu",
            dataloader_pin_memory=accelerator.device.type == "cuda",
            label_names=["labels"],
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        rows = (data.train[i] for i in range(len(data.train)))
        examples = [{name: values.tolist() for name, values in row.items()} for row in rows]
        trainer = InOurOrder(
            model, settings, data_collator=collate, train_dataset=examples, callbacks=[Watch(clock)]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class Watch(TrainerCallback):
    """Runs a clock from the Trainer's own calls."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_begin(self, *_, **__) -> None:
        self.clock.begin()

    def on_step_end(self, *_, **__) -> None:
        self.clock.tick()


class InOurOrder(Trainer):
    """A Trainer that takes the examples in the same order as our loop."""

    def _get_train_sampler(self, train_dataset: list) -> ShuffledEachEpoch:
        return ShuffledEachEpoch(len(train_dataset), SEED)
