"""What a training step costs: transformers' Trainer as most use it, this project's loop with each padding, and fleets.

Measured by `python scripts/benchmark.py 'measures=[training]'`; models with random weights, texts of GLUE's lengths.
"""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from condlora.errors import ConfigError
from condlora.glue.batches import Encoded, ShuffledEachEpoch, encode, training_batches
from condlora.glue.prepare import Data
from condlora.glue.sources import load_text
from condlora.glue.tasks import task_from_config
from condlora.grid.cells import compose_cells, compose_common
from condlora.models.backbones import Backbone, load_backbone
from condlora.paths import CONFIGS
from condlora.runs.environment import PeakMemory
from condlora.training.device import choose_attention, find_device, make_accelerator
from condlora.training.evaluation import collator
from condlora.training.joint import Fleet, Request
from condlora.training.run import (
    end_step,
    gradients,
    initialise,
    num_labels,
    prepare_training,
    streams,
    with_targets,
)

TOKENS = "tokens_"  # before how many each example has, in place of a task's name
TRAINERS = ("trainer_512", "trainer_dynamic")  # as the authors; with DataCollatorWithPadding
OURS = ("max_length", "longest", "packed")
FLEET = "fleet_"  # before how many runs
COMPILED = "compiled"  # as "longest", by torch.compile, once for all lengths
LONG = ("trainer_512", "max_length")  # every row at the maximum length
SEED = 0


def training(cfg: DictConfig) -> pd.DataFrame:
    """Examples and tokens a second of a training step, one row a model, task, method and variant.

    fleet_4 is four runs, of as many seeds, packed and trained together; its rates are of all four. Variants take turns,
    and a turn begins anew: model, optimizer, loop. Its first step warms up, `steps` more are
    timed, batches being made in that time. Rates are medians over turns, and so are their ratios over the Trainer's
    with LoRA in the same turn; turns says how many. first_step_seconds: of the first step, in which torch.compile compiles.
    tokens_per_second: real ones. of_matrix_rate: what the linear layers must do for them, forward and gradients, over
    what the device does in a large product of the same precision; the rest is padding, attention and all else.
    peak_memory_mib: of the device, or on a CPU of the process.
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
    """`training` over fleet sizes and lengths: examples that all have so many tokens."""
    return training(OmegaConf.create({"training": OmegaConf.merge(cfg.training, cfg.growth)}))


def summary(wanted: DictConfig, model: str, task: str, turns: list[dict]) -> list[dict]:
    """A row for each (method, variant) of turns that map them to what `turn` gives."""
    lengths = sample(wanted, task, 1000)
    flops = flops_per_token(wanted, model, task, round(lengths.mean()))
    accelerator = make_accelerator(cell(wanted, model, task, "lora", "longest"))
    precision = accelerator.mixed_precision
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    limit = matrix_rate(accelerator.device, dtype, wanted.matrix[accelerator.device.type])
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
            "precision": precision,
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
    """Examples a second, peak memory in MiB and seconds to the end of the first step, everything begun anew."""
    is_trainer, members = variant in TRAINERS, members_in(variant)
    padding = "packed" if members > 1 else variant if variant in OURS else "longest"
    cfg = cell(wanted, model, task, method, padding)
    size = batch_size(wanted, variant)
    cfg.protocol.batch_size = size
    accelerator = make_accelerator(cfg)
    memory = PeakMemory(accelerator.device)
    backbone = load_backbone(cfg.backbone, num_labels=num_labels(cfg))
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
    members = []
    for seed in range(members_in(variant)):
        model = initialise(cfg, backbone, streams(seed, cfg.task.name), data)
        batches = training_batches(
            data.train, collator(cfg, data), batch_size=cfg.protocol.batch_size, seed=seed
        )
        members.append(prepare_training(cfg, model, batches, clock.steps + 1, accelerator))
    fleet, trainings = Fleet(gradients), [training for training, _ in members]
    if variant == COMPILED:
        torch.compiler.reset()  # or it would be there from the turn before
        trainings[0].model.compile(dynamic=True)
    limit = cfg.protocol.max_grad_norm
    clock.begin()
    for batches in islice(zip(*(batches for _, batches in members), strict=True), clock.steps + 1):
        asked = {
            i: Request(trainings[i], with_targets(batch, data), accelerator, limit)
            for i, batch in enumerate(batches)
        }
        for i, loss in fleet.answers(asked):
            end_step(trainings[i], len(batches[i]["labels"]), loss, accelerator)
        clock.tick()
    accelerator.free_memory()


def with_trainer(
    cfg: DictConfig, backbone: Backbone, data: Data, accelerator: Accelerator, clock: Clock, variant: str
) -> None:  # fmt: skip
    """The same model, examples and precision, with all else as transformers has it, its attention too."""
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
            model, settings, data_collator=collate, train_dataset=examples, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class InOurOrder(Trainer):
    """A Trainer that sees the examples in the order in which our loop does."""

    def _get_train_sampler(self, train_dataset: list) -> ShuffledEachEpoch:
        return ShuffledEachEpoch(len(train_dataset), SEED)


class Clock(TrainerCallback):
    """Seconds of the first step, which warms up, and of `steps` steps from its end."""

    def __init__(self, device: torch.device, steps: int):
        self.device, self.steps, self.ticks = device, steps, 0

    def begin(self) -> None:
        self.began = self.now()

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == 1:
            self.started = self.now()
            self.first_seconds = self.started - self.began
        if self.ticks == self.steps + 1:
            self.seconds = self.now() - self.started

    def on_train_begin(self, *_, **__) -> None:
        self.begin()

    def on_step_end(self, *_, **__) -> None:
        self.tick()

    def now(self) -> float:
        wait_for(self.device)
        return time.perf_counter()


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# What is trained on what


def batch_size(wanted: DictConfig, variant: str) -> int:
    return wanted.batch_at_512 if variant in LONG else wanted.batch


def cell(wanted: DictConfig, model: str, task: str, method: str, padding: str) -> DictConfig:
    """The config of a run as scripts/train.py would have it, with a backbone of that shape and random weights."""
    overrides = (
        "backbone=tiny", "data=synthetic", f"task={task_of(task)}", f"adapter={method}", f"seed={SEED}",
        f"protocol.precision={wanted.precision}", f"protocol.max_length={wanted.max_length}",
        f"runtime.padding={padding}", f"runtime.threads={wanted.threads or 'null'}",
    )  # fmt: skip
    (composed,) = compose_cells(overrides)
    cfg = OmegaConf.create(OmegaConf.to_container(composed, resolve=True))
    cfg.backbone.architecture = wanted.shapes[model]
    return cfg


def task_of(name: str) -> str:
    """Whose head and batches examples have: of those of one length, SST-2's."""
    return "sst2" if name.startswith(TOKENS) else name


