"""The adapted linear layer: y = W x + s B (A x), with A and B made as its method says; in CondLoRA from W.

Notation: W is the frozen weight as `nn.Linear` has it, (out, in); A is (r, in), B (out, r), s the scaling.
`condlora.tuner.tensors` says which layer holds the tensors that A and B are made from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import quantization_extra_repr, resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner import merging
from condlora.tuner.checks import check_call
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.kept import Kept, kept_factors, serve_more_calls
from condlora.tuner.methods.base import Method, Pair
from condlora.tuner.tensors import Common, Held, add_tensors


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """The shape (out, in) of a linear layer's weight; a quantised weight is stored in another."""
    if resolve_quantization_backend(module) is not None:
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]  # any class of a backend's
    assert isinstance(module.weight, torch.Tensor)
    first, second = module.weight.shape
    return (second, first) if isinstance(module, Conv1D) else (first, second)


class CondLoraLayer(nn.Module, BaseTunerLayer):
    """What PEFT expects of an adapted layer, over tensors that it may share with other layers."""

    settings = (
        "r", "lora_alpha", "scaling", "use_rslora", "use_dora", "method", "group", "tensors", "next_layer", "drawn_rank",
        "lora_dropout", "made",
    )  # fmt: skip

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        # By adapter and name: the dictionary with the tensor, of this layer or of the layer that holds it.
        self.tensors: dict[str, dict[str, Held]] = {}
        # The layer whose weight is read, for methods that read another layer's.
        self.next_layer: dict[str, CondLoraLayer] = {}
        self.drawn_rank: dict[str, int] = {}  # in training, for nested methods
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self.use_dora: dict[str, bool] = {}
        self.method: dict[str, Method] = {}
        self.group: dict[str, str] = {}
        self.lora_dropout = nn.ModuleDict({})
        self.made: dict[str, Kept] = {}  # A and B in evaluation, see `condlora.tuner.kept`
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.is_conv1d = isinstance(self.get_base_layer(), Conv1D)
        self.out_features, self.in_features = weight_shape(self.get_base_layer())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # The base layer's weight, and the state of an 8-bit layer, while adapters are merged.
        self.pretrained: tuple[nn.Parameter, dict[str, Any] | None] | None = None
        self._dequantised: torch.Tensor | None = None

    @property
    def adapter_layer_names(self) -> tuple[str, ...]:  # type: ignore[override]  # a class attribute in PEFT
        """The attributes with the trained tensors that this layer holds; they depend on its adapters."""
        return tuple(n for n, held in self._modules.items() if isinstance(held, nn.ParameterDict))

    @property
    def other_param_names(self) -> tuple[str, ...]:  # type: ignore[override]  # a class attribute in PEFT
        derived = (n for n, held in self._modules.items() if isinstance(held, BufferDict))
        return (*self.settings, *derived)

    def _get_available_adapters(self) -> set[str]:
        return set(self.group)

    def theta(self, adapter_name: str) -> tuple[nn.Parameter, ...]:
        """The trained tensors that A and B are made from, whichever layer holds them; in CondLoRA theta_A and theta_B."""
        return tuple(
            held[adapter_name]
            for held in self.tensors[adapter_name].values()
            if isinstance(held, nn.ParameterDict)
        )

    def b_side(self) -> list[nn.Parameter]:
        """The trained tensors that B is made from, of all adapters: LoRA+ gives them a higher learning rate."""
        return [
            held[adapter_name]
            for adapter_name, tensors in self.tensors.items()
            for name, held in tensors.items()
            if name in self.method[adapter_name].b_side and isinstance(held, nn.ParameterDict)
        ]

    def frozen_weight(self) -> torch.Tensor:
        """W (out, in): the pretrained weight, also while adapters are merged into the base layer.

        A quantised weight is dequantised once and kept: 2 or 4 bytes an element, in addition to the quantised one.
        """
        if self.quantization_backend is not None:
            if self._dequantised is None:
                W = self.quantization_backend.get_base_weight(self.get_base_layer())
                self._dequantised = W.detach()
            return self._dequantised
        weight = self.get_base_layer().weight if self.pretrained is None else self.pretrained[0]
        assert isinstance(weight, torch.Tensor)
        return weight.T if self.is_conv1d else weight

    def read_weight(self, adapter_name: str) -> torch.Tensor:
        """The frozen weight that the method is given: that of this layer, or of the next one in a control."""
        return self.next_layer.get(adapter_name, self).frozen_weight()

    def materialise(self, adapter_name: str = "default") -> Pair:
        """A (r, in) and B (out, r) of this layer, in the dtype of the trained tensors; differentiable."""
        W, tensors = self._sources(adapter_name)
        return self.method[adapter_name].factors(W, **tensors)

    def penalty(self, adapter_name: str) -> torch.Tensor:
        """The penalty of this layer in the loss, for methods that have one."""
        W, tensors = self._sources(adapter_name)
        return self.method[adapter_name].penalty(W, **tensors)

    def _sources(self, adapter_name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What A and B are made from: W, and the tensors by name, on the device of W."""
        W, held = self.frozen_weight(), self.tensors[adapter_name]
        tensors = {name: of[adapter_name].to(W.device) for name, of in held.items()}
        if any(isinstance(of, BufferDict) for of in held.values()):
            dtype = self.theta(adapter_name)[0].dtype
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        if adapter_name in self.next_layer:
            W = self.read_weight(adapter_name).to(W.device)
        return W, tensors

    def cut(
        self, A: torch.Tensor, B: torch.Tensor, adapter_name: str, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The leading `rank` ranks of A and B, and the scaling of an adapter of that rank."""
        ratio = self.r[adapter_name] / rank
        scaling = self.scaling[adapter_name] * (
            math.sqrt(ratio) if self.use_rslora[adapter_name] else ratio
        )
        return A[:rank], B[:, :rank], scaling

    def gain(self, adapter_name: str, update: torch.Tensor) -> torch.Tensor:
        """DoRA's factor (out,) on the rows of W + s B A, of which `update` is s B A.

        Source: DoRA (Liu et al. 2024), equation 5, and section 4.3 for the norm that has no gradient.
        """
        W = self.frozen_weight()
        norm = torch.linalg.norm(W.to(update.dtype) + update, dim=1).detach()
        return torch.div(self.magnitude(adapter_name).to(W.device), norm)

    def magnitude(self, adapter_name: str) -> torch.Tensor:
        """DoRA's trained norm (out,) of each row of the adapted weight."""
        found = self.condlora_magnitude[adapter_name]  # type: ignore[index]  # an nn.ParameterDict
        assert isinstance(found, torch.Tensor)
        return found

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """What merging adds to the base layer's weight, see `condlora.tuner.merging.delta_weight`."""
        return merging.delta_weight(self, adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update of the active adapters to the base weight, see `condlora.tuner.merging.merge`."""
        merging.merge(self, safe_merge, adapter_names)

    def unmerge(self) -> None:
        """Put the pretrained weight back, see `condlora.tuner.merging.unmerge`."""
        merging.unmerge(self)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's own also casts to the base layer's dtype, which would round float32 maps that were loaded.
        base = self.get_base_layer()
        device = device or self._get_base_layer_device_and_dtype(base)[0]  # type: ignore[no-untyped-call]  # untyped in PEFT
        for held in (getattr(self, name) for name in self.adapter_layer_names):
            if adapter_name in held and held[adapter_name].device.type != "meta":
                held[adapter_name].data = held[adapter_name].data.to(device)


class Linear(CondLoraLayer):
    """CondLoRA on `nn.Linear`, GPT-2's `Conv1D` or a quantised linear layer."""

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer)
        self._active_adapter = adapter_name

    def update_layer(
        self,
        adapter_name: str,
        *,
        r: int,
        lora_alpha: float,
        group: str,
        path: str,
        config: CondLoraConfig,
        holder: CondLoraLayer | None,
        common: Common,
    ) -> None:
        """Add an adapter to this layer; for the other arguments see `condlora.tuner.tensors.add_tensors`."""
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.use_rslora[adapter_name] = config.use_rslora
        self.use_dora[adapter_name] = config.use_dora
        self.method[adapter_name] = method_of(config)
        self.group[adapter_name] = group
        self.lora_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        )
        add_tensors(
            self, adapter_name, config, group=group, path=path, holder=holder, common=common
        )

    def train(self, mode: bool = True) -> Linear:
        self.made.clear()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Linear:
        """As for any module (`.to`, `.half`); the weights that the layer keeps are moved too."""
        self.made.clear()
        if self._dequantised is not None:
            self._dequantised = fn(self._dequantised)
        if self.pretrained is not None and self.quantization_backend is None:
            self.pretrained[0].data = fn(self.pretrained[0].data)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        return self

    def forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        if self.merged and adapter_names is not None:
            raise AdapterError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        if self.merged and self.disable_adapters:
            self.unmerge()
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        if adapter_names is not None:
            return self._add_by_row(result, x, adapter_names)
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.group:
                result = result + self._update(x, name)
        return result.to(dtype)

    def _update(self, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """s B (A x) of one adapter, or with DoRA all that it adds."""
        check_call(self, x, adapter_name)
        method, scaling = self.method[adapter_name], self.scaling[adapter_name]
        use_dora = self.use_dora[adapter_name]
        is_short = x[..., :1].numel() < self.r[adapter_name]  # making A and B would take more work
        if is_short and method.can_train_jointly and not use_dora:
            added = self._product(x, adapter_name)
            if added is not None:
                return added * scaling
        A, B = kept_factors(self, adapter_name)
        if self.training and method.is_nested:
            if adapter_name not in self.drawn_rank:
                raise AdapterError(
                    "In training the ranks of this method are drawn in the forward pass of the whole model that was "
                    "adapted, and a part of it was called alone: call the model."
                )
            A, B, scaling = self.cut(A, B, adapter_name, self.drawn_rank[adapter_name])
        x = self.lora_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        added = F.linear(F.linear(x, A), B) * scaling
        if use_dora:
            gain = self.gain(adapter_name, scaling * (B @ A))
            added = gain * added + (gain - 1) * F.linear(x, self.frozen_weight().to(x.dtype))
        return added

    def _product(self, x: torch.Tensor, adapter_name: str) -> torch.Tensor | None:
        """B (A x) without A and B, where A and B would be made for this call alone."""
        if serve_more_calls(self, adapter_name):
            return None
        W, tensors = self._sources(adapter_name)
        x = self._cast_input_dtype(x, self.theta(adapter_name)[0].dtype)
        return self.method[adapter_name].product(W, self.lora_dropout[adapter_name](x), **tensors)

    def _add_by_row(
        self, result: torch.Tensor, x: torch.Tensor, adapter_names: list[str]
    ) -> torch.Tensor:
        """Each row of the batch with its own adapter; "__base__" means none."""
        if len(adapter_names) != len(x):
            raise AdapterError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively. To generate, pass num_beams as an argument and not in "
                "a generation_config; num_return_sequences above 1 is not supported with adapter_names."
            )
        for name in sorted(set(adapter_names) & set(self.group)):
            rows = [row for row, wanted in enumerate(adapter_names) if wanted == name]
            result = result.index_add(
                0,
                torch.tensor(rows, device=result.device),
                self._update(x[rows], name).to(result.dtype),
            )
        return result

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)

    def __repr__(self) -> str:
        return "condlora." + super().__repr__()
