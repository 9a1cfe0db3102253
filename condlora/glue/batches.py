"""From text to batches of tensors: tokenised once, padded per batch, ordered by the data stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import datasets
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from condlora.glue.tasks import Task


@dataclass(frozen=True)
class Encoded(Dataset):
    """A tokenised split: `rows[i]` are the tokenizer's outputs of example i, `labels` (n,) int64 or float32."""

    rows: list[dict[str, list[int]]]
    labels: torch.Tensor
    truncated: int  # examples cut at the maximum length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {**self.rows[index], "labels": self.labels[index]}


def encode(
    split: datasets.Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> Encoded:
    """Tokenise a split; pairs are cut longest text first, as the authors' `truncation=True`."""
    texts = [split[name][:] for name in task.fields]
    outputs = tokenizer(*texts, truncation=False, verbose=False)
    rows = [
        dict(zip(outputs, values, strict=True)) for values in zip(*outputs.values(), strict=True)
    ]
    too_long = [i for i, row in enumerate(rows) if len(row["input_ids"]) > max_length]
    for i in too_long:
        rows[i] = dict(tokenizer(*(t[i] for t in texts), truncation=True, max_length=max_length))
    dtype = torch.float32 if task.is_regression else torch.int64
    return Encoded(rows, torch.tensor(split["label"][:], dtype=dtype), len(too_long))


def padder(tokenizer: PreTrainedTokenizerBase, *, padding: str, max_length: int) -> Callable:
    """A collate function: pads to the batch's longest ("longest") or to `max_length`.

    "packed" and "auto" pad to the longest too, and add `lengths`, a list of int that stays on the CPU: see
    `condlora.packing`.
    """
    is_packed = padding in ("packed", "auto")
    padding = "longest" if is_packed else padding

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        labels = torch.stack([example["labels"] for example in examples])
        rows = [{k: v for k, v in example.items() if k != "labels"} for example in examples]
        batch = tokenizer.pad(rows, padding=padding, max_length=max_length, return_tensors="pt")
        lengths = {"lengths": [len(row["input_ids"]) for row in rows]} if is_packed else {}
        return {**batch, **lengths, "labels": labels}

    return collate


class ShuffledEachEpoch(Sampler):
    """A fresh permutation of the examples each epoch, a function of the data stream's seed alone."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.size, generator=generator).tolist()


def training_batches(
    encoded: Encoded, collate: Callable, *, batch_size: int, seed: int
) -> DataLoader:
    """Shuffled batches; the last one of an epoch may be smaller, as in the authors' Trainer."""
    return DataLoader(
        encoded,
        batch_size=batch_size,
        sampler=ShuffledEachEpoch(len(encoded), seed),
        collate_fn=collate,
        generator=torch.Generator(),  # keeps the loader off the global generator, which is dropout's
    )


def evaluation_batches(
    encoded: Encoded, collate: Callable, *, batch_size: int
) -> tuple[DataLoader, torch.Tensor]:
    """Batches in order of length, little padding, and the (n,) positions of their examples in the split."""
    lengths = torch.tensor([len(row["input_ids"]) for row in encoded.rows])
    order = torch.argsort(lengths, stable=True)
    loader = DataLoader(
        encoded,
        batch_size=batch_size,
        sampler=order.tolist(),
        collate_fn=collate,
        generator=torch.Generator(),
    )
    return loader, order
