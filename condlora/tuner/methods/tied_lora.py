"""Tied-LoRA (Renduchintala et al. 2024, arXiv 2311.09578): A and B shared, scaled by vectors u and v of each layer.

This is the variant that trains all four (vBuA). Here a sharing group is one kind of module; the paper ties the fused
projection of queries, keys and values.
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
