"""AdamW and the clipping before it: of one run, and of several as one step.

The step of one adapter is little work in many calls, for which a GPU waits. A fleet's are taken together: the same few
calls for all tensors of all runs, in which each run keeps its own rate, moments and clipping norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from condlora.checkpoints import Training

TINY = 1e-6  # what torch's clipping adds to a norm


def adamw(
    groups: list, learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.AdamW:
    """The AdamW of a run; groups as torch's optimizers take them."""
    # Fused is one kernel for all parameters; on a CPU it would round otherwise than the runs that were made there.
    fused = device.type == "cuda"
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def can_step_together(training: Training) -> bool:
    """Not before its optimizer has moments, which its own first step makes, and not with fp16's scaler."""
    return bool(training.optimizer.state) and training.scaler is None


@torch.no_grad()
def step_together(trainings: Sequence[Training], max_norms: Sequence[float]) -> None:
    """Clip each run's gradients, taken as one vector, to its norm, and take its AdamW's step: one step for all runs.

    The numbers are those of torch's clipping and of its AdamW that is not fused. How many steps a run has taken its
    progress says, as the optimizer's own count may be on the device.
    """
    parameters, states, decays, roots, sizes, lengths = [], [], [], [], [], []
    for training in trainings:
        before = len(parameters)
        for group in training.optimizer.param_groups:
            own = [p for p in group["params"] if p.grad is not None]
            parameters += own
            states += [training.optimizer.state[p] for p in own]
            beta1, beta2 = group["betas"]
            count, rate = training.progress.step + 1, group["lr"]
            decays += len(own) * [1 - rate * group["weight_decay"]]
            roots += len(own) * [math.sqrt(1 - beta2**count)]
            sizes += len(own) * [-rate / (1 - beta1**count)]
        lengths.append(len(parameters) - before)
    gradients = [p.grad for p in parameters]
    _clip(gradients, lengths, max_norms)
    first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    torch._foreach_add_([state["step"] for state in states], 1)
    torch._foreach_mul_(parameters, decays)
    torch._foreach_lerp_(
        first, gradients, 1 - beta1
    )  # betas and eps are one for all: torch's defaults
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
    below = torch._foreach_sqrt(second)
    torch._foreach_div_(below, roots)
    torch._foreach_add_(below, group["eps"])
    torch._foreach_addcdiv_(parameters, first, below, sizes)


def _clip(gradients: list[torch.Tensor], lengths: list[int], max_norms: Sequence[float]) -> None:
    """Scale each run's gradients, so many of the list, to a norm of at most so much."""
    norms = torch.stack(torch._foreach_norm(gradients)).split(lengths)
    start = 0
    for own, length, max_norm in zip(norms, lengths, max_norms, strict=True):
        scale = (max_norm / (torch.linalg.vector_norm(own) + TINY)).clamp(max=1.0)
        torch._foreach_mul_(gradients[start : start + length], scale)
        start += length
