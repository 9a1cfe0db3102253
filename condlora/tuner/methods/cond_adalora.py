"""Conditional AdaLoRA: P diag(Lambda) Q with P and Q made from W as CondLoRA makes B and A, and Lambda each layer's own.

AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) on CondLoRA, named as future work in CondLoRA's paper. Lambda's entries are
pruned while it trains, see `condlora.tuner.rank_allocator`, and what keeps P and Q orthogonal is added to the loss, see
`CondLoraModel.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Trained, kaiming
from condlora.tuner.methods.condlora import CondLora, theta_shapes


@dataclass(frozen=True)
class CondAdaLora(CondLora):
    """Names and defaults are those of `peft.AdaLoraConfig`, whose init_r is the config's r here.

    target_r: the mean rank of a layer at the end. beta1, beta2: of the smoothed importance. orth_reg_weight: of the
    penalty on P and Q. total_step, tinit, tfinal, deltaT: the schedule, in steps; total_step is to be given for pruning.
    """

    target_r: int = 8
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1

    title = "Conditional AdaLoRA"
    arxiv = "2303.10512"
    is_pruned = True

    def __post_init__(self):
        for name in ("target_r", "deltaT"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise AdapterError(
                    f"{name} is {getattr(self, name)!r}: give a positive whole number."
                )
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise AdapterError(
                    f"{name} is {getattr(self, name)}: give a number between 0 and 1."
                )
        if self.orth_reg_weight < 0:
            raise AdapterError(f"orth_reg_weight is {self.orth_reg_weight}: give 0 or more.")

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

    def penalty(self, W, theta_A, theta_B, Lambda):
        """How far P's columns and Q's rows are from orthonormal, by Frobenius norms.

        Source: equation 4, without its squares and as a mean over P and Q, as PEFT's AdaLoRA has it.
        """
        Q, P = super().factors(W, theta_A, theta_B)
        identity = torch.eye(len(Q), dtype=Q.dtype, device=Q.device)
        distances = [torch.linalg.norm(gram - identity) for gram in (Q @ Q.T, P.T @ P)]
        return self.orth_reg_weight * sum(distances) / 2
