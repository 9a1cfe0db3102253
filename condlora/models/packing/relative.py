"""Packing for MPNet, whose layers compute attention themselves and add a bias for relative positions to the scores.

The bias of two tokens depends on their distance in the padded row, so each group of examples is given its part of it, as
of the mask.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from condlora.models.packing.attention import PACKED
from condlora.models.packing.places import Places


def prepare(model: nn.Module, classifier: PreTrainedModel) -> None:
    """Replace the encoder's computation; `model`: the classifier, or what wraps it."""
    classifier.config._attn_implementation = f"{PACKED}eager"  # so that there always is a mask
    encoder = next(m for m in classifier.modules() if isinstance(m, MPNetEncoder))
    encoder.__class__ = PackedEncoder
    for layer in encoder.layer:
        layer.attention.attn.__class__ = PackedSelfAttention
    model.register_forward_pre_hook(functools.partial(keep_places, encoder), with_kwargs=True)


def keep_places(encoder: PackedEncoder, _: nn.Module, inputs: tuple, settings: dict) -> None:
    """Give the encoder the places that `describe` found: the classifier does not pass arguments on."""
    encoder.places = settings["packed"]


class PackedEncoder(MPNetEncoder):
    """MPNet's encoder on real tokens only. places: those of the current batch."""

    places: Places

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        return_dict: bool = False,
        **_,
    ) -> tuple[torch.Tensor] | BaseModelOutput:
        """hidden_states: (B, L, h); attention_mask: (B, 1, L, L), to be added to the scores."""
        places = self.places
        # The same in every row, (1, heads, L, L).
        bias = self.compute_position_bias(hidden_states[:1]).expand(len(hidden_states), -1, -1, -1)
        masks = [group.own(bias) + group.own(attention_mask) for group in places.groups]
        packed = places.take(hidden_states)
        for layer in self.layer:
            (packed,) = layer(packed, places, masks)
        output = places.put(packed)
        return BaseModelOutput(last_hidden_state=output) if return_dict else (output,)


class PackedSelfAttention(MPNetSelfAttention):
    """MPNet's attention between the tokens of each example."""

    def forward(
        self, hidden_states: torch.Tensor, places: Places, masks: list[torch.Tensor], **_
    ) -> tuple[torch.Tensor]:
        """hidden_states: (M, T, h); masks: of each group, to be added to its scores."""
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        states = [
            project(hidden_states).view(shape).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        ]
        return (self.o(places.attend(states, masks, self.within).flatten(2)),)

    def within(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        shares = self.dropout(torch.softmax(scores + mask, dim=-1))
        return torch.matmul(shares, v).transpose(1, 2)
