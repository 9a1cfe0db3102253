"""Conditional AdaLoRA: P diag(Lambda) Q with P and Q made from W as CondLoRA makes B and A, and Lambda each layer's own.

AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) on CondLoRA, named as future work in CondLoRA's paper. Of AdaLoRA it is the
parameterisation alone: neither the schedule that takes ranks from layers nor the penalty that keeps P and Q orthogonal,
both of which act in the training loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from condlora.tuner.methods.base import Trained, kaiming
from condlora.tuner.methods.condlora import CondLora, theta_shapes


@dataclass(frozen=True)
class CondAdaLora(CondLora):
    title = "Conditional AdaLoRA"
    arxiv = "2303.10512"

    @property
    def formula(self) -> str:
        return super().formula + ", and each layer's own diag(Lambda) between"

    def tensors(self, W, r):
        shape_A, shape_B = theta_shapes(*W.shape, r, self.form)
        return {
            "theta_A": Trained(shape_A, kaiming, is_shared=True),
            "theta_B": Trained(shape_B, kaiming, is_shared=True),
            "Lambda": Trained((r, 1)),
        }

    def factors(self, W, theta_A, theta_B, Lambda):
        Q, P = super().factors(W, theta_A, theta_B)
        return Lambda * Q, P
