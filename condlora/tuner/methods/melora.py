"""MELoRA (Ren et al. 2024, arXiv 2402.17263): several small LoRAs side by side, each on its own slice of inputs and outputs.

A and B are block-diagonal with n blocks of rank r / n. So the update has rank r and r (in + out) / n trained parameters.
Nothing is shared between layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Method, Pair, Tensors, Trained, kaiming


@dataclass(frozen=True)
class MeLora(Method):
    """blocks: n, the number of small LoRAs; it divides the rank and both sides of every W."""

    blocks: int = 8

    title = "MELoRA"
    arxiv = "2402.17263"

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, int) or self.blocks < 1:
            raise AdapterError(f"blocks is {self.blocks!r}: give a positive whole number.")

    @property
    def formula(self) -> str:
        return f"A and B of each layer's own, block-diagonal with {self.blocks} blocks"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        out, width = W.shape
        if any(size % self.blocks for size in (r, out, width)):
            raise AdapterError(
                f"blocks is {self.blocks}, the rank {r} and a target weight {out} x {width}: choose blocks that divide "
                "all three."
            )
        return {
            "A": Trained((r, width // self.blocks), kaiming),
            "B": Trained((out, r // self.blocks)),
        }

    def factors(self, W: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> Pair:
        return self._diagonal(A), self._diagonal(B)

    def _diagonal(self, rows: torch.Tensor) -> torch.Tensor:
        """The block-diagonal matrix of n blocks that are given one below the other."""
        height, width = rows.shape[0] // self.blocks, rows.shape[1]
        identity = torch.eye(self.blocks, dtype=rows.dtype, device=rows.device)
        blocks = rows.view(self.blocks, height, 1, width) * identity[:, None, :, None]
        return blocks.reshape(self.blocks * height, self.blocks * width)
