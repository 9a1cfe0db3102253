"""Tied-LoRA (Renduchintala et al. 2024, arXiv 2311.09578): A and B shared, scaled by vectors u and v of each layer.

The update is diag(v) B diag(u) A, the definition in the paper's section on the method (the numbers of its equations were not
checked). The paper's variants are named by which of the four are tied and which are frozen. This is the one that ties A and B and
trains all four, TL6. u and v start at one. Two things differ: a sharing group is one kind of module here, where the paper adapts
the fused projection of queries, keys and values, and the update is scaled by alpha / r, which the paper sets to 1 (as
lora_alpha = r does here).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from condlora.tuner.methods.base import Method, Pair, Tensors, Trained, kaiming


@dataclass(frozen=True)
class TiedLora(Method):
    title = "Tied-LoRA"
    arxiv = "2311.09578"
    formula = "diag(u) A and diag(v) B, with A and B shared by all layers"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return {
            "A": Trained((r, W.shape[1]), kaiming, is_shared=True),
            "B": Trained((W.shape[0], r), is_shared=True),
            "u": Trained((r, 1), nn.init.ones_),
            "v": Trained((W.shape[0], 1), nn.init.ones_),
        }

    def factors(
        self, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> Pair:
        return u * A, v * B
