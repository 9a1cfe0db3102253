"""Where the real tokens of a padded batch are, and moving hidden states between the two layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Group:
    """Examples whose attention is computed together.

    rows: (n,) int64, which rows of the batch; columns: (n, l) int64, the positions of each row's tokens, in order, and
    after the last some of its padding.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def own(self, mask: torch.Tensor) -> torch.Tensor:
        """(B, heads or 1, L, L) -> (n, heads or 1, l, l)."""
        of_rows = mask.index_select(0, self.rows)
        of_queries = of_rows.take_along_dim(self.columns[:, None, :, None], 2)
        return of_queries.take_along_dim(self.columns[:, None, None, :], 3)


@dataclass(frozen=True)
class Places:
    """Where a batch's tokens are.

    index: (M, T) int64, into its B * L positions. shape: (B, L). groups: for attention. slots: (M * T,) int64, into the
    positions of all groups, one group after the other, followed by T minus the number of its tokens for each member.
    size: the number of all slots.
    """

    index: torch.Tensor
    shape: tuple[int, int]
    groups: list[Group]
    slots: torch.Tensor
    size: int

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, ...) -> (M, T, ...)."""
        rows = Take.apply(x.flatten(0, 1), self.index.flatten())
        return rows.unflatten(0, self.index.shape)

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """(M, T, ...) -> (B, L, ...), zeros elsewhere."""
        batch, length = self.shape
        rows = Put.apply(x.flatten(0, 1), self.index.flatten(), batch * length)
        return rows.unflatten(0, self.shape)

    def split(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(M, T, ...) -> (n, l, ...) of each group, zeros where it has padding; then (k, ...) that is in no group."""
        sizes = [group.columns.numel() for group in self.groups]
        rows = Put.apply(x.flatten(0, 1), self.slots, self.size)
        *parts, rest = rows.split([*sizes, self.size - sum(sizes)])
        shaped = [
            part.unflatten(0, group.columns.shape)
            for part, group in zip(parts, self.groups, strict=True)
        ]
        return [*shaped, rest]

    def unite(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`."""
        *shaped, rest = parts
        rows = torch.cat([*(part.flatten(0, 1) for part in shaped), rest])
        return Take.apply(rows, self.slots).unflatten(0, self.index.shape)

    def attend(
        self,
        states: Sequence[torch.Tensor],
        masks: Iterable[torch.Tensor],
        within: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        """Attention between the tokens of each example; (M, T, heads, d).

        states: query, key and value, (M, heads, T, d). masks: one per group, (n, heads or 1, l, l). within: from a
        group's query, key and value, (n, heads, l, d), and mask to (n, l, heads, d).
        """
        *of_groups, rest = zip(*(self.split(x.transpose(1, 2)) for x in states), strict=True)
        outputs = [
            within(*(x.transpose(1, 2) for x in own), mask)
            for own, mask in zip(of_groups, masks, strict=True)
        ]
        return self.unite([*outputs, rest[0]])


class Take(torch.autograd.Function):
    """Rows of x, (n, ...) -> (m, ...), none twice, so that the gradient is written back and not added row by row."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return Put.apply(grad, *ctx.saved_tensors, ctx.size), None


class Put(torch.autograd.Function):
    """The inverse of `Take`: (m, ...) -> (size, ...), zeros elsewhere."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return Take.apply(grad, *ctx.saved_tensors), None, None


def describe(_: nn.Module, inputs: tuple, settings: dict, *, is_rotary: bool):
    """A pre-hook of the model: the places of the batch's tokens, which it passes on as the argument `packed`."""
    mask = settings["attention_mask"]
    lengths = settings.pop("lengths", None) or mask.sum(dim=1).int().tolist()
    members = settings.pop("members", 1)
    settings["packed"] = places = find_places(mask, lengths, members)
    if is_rotary:  # the model turns positions into what its layers take
        settings["position_ids"] = places.index % mask.shape[1]
    return inputs, settings


def find_places(mask: torch.Tensor, lengths: list[int], members: int) -> Places:
    """The places of a mask (B, L) whose rows have `lengths` real tokens."""
    of_members = np.array(lengths).reshape(members, -1)
    totals = of_members.sum(axis=1)
    # Of each member the real tokens come first, in order. nonzero() would wait for the device.
    places = of_members.shape[1] * mask.shape[1]
    first = torch.arange(members, device=mask.device)[:, None] * places
    index = tokens_first(mask.reshape(members, -1))[:, : totals.max()] + first
    groups, starts, size = find_groups(mask, of_members.flatten())
    # After a member's rows comes, like one more row, what it lacks to the member with the most tokens.
    missing = totals.max() - totals
    starts = np.column_stack([starts.reshape(members, -1), size + missing.cumsum() - missing])
    counts = np.column_stack([of_members, missing])
    slots = ranges(starts.flatten(), counts.flatten(), mask.device)
    return Places(index, tuple(mask.shape), groups, slots, size + int(missing.sum()))


def find_groups(mask: torch.Tensor, lengths: np.ndarray) -> tuple[list[Group], np.ndarray, int]:
    """The groups of a mask (B, L), the slot (B,) at which each row begins, and the number of slots."""
    columns = tokens_first(mask)
    classes = np.array([length_class(int(length)) for length in lengths])
    groups, starts, size = [], np.empty_like(lengths), 0
    for each_class in dict.fromkeys(classes):
        rows = np.flatnonzero(classes == each_class)
        longest = int(lengths[rows].max())
        starts[rows] = size + longest * np.arange(len(rows))
        size += longest * len(rows)
        of_device = torch.from_numpy(rows).to(mask.device, non_blocking=True)
        groups.append(Group(of_device, columns.index_select(0, of_device)[:, :longest]))
    return groups, starts, size


def ranges(starts: np.ndarray, counts: np.ndarray, device: torch.device) -> torch.Tensor:
    """`counts` consecutive numbers from each of `starts`, one range after the other."""
    shifts = starts - (counts.cumsum() - counts)
    # Few numbers are copied, and the size of the result is given: neither waits for the device.
    shifts, repeats = torch.from_numpy(np.stack([shifts, counts])).to(device, non_blocking=True)
    size = int(counts.sum())
    return shifts.repeat_interleave(repeats, output_size=size) + torch.arange(size, device=device)


def tokens_first(mask: torch.Tensor) -> torch.Tensor:
    """(n, L) -> (n, L) int64: the columns of each row, tokens before padding."""
    return mask.argsort(dim=1, descending=True, stable=True)


def length_class(length: int) -> int:
    """Examples of one class share a group: up to 16 tokens, up to 32, 64 and so on."""
    return max(4, (length - 1).bit_length())
