"""The variant of CondLoRA in the authors' released code that adds a trained matrix to A: `conditional_lora_x_type1`.

The paper does not mention it. The code (commit 07589eb, condlora/layer.py and model.py) computes B (A x + c theta_x x) with
one theta_x (r, in) for all layers and module kinds, which starts at zero; c is `lora_x_scaling`, 0.5 in the scripts. This equals
A = theta_A W^T + c theta_x, so the adapter is merged and exported like CondLoRA's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Pair, Tensors, Trained
from condlora.tuner.methods.condlora import Conditional, make_factors

TYPE2 = (
    "It multiplies the input by the state of the first token, so the update differs between examples and cannot be merged "
    "or exported"
)


@dataclass(frozen=True)
class CondLoraX(Conditional):
    """Names of options are those of the authors' config. use_x: "type1". lora_x_scaling: c, above 0 and at most 1."""

    use_x: str = "type1"
    lora_x_scaling: float = 0.5

    title = "CondLoRA with theta_x (the authors' type 1)"
    arxiv = "2403.14946"

    def __post_init__(self) -> None:
        if self.use_x == "type2":
            raise AdapterError(f"use_x is 'type2', which is not supported: use type1. {TYPE2}.")
        if self.use_x != "type1":
            raise AdapterError(f"use_x is {self.use_x!r}: the only supported value is type1.")
        if not isinstance(self.lora_x_scaling, int | float) or not 0 < self.lora_x_scaling <= 1:
            raise AdapterError(
                f"lora_x_scaling is {self.lora_x_scaling!r}: give a number above 0 and at most 1."
            )

    @property
    def formula(self) -> str:
        A, B = super().formula.split(", ")
        return f"{A} + {self.lora_x_scaling:g} theta_x, {B}, with one theta_x for all layers"

    def tensors(self, W: torch.Tensor, r: int) -> Tensors:
        return self.maps(W, r) | {"theta_x": Trained((r, W.shape[1]), is_common=True)}

    def factors(
        self, W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor, theta_x: torch.Tensor
    ) -> Pair:
        A, B = make_factors(W, theta_A, theta_B, self.form)
        return A + self.lora_x_scaling * theta_x, B
