"""NOLA (Koohpayegani et al. 2024, arXiv 2310.02556): A and B as combinations of random matrices with trained coefficients.

A = sum of a_k A_k and B = sum of b_k B_k is the definition in the paper's section 3 (the numbers of its equations were not checked).
It leaves the random matrices and the start open. Two starts exist here:

    start="lora"     A_k and B_k drawn as LoRA draws A, a random, b = 0. Ours.
    start="authors"  as in the authors' code (github.com/UCDvision/NOLA, gpt/src/model_nola.py): entries of A_k and B_k are
                     uniform in (-1, 1) / sqrt(bases), a = b = 0, and a frozen A_0, drawn as LoRA draws A, is added to A.

All layers of a group use the same random matrices; in the authors' code each layer has its own. They are kept in memory and
not drawn at every step: `bases * r * (in + out)` numbers per group, 50 MB for 1,024 bases of rank 8 and width 768.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Derived, Pair, Seeded, Tensors, Trained, kaiming


@dataclass(frozen=True)
class Nola(Seeded):
    """bases: the number of random matrices for A, and for B. start: "lora" or "authors", see above."""

    bases: int = 1024
    start: Literal["lora", "authors"] = "lora"

    title = "NOLA"
    arxiv = "2310.02556"

    @property
    def formula(self) -> str:
        fixed = "A_0 + " if self.start == "authors" else ""
        return f"A = {fixed}Σ a_k A_k, B = Σ b_k B_k, with random A_k, B_k that all layers share"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bases, int) or self.bases < 1:
            raise AdapterError(f"bases is {self.bases!r}: give a positive whole number.")
        if self.start not in ("lora", "authors"):
            raise AdapterError(f"start is {self.start!r}: choose lora or authors.")

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        out, width = W.shape
        is_ours = self.start == "lora"
        tensors: Tensors = {
            "a": Trained((1, self.bases), kaiming if is_ours else nn.init.zeros_),
            "b": Trained((1, self.bases)),
            "bases_A": Derived(lambda rng: self.draw((r, width), rng), is_shared=True),
            "bases_B": Derived(lambda rng: self.draw((out, r), rng), is_shared=True),
        }
        if not is_ours:
            tensors["A_0"] = Derived(lambda rng: kaiming(torch.empty(r, width), rng))
        return tensors

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        """(bases, *shape): the random matrices."""
        if self.start == "lora":
            return torch.stack([kaiming(torch.empty(shape), generator) for _ in range(self.bases)])
        uniform = 2 * torch.rand(self.bases, *shape, generator=generator) - 1
        return torch.div(uniform, math.sqrt(self.bases))

    def factors(
        self,
        W: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bases_A: torch.Tensor,
        bases_B: torch.Tensor,
        A_0: torch.Tensor | None = None,
    ) -> Pair:
        A = (a @ bases_A.flatten(1)).view(bases_A.shape[1:])
        B = (b @ bases_B.flatten(1)).view(bases_B.shape[1:])
        return A if A_0 is None else A_0 + A, B
