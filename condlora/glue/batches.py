"""From text to batches of tensors: tokenised once, kept on the run's device, padded per batch, ordered by the data stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import datasets
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from condlora.glue.tasks import Task

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Encoded:
    """A tokenised split of n examples, on one device: all their tokens one after the other, T in sum.

    tokens: (T,) int64 by the name of the tokenizer's output, `input_ids` among them; starts, counts: (n,) int64, where each
    example begins and how many tokens it has; lengths: the counts, known without asking the device; labels: (n,) int64
    or float32; truncated: examples cut at the maximum length.
    """

    tokens: dict[str, torch.Tensor]
    starts: torch.Tensor
    counts: torch.Tensor
    lengths: list[int]
    labels: torch.Tensor
    truncated: int

    @classmethod
    def from_rows(
        cls,
        rows: list[dict[str, list[int]]],
        labels: torch.Tensor,
        truncated: int = 0,
        device: torch.device = CPU,
    ) -> Encoded:
        """From the tokenizer's outputs of each example; masks are made for each batch."""
        names = [name for name in rows[0] if name != "attention_mask"]
        tokens = {
            name: torch.tensor(list(chain.from_iterable(row[name] for row in rows)), device=device)
            for name in names
        }
        lengths = [len(row["input_ids"]) for row in rows]
        counts = torch.tensor(lengths, device=device)
        starts = counts.cumsum(0) - counts
        return cls(tokens, starts, counts, lengths, labels.to(device), truncated)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One example without padding."""
        batch = self.padded([index], self.lengths[index], {}, from_left=False)
        return {name: values[0] for name, values in batch.items()}

    def padded(
        self, indices: Sequence[int], width: int, fill: dict[str, int], *, from_left: bool
    ) -> dict[str, torch.Tensor]:
        """The model's inputs, (B, width) int64, and the labels, (B,), of some examples that are no longer than that."""
        wanted = torch.tensor(indices).to(self.labels.device, non_blocking=True)
        starts, counts = self.starts[wanted, None], self.counts[wanted, None]
        column = torch.arange(width, device=wanted.device) - (width - counts if from_left else 0)
        mask = (column >= 0) & (column < counts)
        place = (starts + column).where(mask, 0)
        batch = {
            name: values[place].where(mask, fill.get(name, 0))
            for name, values in self.tokens.items()
        }
        return batch | {"attention_mask": mask.long(), "labels": self.labels[wanted]}


def encode(
    split: datasets.Dataset,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    device: torch.device = CPU,
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
    labels = torch.tensor(split["label"][:], dtype=dtype)
    return Encoded.from_rows(rows, labels, len(too_long), device)


# A split and the positions of some examples in it -> their batch.
Collate = Callable[[Encoded, Sequence[int]], dict]


def padder(tokenizer: PreTrainedTokenizerBase, *, padding: str, max_length: int) -> Collate:
    """Pads, on the tokenizer's side, to the batch's longest example ("longest") or to `max_length`.

    "packed" and "auto" pad to the longest too, and add `lengths`, a list of int that stays on the CPU: see
    `condlora.models.packing`.
    """
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    from_left = tokenizer.padding_side == "left"

    def collate(split: Encoded, indices: Sequence[int]) -> dict:
        lengths = [split.lengths[i] for i in indices]
        width = max_length if padding == "max_length" else max(lengths)
        batch = split.padded(indices, width, fill, from_left=from_left)
        return batch | ({"lengths": lengths} if padding in ("packed", "auto") else {})

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
    encoded: Encoded, collate: Collate, *, batch_size: int, seed: int
) -> DataLoader:
    """Shuffled batches; the last one of an epoch may be smaller, as in the authors' Trainer."""
    return DataLoader(
        range(len(encoded)),
        batch_size=batch_size,
        sampler=ShuffledEachEpoch(len(encoded), seed),
        collate_fn=partial(collate, encoded),
        generator=torch.Generator(),  # keeps the loader off the global generator, which is dropout's
    )


def evaluation_batches(
    encoded: Encoded, collate: Collate, *, batch_size: int
) -> tuple[DataLoader, torch.Tensor]:
    """Batches in order of length, little padding, and the (n,) positions of their examples in the split."""
    order = torch.argsort(torch.tensor(encoded.lengths), stable=True)
    loader = DataLoader(
        range(len(encoded)),
        batch_size=batch_size,
        sampler=order.tolist(),
        collate_fn=partial(collate, encoded),
        generator=torch.Generator(),
    )
    return loader, order
