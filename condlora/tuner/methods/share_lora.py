"""ShareLoRA (Song et al. 2024, arXiv 2406.10785): one A, one B, or both, for all layers of a group.

With shared="AB" it is also the control that CondLoRA's paper lacks: shared maps that are not conditioned on W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Method, Pair, Tensors, Trained, kaiming


@dataclass(frozen=True)
class ShareLora(Method):
    """shared: "A", "B" or "AB"."""

    shared: Literal["A", "B", "AB"] = "A"

    title = "ShareLoRA"
    arxiv = "2406.10785"

    def __post_init__(self) -> None:
        if self.shared not in ("A", "B", "AB"):
            raise AdapterError(f"shared is {self.shared!r}: choose one of A, B, AB.")

    @property
    def formula(self) -> str:
        return f"{' and '.join(self.shared)} shared by all layers"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return {
            "A": Trained((r, W.shape[1]), kaiming, is_shared="A" in self.shared),
            "B": Trained((W.shape[0], r), is_shared="B" in self.shared),
        }

    def factors(self, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> Pair:
        return A, B
