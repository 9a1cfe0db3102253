"""DyLoRA (Valipour et al. 2023, arXiv 2210.07558): a LoRA of each layer's own whose leading ranks serve alone.

In training every forward pass of the model draws a rank b from 1 to r, uniformly, and uses the first b rows of A
and columns of B in all layers, scaled by alpha / b. All of them are trained, which the paper calls not frozen.
`export_lora(model, folder, rank=b)` writes the adapter cut to any b.
"""

from __future__ import annotations

from dataclasses import dataclass

from condlora.tuner.methods.base import Method, Trained, kaiming


@dataclass(frozen=True)
class DyLora(Method):
    title = "DyLoRA"
    arxiv = "2210.07558"
    formula = "A and B of each layer's own, the first b ranks of which can be used alone"
    is_nested = True

    def tensors(self, W, r):
        return {"A": Trained((r, W.shape[1]), kaiming), "B": Trained((W.shape[0], r))}

    def factors(self, W, A, B):
        return A, B
