"""Layers that compute on real tokens alone: `runtime.padding=packed`.

A batch stays padded, (B, L), for embeddings, poolers, heads and losses. In front of the first transformer layer its real
tokens are taken out of the hidden states, (B, L, h) -> (1, T, h), and behind the last they are put back; the layers
between, with an adapter's products in them, see no padding. Attention alone is between the tokens of one example: there
queries, keys and values of examples about as long as each other are put into (n, heads, l, d), l being the longest of
these n (`Group`), and the model's own mask, of their places, does what it does without packing, be it causal or a window.

With `members=M` beside the inputs, as many equal groups of rows (the runs of a fleet), each group has its tokens to
itself: (M, T, h), T being the most real tokens of a group; the others end in some of their padding, to which no real
token attends.

Where the tokens go is known without asking the device, which would wait for it: the collator counts them, see
`condlora.glue.batches.padder`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from condlora.errors import ConfigError

# Model types that tests show to give the same logits; others may mix tokens elsewhere than in attention.
FAMILIES = ("bert", "distilbert", "gpt2", "llama", "modernbert", "roberta")
PACKED = "packed_"  # before transformers' name of the attention within


def pack(model: nn.Module) -> nn.Module:
    """Have a classifier, with an adapter or without, compute on real tokens; returns it.

    It takes a padded batch as before, with `lengths`, a list of B int: the real tokens of each row; without them the
    device is asked, which waits for it. Logits and
    gradients are the same but for rounding and the draws of dropout, as long as the head reads no padding (BERT's
    reads the first token, which on the left would be some: it finds zeros there).

    Raises:
        ConfigError: the model, its attention or its adapter is not one for which that is so.
    """
    classifier = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    config, attention = classifier.config, classifier.config._attn_implementation
    if config.model_type not in FAMILIES:
        raise refusal(f"knows no {config.model_type}, only {', '.join(FAMILIES)}")
    if any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values()):
        raise refusal("has no place for the tokens that this adapter adds")
    if attention not in ("sdpa", "eager"):
        raise refusal(f"has no runtime.attention={attention}")
    classifier.set_attn_implementation(PACKED + attention)
    is_rotary = hasattr(classifier.base_model, "rotary_emb")
    layers = next(
        m
        for m in classifier.modules()
        if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers
    )
    described = functools.partial(describe, is_rotary=is_rotary)
    model.register_forward_pre_hook(described, with_kwargs=True)
    layers[0].register_forward_pre_hook(take_out, with_kwargs=True)
    layers[-1].register_forward_hook(put_back, with_kwargs=True)
    return model


def leave_padded(model: nn.Module) -> nn.Module:
    """Have a model that cannot be packed take the same batches, padding and all; returns it."""

    def ignore(_: nn.Module, inputs: tuple, settings: dict):
        return inputs, {k: v for k, v in settings.items() if k not in ("lengths", "members")}

    model.register_forward_pre_hook(ignore, with_kwargs=True)
    return model


def refusal(reason: str) -> ConfigError:
    return ConfigError(f"runtime.padding=packed {reason}: set runtime.padding=longest.")


@dataclass(frozen=True)
class Group:
    """Examples whose attention is computed together.

    rows: (n,) int64, which of the batch; columns: (n, l) int64, where each one's tokens are in its row, in order, and
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

    index: (M, T) int64, among its B * L places; shape: (B, L); groups: for attention; slots: (M * T,) int64, among
    the places of all groups, one group after the other, and behind them as many more as T is more than a member's own
    tokens; size: of all slots there are.
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
        """(M, T, ...) -> of each group (n, l, ...), zeros where it has padding; then what is in none, (k, ...)."""
        sizes = [group.columns.numel() for group in self.groups]
        rows = Put.apply(x.flatten(0, 1), self.slots, self.size)
        *parts, rest = rows.split([*sizes, self.size - sum(sizes)])
        shaped = [
            part.unflatten(0, group.columns.shape)
            for part, group in zip(parts, self.groups, strict=True)
        ]
        return [*shaped, rest]

    def unite(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """The other way: (n, l, ...) of each group and (k, ...) of none -> (M, T, ...)."""
        *shaped, rest = parts
        rows = torch.cat([*(part.flatten(0, 1) for part in shaped), rest])
        return Take.apply(rows, self.slots).unflatten(0, self.index.shape)


class Take(torch.autograd.Function):
    """Rows of x, (n, ...) -> (m, ...), none twice: the gradient is put back, where torch's own would add row by row."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return Put.apply(grad, *ctx.saved_tensors, ctx.size), None


class Put(torch.autograd.Function):
    """The other way, (m, ...) -> (size, ...), into zeros."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return Take.apply(grad, *ctx.saved_tensors), None, None


# Hooks: what the first adds to the model's arguments is handed on to every layer and its attention.


def describe(_: nn.Module, inputs: tuple, settings: dict, *, is_rotary: bool):
    """Before the model: the places of its tokens."""
    mask = settings["attention_mask"]
    lengths = settings.pop("lengths", None) or mask.sum(dim=1).int().tolist()
    members = settings.pop("members", 1)
    settings["packed"] = places = find_places(mask, lengths, members)
    if is_rotary:  # the model turns positions into what its layers take
        settings["position_ids"] = places.index % mask.shape[1]
    return inputs, settings


def find_places(mask: torch.Tensor, lengths: list[int], members: int) -> Places:
    """Those of a mask (B, L) of so many tokens a row, which the device is not asked for."""
    of_members = np.array(lengths).reshape(members, -1)
    totals = of_members.sum(axis=1)
    # Real tokens come first, in order, of all of a member's and in each row. nonzero() would wait for the device.
    places = of_members.shape[1] * mask.shape[1]
    first = torch.arange(members, device=mask.device)[:, None] * places
    index = tokens_first(mask.reshape(members, -1))[:, : totals.max()] + first
    groups, starts, size = find_groups(mask, of_members.flatten())
    # Behind a member's rows comes, like one more row, what it has fewer than the member with the most tokens.
    missing = totals.max() - totals
    starts = np.column_stack([starts.reshape(members, -1), size + missing.cumsum() - missing])
    counts = np.column_stack([of_members, missing])
    slots = ranges(starts.flatten(), counts.flatten(), mask.device)
    return Places(index, tuple(mask.shape), groups, slots, size + int(missing.sum()))


def find_groups(mask: torch.Tensor, lengths: np.ndarray) -> tuple[list[Group], np.ndarray, int]:
    """The groups of a mask (B, L), the slot (B,) at which each row begins in them, and how many slots they have."""
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
    """So many numbers from each start on, one range after the other."""
    shifts = starts - (counts.cumsum() - counts)
    # Few numbers cross over, and how many come out is told: neither waits for the device.
    shifts, repeats = torch.from_numpy(np.stack([shifts, counts])).to(device, non_blocking=True)
    size = int(counts.sum())
    return shifts.repeat_interleave(repeats, output_size=size) + torch.arange(size, device=device)


def tokens_first(mask: torch.Tensor) -> torch.Tensor:
    """(n, L) -> (n, L) int64: the columns of each row, those of its tokens before those of its padding."""
    return mask.argsort(dim=1, descending=True, stable=True)


def length_class(length: int) -> int:
    """Examples of one class share a group: up to 16 tokens, up to 32, 64 and so on."""
    return max(4, (length - 1).bit_length())


def take_out(_: nn.Module, inputs: tuple, settings: dict):
    """Before the first layer."""
    return (settings["packed"].take(inputs[0]), *inputs[1:]), settings


def put_back(_: nn.Module, inputs: tuple, settings: dict, output: torch.Tensor) -> torch.Tensor:
    """After the last layer."""
    return settings["packed"].put(output)


# Attention, as transformers registers it


def attend(within: Callable, module: nn.Module, *inputs, packed: Places, **settings):
    """From query, key, value (M, heads, T, d) and the padded batch's mask: (M, T, heads, d), and None."""
    *states, mask = inputs
    *of_groups, rest = zip(*(packed.split(x.transpose(1, 2)) for x in states), strict=True)
    outputs = []
    for group, own in zip(packed.groups, of_groups, strict=True):
        own = (x.transpose(1, 2) for x in own)
        outputs.append(within(module, *own, group.own(mask), **settings)[0])
    return packed.unite([*outputs, rest[0]]), None


def attend_eagerly(module: nn.Module, *inputs, **settings):
    """As the model's own file spells attention out."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *inputs, **settings)


def make_mask(within: Callable, **settings):
    """The padded batch's mask, never None: whether a batch has any padding only the device knows."""
    always = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return within(**settings | always)


for name, attention_within, mask_within in (
    ("sdpa", sdpa_attention_forward, sdpa_mask),
    ("eager", attend_eagerly, eager_mask),
):
    AttentionInterface.register(PACKED + name, functools.partial(attend, attention_within))
    AttentionMaskInterface.register(PACKED + name, functools.partial(make_mask, mask_within))
