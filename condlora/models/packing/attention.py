"""Packing for models whose attention is a function that transformers' attention interface looks up.

transformers passes the argument that `describe` adds to the model's on to every layer and its attention function.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from condlora.models.packing.places import Places

PACKED = "packed_"  # before transformers' name of the attention function


def prepare(classifier: PreTrainedModel) -> None:
    """Let the layers take packed hidden states, with the attention and mask functions that are registered below."""
    layers = next(
        module
        for module in classifier.modules()
        if isinstance(module, nn.ModuleList) and len(module) == classifier.config.num_hidden_layers
    )
    classifier.set_attn_implementation(PACKED + classifier.config._attn_implementation)
    layers[0].register_forward_pre_hook(take_out, with_kwargs=True)
    layers[-1].register_forward_hook(put_back, with_kwargs=True)


def take_out(_: nn.Module, inputs: tuple, settings: dict):
    """Before the first layer."""
    return (settings["packed"].take(inputs[0]), *inputs[1:]), settings


def put_back(_: nn.Module, inputs: tuple, settings: dict, output: torch.Tensor) -> torch.Tensor:
    """After the last layer."""
    return settings["packed"].put(output)


def attend(within: Callable, module: nn.Module, *inputs, packed: Places, **settings):
    """From query, key, value (M, heads, T, d) and the padded batch's mask: (M, T, heads, d), and None."""
    *states, mask = inputs
    masks = (group.own(mask) for group in packed.groups)
    return packed.attend(states, masks, lambda *own: within(module, *own, **settings)[0]), None


def attend_eagerly(module: nn.Module, *inputs, **settings):
    """The eager attention of the model's own file."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *inputs, **settings)


def make_mask(within: Callable, **settings):
    """The padded batch's mask, never None: only the device knows whether a batch has padding."""
    always = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return within(**settings | always)


for name, attention_within, mask_within in (
    ("sdpa", sdpa_attention_forward, sdpa_mask),
    ("eager", attend_eagerly, eager_mask),
):
    AttentionInterface.register(PACKED + name, functools.partial(attend, attention_within))
    AttentionMaskInterface.register(PACKED + name, functools.partial(make_mask, mask_within))
