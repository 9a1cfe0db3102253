"""A timed part of `scripts/gpu_check.py`, in a process of its own: `python -m benchmarks.gpu_parts PART SETTINGS ROWS`.

PART: a model of `shapes`, or "compiled". SETTINGS: a YAML file, `training` of configs/benchmark.yaml with the changes
of configs/gpu_check.yaml. ROWS: the table (CSV) that is written row by row, so that a part that is ended by its time limit keeps
what it measured.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf

from benchmarks.rates import flops_per_token, matrix_rate
from benchmarks.steps import Clock, member, take_step
from benchmarks.workload import (
    BUCKETS,
    COMPILED,
    FLEET,
    backbone_of,
    cell,
    data_of,
    sample,
)
from condlora.runs.environment import PeakMemory, device_name, environment
from condlora.training.compatibility import find_kinds
from condlora.training.device import choose_attention, make_accelerator
from condlora.training.setup import Batches, training_data
from condlora.training.state import Progress

COLUMNS = (
    "model", "task", "method", "variant", "runs", "batch", "precision", "steps", "examples_per_second",
    "tokens_per_second", "of_matrix_rate", "matrix_rate", "peak_memory_mib", "first_step_seconds",
    "device", "torch", "transformers", "peft", "commit", "dirty",
)  # fmt: skip


def main() -> None:
    part, settings, place = sys.argv[1:]
    with Path(place).open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in measured(part, OmegaConf.load(settings)):
            table.writerow(row)
            file.flush()
            print(
                f"{row['model']} {row['task']} {row['method']} {row['variant']}: "
                f"{row['examples_per_second']} examples/s, {row['of_matrix_rate']:.1%} of the matrix rate",
                flush=True,
            )


def measured(part: str, wanted: DictConfig) -> Iterator[dict]:
    """The rows of a part, as they are measured."""
    rows = compiled(wanted) if part == COMPILED else eager(wanted, part)
    versions = environment()
    about = {name: versions["versions"][name] for name in ("torch", "transformers", "peft")}
    about |= {"commit": versions["commit"], "dirty": versions["dirty"]}
    for row in rows:
        yield row | about


def eager(wanted: DictConfig, model: str) -> Iterator[dict]:
    """Padded and packed steps of one run and packed steps of fleets, with each method on each task's lengths."""
    for method in wanted.methods:
        padded = Fleet(wanted, model, method, "longest", 1)
        packed = Fleet(wanted, model, method, "packed", max(wanted.fleets))
        for task in wanted.tasks:
            yield padded.rate(task, 1, "longest")
            yield packed.rate(task, 1, "packed")
            for size in wanted.fleets:
                yield packed.rate(task, size, f"{FLEET}{size}")


def compiled(wanted: DictConfig) -> Iterator[dict]:
    """Compiled padded steps of one run: once for all lengths, and for a few lengths each as a CUDA graph."""
    settings = {
        COMPILED: {"dynamic": True, "backend": wanted.backend},
        BUCKETS: {"dynamic": False, "backend": wanted.backend},
    }
    if wanted.backend == "inductor":
        settings[BUCKETS]["mode"] = "reduce-overhead"  # CUDA graphs
    for method in wanted.methods:
        for variant, chosen in settings.items():
            torch.compiler.reset()
            fleet = Fleet(wanted, wanted.models[0], method, "longest", 1)
            fleet.members[0].training.model.compile(**chosen)
            yield fleet.rate(wanted.compiled_task, 1, variant)


class Fleet:
    """Runs of one method on one random backbone, made once and timed on several tasks of two labels and in fleets of several sizes."""

    def __init__(self, wanted: DictConfig, model: str, method: str, padding: str, size: int):
        self.wanted, self.model, self.method = wanted, model, method
        self.cfg = cell(wanted, model, wanted.tasks[0], method, padding)
        self.cfg.protocol.batch_size = wanted.batch
        self.accelerator = make_accelerator(self.cfg)
        self.backbone = backbone_of(self.cfg)
        choose_attention(self.cfg, self.backbone, self.accelerator)
        data = self.data(wanted.tasks[0])
        what = (self.cfg, self.backbone, data, self.accelerator)
        self.members = [member(*what, seed) for seed in range(size)]
        find_kinds(self.members)

    def data(self, task: str):
        rows = self.wanted.batch * (self.wanted.warm_up + self.wanted.steps)
        return data_of(self.cfg, self.backbone, sample(self.wanted, task, rows))

    def rate(self, task: str, size: int, variant: str) -> dict:
        """The row of the first `size` runs, trained jointly; its rates are the sum over the runs."""
        wanted, accelerator, data = self.wanted, self.accelerator, self.data(task)
        memory = PeakMemory(accelerator.device)
        members = self.members[:size]
        for seed, each in enumerate(members):
            each.batches = training_data(self.cfg, data, {"data": seed}, accelerator)
            each.training.progress = Progress()
        clock = Clock(accelerator.device, wanted.steps, wanted.warm_up)
        clock.begin()
        if variant == BUCKETS:
            (each,) = members
            each.batches = Bucketed(each.batches, self.backbone.tokenizer.pad_token_id)
            for _ in range(3):  # CUDA graphs are recorded in the second pass
                for length in buckets(data.train.lengths):
                    each.batches.force(length)
                    take_step(members)
        for _ in range(wanted.warm_up + wanted.steps):
            take_step(members)
            clock.tick()
        lengths = sample(wanted, task, 1000)
        examples = size * wanted.steps * wanted.batch / clock.seconds
        tokens = float(examples * lengths.mean())
        limit = matrix_rate(wanted, accelerator)
        flops = flops_per_token(wanted, self.model, wanted.tasks[0], round(lengths.mean()))
        return {
            "model": self.model, "task": task, "method": self.method, "variant": variant, "runs": size,
            "batch": wanted.batch, "precision": accelerator.mixed_precision, "steps": wanted.steps,
            "examples_per_second": round(examples, 1), "tokens_per_second": round(tokens),
            "of_matrix_rate": round(tokens * flops / limit, 4), "matrix_rate": round(limit),
            "peak_memory_mib": memory.mib(), "first_step_seconds": round(clock.first_seconds, 2),
            "device": device_name(accelerator.device),
        }  # fmt: skip


class Bucketed:
    """Batches whose lengths are padded to one of a few, so that each length is compiled once."""

    def __init__(self, batches: Batches, pad: int):
        self.batches, self.pad, self.forced = batches, pad, None

    def force(self, length: int) -> None:
        """Give the next batch this length, cut if it is longer."""
        self.forced = length

    def next(self, progress: Progress) -> dict:
        batch = self.batches.next(progress)
        length = self.forced or bucket(batch["input_ids"].shape[1])
        self.forced = None
        return batch | {
            name: fitted(batch[name], length, fill)
            for name, fill in (("input_ids", self.pad), ("attention_mask", 0))
        }


def fitted(values: torch.Tensor, length: int, fill: int) -> torch.Tensor:
    """(n, L) -> (n, length), padded on the right or cut."""
    return F.pad(values, (0, length - values.shape[1]), value=fill)


def bucket(length: int) -> int:
    """The least of 16, 32, 64 ... that is no less than this length."""
    return 1 << max(4, (length - 1).bit_length())


def buckets(lengths: list[int]) -> list[int]:
    """Those that batches of examples of these lengths can have."""
    return sorted({bucket(length) for length in lengths})


if __name__ == "__main__":
    main()
