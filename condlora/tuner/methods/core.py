"""An r x r core for each layer between factors that layers share: LoTR, and the same core on CondLoRA.

LoTR (Bershatsky et al. 2024, arXiv 2402.01376) stacks the updates of all layers into one tensor, in a Tucker form whose two
outer factors are shared: s B G A with a core G for each layer. It lies between ShareLoRA, where all layers have one update, and
LoRA, where each has its own A and B. Unlike the diagonals of Tied-LoRA a core mixes the ranks.

The authors' code (github.com/daskol/lotr) starts with A and B from a standard normal distribution and G = 0, and lets the
query and value projections share A and B; here that is sharing="shape" in the config.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from condlora.tuner.methods.base import Method, Pair, Tensors, Trained
from condlora.tuner.methods.condlora import Conditional, make_factors


@dataclass(frozen=True)
class LoTR(Method):
    title = "LoTR"
    arxiv = "2402.01376"
    formula = "the update is s B G A, A and B shared by all layers, G (r x r) of each layer's own"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return {
            "A": Trained((r, W.shape[1]), nn.init.normal_, is_shared=True),
            "B": Trained((W.shape[0], r), nn.init.normal_, is_shared=True),
            "G": Trained((r, r)),
        }

    def factors(self, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, G: torch.Tensor) -> Pair:
        return G @ A, B


@dataclass(frozen=True)
class CondLoraCore(Conditional):
    """The core starts at the identity and theta_B at zero, so that training starts as CondLoRA's. This method is ours."""

    title = "CondLoRA with a core for each layer"
    arxiv = "2403.14946"

    @property
    def formula(self) -> str:
        return super().formula.replace("A =", "A = G") + ", with an r x r core G for each layer"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return self.maps(W, r) | {"G": Trained((r, r), nn.init.eye_)}

    def factors(
        self, W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor, G: torch.Tensor
    ) -> Pair:
        A, B = make_factors(W, theta_A, theta_B, self.form)
        return G @ A, B
