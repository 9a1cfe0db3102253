"""AdaLoRA's schedule (Zhang et al. 2023, arXiv 2303.10512, sections 3.2 and 3.3): which entries of Lambda are kept at a step.

All layers compete for one budget. The importance of a triplet is that of its entry of Lambda. AdaLoRA adds the mean
importance of the column of P and the row of Q. Here these are made from W by shared maps and have no gradient of their own.
To first order this loses nothing: entry, column and row enter as a product, so the loss changes by lambda dL/dlambda
whichever of the three is set to zero.
"""

from __future__ import annotations

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.cond_adalora import CondAdaLora

Entries = dict[str, torch.nn.Parameter]  # Lambda (r, 1) of every layer, by its name in the model


class RankAllocator:
    """The importance of every Lambda, (r, 1) by its name; names of attributes as in PEFT's.

    exp_avg_ipt: the sensitivity |lambda dL/dlambda|, smoothed (equation 9). exp_avg_unc: its uncertainty (equation 10).
    """

    def __init__(self) -> None:
        self.exp_avg_ipt: dict[str, torch.Tensor] = {}
        self.exp_avg_unc: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, entries: Entries, method: CondAdaLora, step: int) -> None:
        """Update the importance of the entries after an optimizer step, counted from 1, and prune by the schedule.

        Between `tinit` and the end of pruning, at `total_step - tfinal`, a pruned entry may become nonzero again. After
        it the same entries stay zero.

        Raises:
            AdapterError: there is no schedule, it is too short, the target is above the rank, or gradients are gone.
        """
        total_step = _check(entries, method)
        end, highest = total_step - method.tfinal, sum(map(len, entries.values()))
        if step < end:
            self._update_importance(entries, method)
        budget = method.target_r * len(entries)
        if method.tinit < step < end:
            left = 1 - (step - method.tinit) / (end - method.tinit)
            budget += int((highest - budget) * left**3)  # equation 12
        if step >= end or (step > method.tinit and step % method.deltaT == 0):
            self._prune(entries, budget)

    def _update_importance(self, entries: Entries, method: CondAdaLora) -> None:
        for name, entry in entries.items():
            # The gradient is not finite at a step that the gradient scaler of fp16 skipped.
            assert entry.grad is not None
            now = torch.nan_to_num((entry * entry.grad).abs(), nan=0.0, posinf=0.0)
            none = torch.zeros_like(now)
            mean = torch.lerp(now, self.exp_avg_ipt.get(name, none), method.beta1)
            deviation = (now - mean).abs()
            self.exp_avg_unc[name] = torch.lerp(
                deviation, self.exp_avg_unc.get(name, none), method.beta2
            )
            self.exp_avg_ipt[name] = mean

    def _prune(self, entries: Entries, budget: int) -> None:
        # Equation 11; at equal importance the earlier layer's entry is kept, so that the budget is met exactly.
        importance = [self.exp_avg_ipt[name] * self.exp_avg_unc[name] for name in entries]
        order = torch.cat(importance).flatten().argsort(descending=True, stable=True)
        is_pruned = torch.ones_like(order, dtype=torch.bool)
        is_pruned[order[:budget]] = False
        of_each = torch.split(is_pruned, [len(entry) for entry in entries.values()])
        for entry, pruned in zip(entries.values(), of_each, strict=True):
            entry.masked_fill_(pruned[:, None], 0.0)


def _check(entries: Entries, method: CondAdaLora) -> int:
    """The total number of steps, if the schedule and the entries are as pruning needs them."""
    if method.total_step is None or method.total_step - method.tfinal - method.tinit < 2:
        raise AdapterError(
            "The schedule has no step to prune in: set total_step, tinit and tfinal in the config's options, in steps."
        )
    mean = sum(map(len, entries.values())) / len(entries)
    if method.target_r > mean:
        raise AdapterError(
            f"target_r is {method.target_r} and the mean rank to start from {mean:g}: choose a lower target_r or a "
            "higher r."
        )
    if any(entry.grad is None for entry in entries.values()):
        raise AdapterError(
            "The gradients are gone: call update_and_allocate after optimizer.step() and before zero_grad()."
        )
    return method.total_step
