"""Conditional PiSSA: every layer starts as PiSSA does, at its own W's largest singular triplets, and moves by shared maps.

PiSSA (Meng et al. 2024, arXiv 2404.02948) on CondLoRA, whose paper leaves LoRA's variants (AdaLoRA and more) to future
work; this one and its form are our choice. PiSSA takes B0 A0, the triplets, out of W and trains B and A from there, so its
update is B A - B0 A0. Here A - A0 and B - B0 are what CondLoRA makes of W, and W stays whole.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Derived, Trained
from condlora.tuner.methods.condlora import CondLora, theta_shapes
from condlora.tuner.methods.lora_xs import principal_factors


def balanced_factors(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 = S_r^(1/2) V_r' (r, in) and B0 = U_r S_r^(1/2) (out, r), float64. Source: PiSSA, equations 2 and 3."""
    V, US = principal_factors(W, r)
    root = torch.linalg.norm(US, dim=0).clamp(min=torch.finfo(US.dtype).tiny).sqrt()
    return root[:, None] * V, US / root


@dataclass(frozen=True)
class CondPissa(CondLora):
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

    def tensors(self, W, r):
        if r % 2:
            raise AdapterError(
                f"The rank is {r}, and half of it are W's own singular triplets: give an even one."
            )
        shape_A, shape_B = theta_shapes(*W.shape, r // 2, self.form)
        start = functools.cache(lambda: balanced_factors(W, r // 2))
        return {
            "theta_A": Trained(shape_A, is_shared=True),
            "theta_B": Trained(shape_B, is_shared=True),
            "A0": Derived(lambda _: start()[0]),
            "B0": Derived(lambda _: start()[1]),
        }

    def factors(self, W, theta_A, theta_B, A0, B0):
        # In the form of which nothing cancels, also in half precision.
        A, B = super().factors(W, theta_A, theta_B)
        return torch.cat([A, A0 + A]), torch.cat([B0, B], dim=1)
