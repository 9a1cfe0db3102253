"""LoRA with one of its two matrices frozen, after Zhu et al. 2024 (Asymmetry in Low-Rank Adapters, arXiv 2402.16842).

The trained matrix starts at zero. The frozen one is derived and not saved: random from the seed, or from W's singular vectors.
With the authors' names, where a hat (h in their code) marks the trained matrix:

    trained="B", frozen="orthogonal"   A_rand, hB_zero   the paper's recommendation
    trained="B", frozen="singular"     A_V, hB_zero
    trained="B", frozen="kaiming"      A_he, hB_zero     LoRA-FA
    trained="A", frozen="orthogonal"   B_rand, hA_zero
    trained="A", frozen="singular"     B_U, hA_zero
    trained="A", frozen="kaiming"      B_he, hA_zero
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Derived, Pair, Seeded, Tensors, Trained, kaiming
from condlora.tuner.methods.controls import haar
from condlora.tuner.methods.lora_xs import principal_factors


@dataclass(frozen=True)
class HalfLora(Seeded):
    """trained: "A" or "B". frozen: what the other one is: "kaiming", "orthogonal" or "singular"."""

    trained: Literal["A", "B"] = "B"
    frozen: Literal["kaiming", "orthogonal", "singular"] = "orthogonal"

    title = "LoRA with one frozen matrix"
    arxiv = "2402.16842"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained not in ("A", "B"):
            raise AdapterError(f"trained is {self.trained!r}: choose A or B.")
        if self.frozen not in ("kaiming", "orthogonal", "singular"):
            raise AdapterError(
                f"frozen is {self.frozen!r}: choose one of kaiming, orthogonal, singular."
            )

    @property
    def formula(self) -> str:
        other = "A" if self.trained == "B" else "B"
        kind = {
            "kaiming": "random",
            "orthogonal": "random with orthonormal " + ("rows" if other == "A" else "columns"),
            "singular": "W's leading singular vectors",
        }[self.frozen]
        return f"{self.trained} of each layer's own, {other} frozen: {kind}"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        out, width = W.shape
        if self.trained == "B":
            return {"A": Derived(lambda rng: self._frozen_A(W, r, rng)), "B": Trained((out, r))}
        return {"A": Trained((r, width)), "B": Derived(lambda rng: self._frozen_B(W, r, rng))}

    def _frozen_A(self, W: torch.Tensor, r: int, rng: torch.Generator) -> torch.Tensor:
        if self.frozen == "singular":
            return principal_factors(W, r)[0]
        if self.frozen == "orthogonal":
            return haar(W.shape[1], r, rng).T
        return kaiming(torch.empty(r, W.shape[1]), rng)

    def _frozen_B(self, W: torch.Tensor, r: int, rng: torch.Generator) -> torch.Tensor:
        if self.frozen == "singular":
            US = principal_factors(W, r)[1]
            return torch.div(US, torch.linalg.norm(US, dim=0))
        if self.frozen == "orthogonal":
            return haar(W.shape[0], r, rng)
        return kaiming(torch.empty(W.shape[0], r), rng)

    def factors(self, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> Pair:
        return A, B
