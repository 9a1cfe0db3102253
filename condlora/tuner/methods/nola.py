"""NOLA (Koohpayegani et al. 2024, arXiv 2310.02556): A and B as combinations of random matrices, their weights trained.

The random matrices serve all layers of a group and are kept, not drawn at every step: `bases * r * (in + out)`
numbers a group, 50 MB at 1,024 bases of rank 8 for a width of 768.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Derived, Seeded, Trained, kaiming


@dataclass(frozen=True)
class Nola(Seeded):
    """bases: how many random matrices A is a combination of, and B."""

    bases: int = 1024

    title = "NOLA"
    arxiv = "2310.02556"
    formula = "A = Σ a_k A_k, B = Σ b_k B_k, with random A_k, B_k that all layers share"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.bases, int) or self.bases < 1:
            raise AdapterError(f"bases is {self.bases!r}: give a positive whole number.")

    def tensors(self, W, r):
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

    def factors(self, W, a, b, bases_A, bases_B):
        return tuple(
            (x @ of.flatten(1)).view(of.shape[1:]) for x, of in ((a, bases_A), (b, bases_B))
        )
