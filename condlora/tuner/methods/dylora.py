"""DyLoRA (Valipour et al. 2023, arXiv 2210.07558): LoRA whose leading ranks can be used alone.

In training every forward pass of the model draws a rank b from 1 to r, uniformly, and uses the first b rows of A
and columns of B in all layers, scaled by alpha / b. All b ranks are trained, which is the paper's variant without freezing.
`export_lora(model, folder, rank=b)` writes the adapter cut to any b.

Conditional DyLoRA makes A and B as CondLoRA does. A rank is then a row of theta_A and of theta_B. This combination is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.tuner.methods.base import Method, Pair, Tensors, Trained, kaiming
from condlora.tuner.methods.condlora import CondLora


@dataclass(frozen=True)
class DyLora(Method):
    title = "DyLoRA"
    arxiv = "2210.07558"
    formula = "A and B of each layer's own, the first b ranks of which can be used alone"
    is_nested = True

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return {"A": Trained((r, W.shape[1]), kaiming), "B": Trained((W.shape[0], r))}

    def factors(self, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> Pair:
        return A, B


@dataclass(frozen=True)
class CondDyLora(CondLora):
    title = "Conditional DyLoRA"
    arxiv = DyLora.arxiv
    is_nested = True

    @property
    def formula(self) -> str:
        return super().formula + ", the first b ranks of which can be used alone"
