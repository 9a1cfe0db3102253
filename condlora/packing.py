"""Layers that compute on real tokens alone: `runtime.padding=packed`.

A batch stays padded, (B, L), for embeddings, poolers, heads and losses. In front of the first transformer layer its real
tokens are taken out of the hidden states, (B, L, h) -> (1, T, h), and behind the last they are put back; the layers
between, with an adapter's products in them, see no padding. Attention alone is between the tokens of one example: there
queries, keys and values are put back into (B, heads, L, d), and the model's own mask does what it does without packing,
be it causal or a window.

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
class Places:
    """Where a batch's tokens are among its B * L places. index: (M, T) int64; shape: (B, L)."""

    index: torch.Tensor
    shape: tuple[int, int]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, ...) -> (M, T, ...)."""
        rows = Take.apply(x.flatten(0, 1), self.index.flatten())
        return rows.unflatten(0, self.index.shape)

    def put(self, x: torch.Tensor) -> torch.Tensor:
        """(M, T, ...) -> (B, L, ...), zeros elsewhere."""
        batch, length = self.shape
        rows = Put.apply(x.flatten(0, 1), self.index.flatten(), batch * length)
        return rows.unflatten(0, self.shape)


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
    size = len(lengths) // members
    most = max(sum(lengths[first : first + size]) for first in range(0, len(lengths), size))
    # In each group real tokens come first, in order. nonzero() would wait for the device.
    within = mask.reshape(members, -1).argsort(dim=1, descending=True, stable=True)[:, :most]
    first = torch.arange(members, device=mask.device) * (size * mask.shape[1])
    settings["packed"] = Places(within + first[:, None], tuple(mask.shape))
    if is_rotary:  # the model turns positions into what its layers take
        settings["position_ids"] = within % mask.shape[1]
    return inputs, settings


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
    states = (packed.put(x.transpose(1, 2)).transpose(1, 2) for x in states)
    output, _ = within(module, *states, mask, **settings)
    return packed.take(output), None


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
