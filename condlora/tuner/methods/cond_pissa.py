"""Conditional PiSSA: every layer starts at the largest singular triplets of its own W, as in PiSSA, and is trained by shared maps.

PiSSA (Meng et al. 2024, arXiv 2404.02948) on CondLoRA. The paper of CondLoRA leaves LoRA's variants to future work; this
variant is our choice. PiSSA subtracts the triplets B0 A0 from W and trains B and A from there, so its update is
B A - B0 A0. Here CondLoRA makes A - A0 and B - B0 from W, and W is not changed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Derived, Pair, Tensors
from condlora.tuner.methods.condlora import Conditional, make_factors
from condlora.tuner.methods.lora_xs import principal_factors


def balanced_factors(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 = S_r^(1/2) V_r' (r, in) and B0 = U_r S_r^(1/2) (out, r), float64. Source: PiSSA, equations 2 and 3."""
    V, US = principal_factors(W, r)
    root = torch.linalg.norm(US, dim=0).clamp(min=torch.finfo(US.dtype).tiny).sqrt()
    return root[:, None] * V, US / root


@dataclass(frozen=True)
class CondPissa(Conditional):
    """The update has rank r, of which r / 2 are trained: B A - B0 A0 = B0 (A - A0) + (B - B0) A."""

    title = "Conditional PiSSA"
    arxiv = "2404.02948"

    @property
    def formula(self) -> str:
        maps = super().formula.replace("A =", "a =").replace("B =", "b =")
        start = "B0 A0 being W's r / 2 largest singular triplets"
        return f"the update is (B0 + b) (A0 + a) - B0 A0, {start}, {maps}"

    def max_rank(self, shape: tuple[int, int]) -> int:
        return min(shape) // 2 * 2

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        if r % 2:
            raise AdapterError(
                f"The rank is {r}, and half of it are W's own singular triplets: give an even one."
            )
        start = functools.cache(lambda: balanced_factors(W, r // 2))
        return self.maps(W, r // 2, start_A=nn.init.zeros_) | {
            "A0": Derived(lambda _: start()[0]),
            "B0": Derived(lambda _: start()[1]),
        }

    def factors(
        self,
        W: torch.Tensor,
        theta_A: torch.Tensor,
        theta_B: torch.Tensor,
        A0: torch.Tensor,
        B0: torch.Tensor,
    ) -> Pair:
        # Written so that no large terms cancel, which matters in half precision.
        A, B = make_factors(W, theta_A, theta_B, self.form)
        return torch.cat([A, A0 + A]), torch.cat([B0, B], dim=1)
