"""NOLA (Koohpayegani et al. 2024, arXiv 2310.02556): A and B as combinations of random matrices with trained coefficients.

All layers of a group use the same random matrices. They are kept in memory and not drawn at every step:
`bases * r * (in + out)` numbers per group, 50 MB for 1,024 bases of rank 8 and width 768.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Derived, Pair, Seeded, Tensors, Trained, kaiming


@dataclass(frozen=True)
class Nola(Seeded):
    """bases: the number of random matrices for A, and for B."""

    bases: int = 1024

    title = "NOLA"
    arxiv = "2310.02556"
    formula = "A = Σ a_k A_k, B = Σ b_k B_k, with random A_k, B_k that all layers share"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bases, int) or self.bases < 1:
            raise AdapterError(f"bases is {self.bases!r}: give a positive whole number.")

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        out, width = W.shape
        return {
            "a": Trained((1, self.bases), kaiming),
            "b": Trained((1, self.bases)),
            "bases_A": Derived(lambda rng: self.draw((r, width), rng), is_shared=True),
            "bases_B": Derived(lambda rng: self.draw((out, r), rng), is_shared=True),
        }

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
        """(bases, *shape), each matrix drawn as LoRA draws A."""
        return torch.stack([kaiming(torch.empty(shape), generator) for _ in range(self.bases)])

    def factors(
        self,
        W: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bases_A: torch.Tensor,
        bases_B: torch.Tensor,
    ) -> Pair:
        A = (a @ bases_A.flatten(1)).view(bases_A.shape[1:])
        B = (b @ bases_B.flatten(1)).view(bases_B.shape[1:])
        return A, B
