"""Conditional AdaLoRA: P diag(Lambda) Q with P and Q made from W as CondLoRA makes B and A, and a Lambda for each layer.

AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) on CondLoRA, whose paper names it as future work. Entries of Lambda are pruned
during training, see `condlora.tuner.rank_allocator`. A penalty on P and Q that are not orthogonal is added to the loss, see
`condlora.tuner.hooks.add_penalty`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Pair, Tensors, Trained, kaiming
from condlora.tuner.methods.condlora import Conditional, make_factors


@dataclass(frozen=True)
class CondAdaLora(Conditional):
    """Names and defaults are those of `peft.AdaLoraConfig`, whose init_r is `r` of the config here.

    target_r: the mean rank of a layer after pruning. beta1, beta2: of the smoothed importance. orth_reg_weight: of the
    penalty on P and Q. total_step, tinit, tfinal, deltaT: the schedule, in steps; pruning needs total_step.
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

    def __post_init__(self) -> None:
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
        return super().formula + ", with a diag(Lambda) for each layer between them"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return self.maps(W, r, start_B=kaiming) | {"Lambda": Trained((r, 1))}

    def factors(
        self, W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor, Lambda: torch.Tensor
    ) -> Pair:
        Q, P = make_factors(W, theta_A, theta_B, self.form)
        return Lambda * Q, P

    def penalty(
        self, W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor, Lambda: torch.Tensor
    ) -> torch.Tensor:
        """How far the columns of P and the rows of Q are from orthonormal, by Frobenius norms.

        Source: equation 4, without its squares and as a mean over P and Q, as in PEFT's AdaLoRA.
        """
        Q, P = make_factors(W, theta_A, theta_B, self.form)
        identity = torch.eye(len(Q), dtype=Q.dtype, device=Q.device)
        of_Q, of_P = (torch.linalg.norm(gram - identity) for gram in (Q @ Q.T, P.T @ P))
        penalty: torch.Tensor = self.orth_reg_weight * (of_Q + of_P) / 2
        return penalty
