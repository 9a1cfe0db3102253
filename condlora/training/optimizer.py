"""AdamW and the gradient clipping before it, for one run and for several runs in one step.

An adapter has many small tensors, so its step is many short kernels and a GPU waits between them. The joint step takes
the same few calls for all tensors of all runs; every run keeps its own learning rate, moments and clipping norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from condlora.training.state import Training

EPSILON = 1e-6  # that torch.nn.utils.clip_grad_norm_ adds to a norm


def adamw(
    groups: list, learning_rate: float, weight_decay: float, device: torch.device
) -> torch.optim.AdamW:
    """The AdamW of a run; `groups` as torch's optimizers take them."""
    # The fused kernel is used on a GPU only: on a CPU it rounds differently from the committed runs.
    fused = device.type == "cuda"
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def can_step_jointly(training: Training) -> bool:
    """Whether all its moments exist, which its own first step creates, and no fp16 scaler is in use."""
    state, groups = training.optimizer.state, training.optimizer.param_groups
    trained = (p for group in groups for p in group["params"] if p.grad is not None)
    return training.scaler is None and all("exp_avg" in state.get(p, ()) for p in trained)


@torch.no_grad()
def step_jointly(trainings: Sequence[Training]) -> None:
    """Clip the gradients of each run and take its AdamW step, in one step for all runs.

    The numbers are those of torch's clipping and of its AdamW without fusing, if every parameter had a gradient at every
    step. The step number comes from the run's progress, as the optimizer's own count may be on the device.
    """
    common = trainings[0].optimizer.param_groups[0]  # betas and eps are torch's defaults in all
    (beta1, beta2), eps = common["betas"], common["eps"]
    params, states, decays, bias_corrections2_sqrt, step_sizes, counts = [], [], [], [], [], []
    for training in trainings:
        step, before = training.progress.step + 1, len(params)
        for group in training.optimizer.param_groups:
            own = [p for p in group["params"] if p.grad is not None]
            params += own
            states += [training.optimizer.state[p] for p in own]
            decays += len(own) * [1 - group["lr"] * group["weight_decay"]]
            bias_corrections2_sqrt += len(own) * [math.sqrt(1 - beta2**step)]
            step_sizes += len(own) * [-group["lr"] / (1 - beta1**step)]
        counts.append(len(params) - before)
    grads = [p.grad for p in params]
    _clip(grads, counts, [training.max_grad_norm for training in trainings])
    exp_avgs, exp_avg_sqs, steps = (
        [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
    )
    torch._foreach_add_(steps, 1)
    torch._foreach_mul_(params, decays)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, bias_corrections2_sqrt)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(params, exp_avgs, denominators, step_sizes)


def _clip(grads: list[torch.Tensor], counts: list[int], max_norms: Sequence[float]) -> None:
    """Clip each run's gradients to its norm; `counts[i]` tensors of the list belong to run i."""
    norms = torch.stack(torch._foreach_norm(grads)).split(counts)
    start = 0
    for own, count, max_norm in zip(norms, counts, max_norms, strict=True):
        scale = (max_norm / (torch.linalg.vector_norm(own) + EPSILON)).clamp(max=1.0)
        torch._foreach_mul_(grads[start : start + count], scale)
        start += count
