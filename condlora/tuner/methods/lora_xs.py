"""LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604): W's leading singular vectors, and an r x r matrix R trained between.

Nothing is shared. The singular vectors are derived, not saved: whoever loads the adapter needs the very W.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from condlora.tuner.methods.base import Derived, Method, Trained


def principal_factors(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """V_r' (r, in) and U_r S_r (out, r) of W's truncated SVD, in float64, one sign chosen for each pair of vectors."""
    U, S, Vh = torch.linalg.svd(W.double().cpu(), full_matrices=False)
    U, S, Vh = U[:, :r], S[:r], Vh[:r]
    signs = Vh.gather(
        1, Vh.abs().argmax(1, keepdim=True)
    ).sign()  # libraries choose signs as they like
    return signs * Vh, U * S * signs.T


@dataclass(frozen=True)
class LoraXs(Method):
    title = "LoRA-XS"
    arxiv = "2405.17604"
    formula = "A = R V_rᵀ, B = U_r S_r, of W's singular value decomposition"

    def tensors(self, W, r):
        bases = functools.cache(lambda: principal_factors(W, r))
        return {
            # Section 3 of the paper; an R of zero would start as well, since both bases are given.
            "R": Trained((r, r), functools.partial(nn.init.normal_, std=1e-5)),
            "V": Derived(lambda _: bases()[0]),
            "US": Derived(lambda _: bases()[1]),
        }

    def factors(self, W, R, V, US):
        return R @ V, US
