"""The adapted linear layer: y = W x + s B (A x), with A and B made from W by maps shared between layers.

Notation: W is the frozen weight as `nn.Linear` keeps it, (out, in); A is (r, in), B (out, r), s = alpha / r.
The maps live once on the tuner (`condlora_theta_A`, `condlora_theta_B` in `model.py`); a layer only refers to
them, so that a state dict holds each map once and a loaded or replaced parameter is seen by every layer.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig

Maps = nn.ModuleDict  # adapter name -> nn.ParameterDict(group -> theta)


def make_factors(W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor, form: str):
    """A (r, in) and B (out, r) of one layer from its frozen weight W (out, in).

    theta_A and theta_B are (r, in) or (r, out), see `theta_shapes`. Source: equations 5 and 6 of the
    paper; "code" is what the authors' released layer computes.
    """
    A = theta_A @ W if form == "consistent" else theta_A @ W.T
    B = W.T @ theta_B.T if form == "literal" else W @ theta_B.T
    return A, B


def theta_shapes(out_features: int, in_features: int, r: int, form: str):
    """Shapes of theta_A and theta_B for a weight of shape (out, in); the inverse reading of `make_factors`."""
    shape_A = (r, out_features if form == "consistent" else in_features)
    shape_B = (r, out_features if form == "literal" else in_features)
    return shape_A, shape_B


class CondLoraLayer(BaseTunerLayer):
    """What PEFT expects of an adapted layer, over maps that the layer does not own."""

    adapter_layer_names = ("condlora_theta_A", "condlora_theta_B")
    other_param_names = ("r", "lora_alpha", "scaling", "form", "group", "lora_dropout")

    def __init__(self, base_layer: nn.Module, theta_A: Maps, theta_B: Maps):
        self.base_layer = base_layer
        # In a tuple, so that nn.Module does not register the shared maps once more in every layer.
        self._shared_maps = (theta_A, theta_B)
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.form: dict[str, str] = {}
        self.group: dict[str, str] = {}
        self.lora_dropout = nn.ModuleDict({})
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._original_weight: torch.Tensor | None = None  # W while an adapter is merged into it

    @property
    def condlora_theta_A(self) -> dict[str, nn.Parameter]:
        """theta_A of each adapter on this layer."""
        return {name: self._shared_maps[0][name][group] for name, group in self.group.items()}

    @property
    def condlora_theta_B(self) -> dict[str, nn.Parameter]:
        """theta_B of each adapter on this layer."""
        return {name: self._shared_maps[1][name][group] for name, group in self.group.items()}

    def _get_available_adapters(self) -> set[str]:
        return set(self.group)

    def update_layer(self, adapter_name: str, group: str, config: CondLoraConfig) -> None:
        """Put one more adapter on this layer; its maps must be on the tuner already."""
        self.group[adapter_name] = group
        self.r[adapter_name] = config.r
        self.lora_alpha[adapter_name] = config.lora_alpha
        self.scaling[adapter_name] = config.lora_alpha / config.r
        self.form[adapter_name] = config.form
        self.lora_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        )
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def frozen_weight(self) -> torch.Tensor:
        """W (out, in): the pretrained weight, also while adapters are merged into the base layer."""
        weight = self._original_weight
        if weight is None:
            weight = self.get_base_layer().weight
        return weight.T if isinstance(self.get_base_layer(), Conv1D) else weight

    def materialise(self, adapter_name: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of this layer, in the dtype of the maps; differentiable."""
        theta_A, theta_B = self.condlora_theta_A[adapter_name], self.condlora_theta_B[adapter_name]
        W = self.frozen_weight().to(theta_A.dtype)
        return make_factors(W, theta_A, theta_B, self.form[adapter_name])

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """What merging adds to the base layer's weight, in that weight's own layout: s B A."""
        A, B = self.materialise(adapter_name)
        delta = self.scaling[adapter_name] * (B @ A)
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


class Linear(nn.Module, CondLoraLayer):
    """CondLoRA on `nn.Linear` or GPT-2's `Conv1D`."""

    def __init__(
        self,
        base_layer: nn.Module,
        theta_A: Maps,
        theta_B: Maps,
        *,
        adapter_name: str,
        group: str,
        config: CondLoraConfig,
    ):
        super().__init__()
        CondLoraLayer.__init__(self, base_layer, theta_A, theta_B)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, group, config)

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name not in self.group:
                continue
            A, B = self.materialise(name)
            dropped = self.lora_dropout[name](self._cast_input_dtype(x, A.dtype))
            result = result + self.scaling[name] * F.linear(F.linear(dropped, A), B)
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add s B A of the (active) adapters to the base weight.

        The pretrained tensor is kept until `unmerge`, which puts that very tensor back: B A is made from
        W, so subtracting an update recomputed from the merged weight would not restore it.

        Raises:
            AdapterError: `safe_merge` is set and the merged weight is not finite.
        """
        weight = self.get_base_layer().weight
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.group:
                continue
            merged = weight.data + self.get_delta_weight(name).detach().to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise AdapterError(
                    f"Merging adapter {name!r} gives values that are not finite: its maps are broken, train it again."
                )
            if self._original_weight is None:
                self._original_weight = weight.data
            weight.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the pretrained weight back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.get_base_layer().weight.data = self._original_weight
        self._original_weight = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "condlora." + super().__repr__()
