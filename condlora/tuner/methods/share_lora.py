"""ShareLoRA (Song et al. 2024, arXiv 2406.10785): one A, one B, or both, for all layers of a group.

With shared="AB" it is also the control that CondLoRA's paper lacks: shared maps that are not conditioned on W.

LoRA starts with a random A and B = 0, so what is shared and what starts random are two questions. With random="B" A starts
at zero. Hayou et al. 2024 (arXiv 2406.08447) compare the two starts for LoRA, which is shared="AB" with a pair for each
layer (`layers_per_map=1` in the config).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Method, Pair, Tensors, Trained, kaiming


@dataclass(frozen=True)
class ShareLora(Method):
    """shared: "A", "B" or "AB". random: which of A and B starts random, as LoRA's A; the other starts at zero."""

    shared: Literal["A", "B", "AB"] = "A"
    random: Literal["A", "B"] = "A"

    title = "ShareLoRA"
    arxiv = "2406.10785"

    def __post_init__(self) -> None:
        if self.shared not in ("A", "B", "AB"):
            raise AdapterError(f"shared is {self.shared!r}: choose one of A, B, AB.")
        if self.random not in ("A", "B"):
            raise AdapterError(f"random is {self.random!r}: choose A or B.")

    @property
    def formula(self) -> str:
        start = "" if self.random == "A" else ", starting with a random B and A = 0"
        return f"{' and '.join(self.shared)} shared by all layers{start}"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        shapes = {"A": (r, W.shape[1]), "B": (W.shape[0], r)}
        return {
            name: Trained(
                shape,
                kaiming if name == self.random else nn.init.zeros_,
                is_shared=name in self.shared,
            )
            for name, shape in shapes.items()
        }

    def factors(self, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> Pair:
        return A, B