def data_of(cfg: DictConfig, backbone: Backbone, lengths: np.ndarray) -> Data:
    """Random tokens, as many in each example as `lengths` says, and random labels."""
    generator = torch.Generator().manual_seed(SEED)
    high = min(1000, backbone.model.config.vocab_size)
    rows = [
        {
            "input_ids": torch.randint(10, high, (n,), generator=generator).tolist(),
            "attention_mask": [1] * n,
        }
        for n in lengths
    ]
    task = task_from_config(cfg.task)
    dtype = torch.float32 if task.is_regression else torch.int64
    labels = torch.randint(0, 2, (len(rows),), generator=generator).to(dtype)
    train = Encoded.from_rows(rows, labels, device=find_device(cfg.runtime.device))
    return Data(task, backbone.tokenizer, [], train, train, train, 0.0, 1.0, {})


def sample(wanted: DictConfig, task: str, size: int) -> np.ndarray:
    """(size,) int64 numbers of tokens, which lie as those of the task's training examples do, short ones first."""
    where = (np.arange(size) + 0.5) / size
    if task.startswith(TOKENS):
        found = np.full(size, int(task.removeprefix(TOKENS)))
    elif wanted.glue:
        found = np.quantile(token_counts(wanted.glue, wanted.tokenizer, task), where)
    else:
        found = np.interp(where, np.array(wanted.levels) / 100, wanted.quantiles[task])
    return found.round().astype(np.int64).clip(max=wanted.max_length)


@functools.lru_cache
def token_counts(glue: str, tokenizer: str | None, task: str) -> tuple[int, ...]:
    """Tokens of each training example in a GLUE download folder, by a folder's tokenizer.json.

    Raises:
        ConfigError: that is not there.
    """
    path = Path(tokenizer or "", "tokenizer.json")
    if not path.is_file():
        raise ConfigError(
            f"training.tokenizer={tokenizer} holds no tokenizer.json: set it to a folder that does."
        )
    cfg = OmegaConf.load(CONFIGS / "task" / f"{task}.yaml")
    described = task_from_config(cfg)
    text = load_text(OmegaConf.create({"source": "directory", "root": glue}), described)["train"]
    reader = PreTrainedTokenizerFast(tokenizer_file=str(path))
    return tuple(encode(text, described, reader, max_length=512).lengths)


# What it comes to


def flops_per_token(wanted: DictConfig, model: str, task: str, length: int) -> float:
    """Of the linear layers, with LoRA, in a step on examples of that length."""
    cfg = cell(wanted, model, task, "lora", "longest")
    backbone = load_backbone(cfg.backbone, num_labels=num_labels(cfg))
    data = data_of(cfg, backbone, np.array([length] * 2))
    classifier = initialise(cfg, backbone, streams(SEED, task), data).train()
    classifier = classifier.to(data.train.labels.device)
    batch = collator(cfg, data)(data.train, [0, 1])
    return linear_flops(classifier, batch) / (2 * length)


def linear_flops(model: nn.Module, inputs: dict) -> int:
    """Operations of all nn.Linear in a step: forward, and the gradients of inputs and weights that are needed."""
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


@functools.lru_cache
def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second in the fastest of some products of two size x size matrices."""
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
    """Hours of training that the profiles' grids would take here, their runs one after the other, by variant.

    Of runs whose backbone and method were measured. All steps are made, none is evaluated. Tasks that were not measured are
    taken to be as fast as the harmonic mean of those that were.
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
            )  # one takes as long as another
            if (cfg.backbone.name, cfg.adapter.name) in rates.index
        ]
        row = {"profile": profile, "runs": len(cells) * seeds}
        fleets = [name for name in table["variant"].unique() if name.startswith(FLEET)]
        for variant in ("longest", "packed", *fleets):
            hours = 0.0
            for cfg in cells:
                found = rates.loc[(cfg.backbone.name, cfg.adapter.name), variant]
                rate = found.get(cfg.task.name, statistics.harmonic_mean(list(found)))
                hours += seeds * trained_examples(cfg) / rate / 3600
            row[f"hours_{variant}"] = round(hours, 2)
        rows.append(row)
    return pd.DataFrame(rows)


def trained_examples(cfg: DictConfig) -> int:
    """What a run reads where it is not stopped early, an epoch being nine tenths of GLUE's training set."""
    protocol = cfg.protocol
    epoch = math.ceil(0.9 * cfg.task.official_rows.train / protocol.batch_size)
    return protocol.batch_size * (protocol.max_steps or protocol.epochs * epoch)
