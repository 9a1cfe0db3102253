"""LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604): W's leading singular vectors, with a trained r x r matrix R between them.

Nothing is shared. The singular vectors are derived and not saved, so loading the adapter needs the same W.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from condlora.tuner.methods.base import Derived, Method, Pair, Tensors, Trained


def principal_factors(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """V_r' (r, in) and U_r S_r (out, r) of W's truncated SVD, in float64, one sign chosen for each pair of vectors."""
    U, S, Vh = torch.linalg.svd(W.double().cpu(), full_matrices=False)
    U, S, Vh = U[:, :r], S[:r], Vh[:r]
    # The sign of a pair is arbitrary: libraries and devices differ.
    signs = Vh.gather(1, Vh.abs().argmax(1, keepdim=True)).sign()
    return signs * Vh, U * S * signs.T


@dataclass(frozen=True)
class LoraXs(Method):
    title = "LoRA-XS"
    arxiv = "2405.17604"
    formula = "A = R V_rᵀ, B = U_r S_r, of W's singular value decomposition"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        bases = functools.cache(lambda: principal_factors(W, r))
        return {
            # Section 3 of the paper. R = 0 would also train, since both bases are fixed.
            "R": Trained((r, r), functools.partial(nn.init.normal_, std=1e-5)),
            "V": Derived(lambda _: bases()[0]),
            "US": Derived(lambda _: bases()[1]),
        }

    def factors(self, W: torch.Tensor, R: torch.Tensor, V: torch.Tensor, US: torch.Tensor) -> Pair:
        return R @ V, US
