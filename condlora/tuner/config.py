"""The configuration of CondLoRA as a PEFT method; names are those of `peft.LoraConfig` where it has the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peft import PeftConfig

from condlora.errors import AdapterError

PEFT_TYPE = "CONDLORA"  # a plain string: PEFT's enum of methods stays untouched

FORMS = ("code", "literal", "consistent")


@dataclass
class CondLoraConfig(PeftConfig):
    """CondLoRA (Kim et al. 2024): A and B of every layer made from its own frozen weight W.

    One pair of linear maps theta_A, theta_B serves all target modules whose path differs only in the
    layer index; the update is `(lora_alpha / r) B A`. Defaults are the paper's (Table 1).

    Args:
        r: rank of the update, at most the smaller dimension of each target weight.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        lora_dropout: dropout on the input of A. The frozen layer's own input is not dropped.
        form: how A (r, in) and B (out, r) come from W (out, in):
            "code"       A = theta_A W^T, B = W theta_B^T    the released code; square W only
            "literal"    A = theta_A W^T, B = W^T theta_B^T  equations 5 and 6 with W0 = W; square W only
            "consistent" A = theta_A W,   B = W theta_B^T    equations 5 and 6 with W0 = W^T; any shape
        target_modules: names (suffixes), a regular expression, or "all-linear"; the default of the
            architecture is PEFT's for LoRA.
        exclude_modules: names or a regular expression of modules to leave alone.
        modules_to_save: modules trained and saved whole beside the adapter, such as a classifier head.
        layers_to_transform, layers_pattern: restrict the adapter to these layers, as in `LoraConfig`.
        init_weights: theta_A Kaiming-uniform and theta_B zero, so that the adapted model starts as the
            frozen one; False draws theta_B like theta_A (for tests).
    """

    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    form: Literal["code", "literal", "consistent"] = "code"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_weights: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                setattr(self, name, set(value))
        if self.form not in FORMS:
            raise AdapterError(f"Unknown form {self.form!r}: choose one of {', '.join(FORMS)}.")
        if self.r < 1:
            raise AdapterError(f"The rank r is {self.r}: give a positive whole number.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise AdapterError(
                "layers_to_transform needs target_modules as a list of names: "
                "list them, or put the layers into the regular expression."
            )
