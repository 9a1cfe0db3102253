"""The adapted linear layer: y = W x + s B (A x), with A and B made as its method says; CondLoRA's is from W.

Notation: W is the frozen weight as `nn.Linear` keeps it, (out, in); A is (r, in), B (out, r), s the scaling.
Of the layers that share a tensor (CondLoRA's maps theta_A and theta_B) the first holds it, in its
`condlora_theta_A`; the others refer to it. So a state dict holds each map once, with no tuner needed to find it,
and a loaded or replaced parameter is seen by every layer.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.quantization_utils import quantization_extra_repr, resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner import merging
from condlora.tuner.config import method_of
from condlora.tuner.methods.base import Derived, Method, Trained, kaiming

Held = nn.ParameterDict | BufferDict  # one tensor by adapter name, trained or derived


def _processes() -> int:
    is_spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_spread else 1


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """The shape (out, in) of a linear layer's weight; a quantised weight is stored in another."""
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
    elif resolve_quantization_backend(module) is not None:
        out_features, in_features = module.out_features, module.in_features
    else:
        out_features, in_features = module.weight.shape
    return out_features, in_features


class CondLoraLayer(BaseTunerLayer):
    """What PEFT expects of an adapted layer, over tensors that it may share with others."""

    settings = (
        "r",
        "lora_alpha",
        "scaling",
        "use_rslora",
        "use_dora",
        "method",
        "group",
        "tensors",
        "next_layer",
        "drawn_rank",
        "lora_dropout",
        "made",
    )

    def __init__(self, base_layer: nn.Module):
        self.base_layer = base_layer
        # By adapter and name: the dictionary with the tensor, this layer's or that of the layer that holds it.
        self.tensors: dict[str, dict[str, Held]] = {}
        # For methods that read the weight of another layer.
        self.next_layer: dict[str, CondLoraLayer] = {}
        self.drawn_rank: dict[str, int] = {}  # in training, for nested methods
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self.use_dora: dict[str, bool] = {}
        self.method: dict[str, Method] = {}
        self.group: dict[str, str] = {}
        self.lora_dropout = nn.ModuleDict({})
        self.made: dict[str, tuple] = {}  # A and B made at inference, see `_factors`
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.is_conv1d = isinstance(self.get_base_layer(), Conv1D)
        self.out_features, self.in_features = weight_shape(self.get_base_layer())
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.pretrained: tuple | None = None  # the base layer's weight while adapters are merged
        self._dequantised: torch.Tensor | None = None

    @property
    def adapter_layer_names(self) -> tuple[str, ...]:
        """The attributes with what is trained and held here; they come with the adapters that need them."""
        return tuple(n for n, held in self._modules.items() if isinstance(held, nn.ParameterDict))

    @property
    def other_param_names(self) -> tuple[str, ...]:
        derived = (n for n, held in self._modules.items() if isinstance(held, BufferDict))
        return (*self.settings, *derived)

    def _held(self, attribute: str, kind: type[Held]) -> Held:
        if not hasattr(self, attribute):
            setattr(self, attribute, kind())
        held: Held = getattr(self, attribute)
        return held

    def _get_available_adapters(self) -> set[str]:
        return set(self.group)

    def theta(self, adapter_name: str) -> tuple[nn.Parameter, ...]:
        """The trained tensors that make this layer's factors, wherever they are held: theta_A and theta_B."""
        return tuple(
            held[adapter_name]
            for held in self.tensors[adapter_name].values()
            if isinstance(held, nn.ParameterDict)
        )

    def b_side(self) -> list[nn.Parameter]:
        """The trained tensors that make B, of all adapters: those with a higher learning rate in LoRA+."""
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
        return weight.T if self.is_conv1d else weight

    def read_weight(self, adapter_name: str) -> torch.Tensor:
        """The frozen weight that the method is given: this layer's, or the next one's in a control."""
        return self.next_layer.get(adapter_name, self).frozen_weight()

    def materialise(self, adapter_name: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of this layer, in the dtype of what is trained; differentiable."""
        W, tensors = self._sources(adapter_name)
        return self.method[adapter_name].factors(W, **tensors)

    def penalty(self, adapter_name: str) -> torch.Tensor:
        """What this layer adds to the loss, for methods that have a penalty."""
        W, tensors = self._sources(adapter_name)
        return self.method[adapter_name].penalty(W, **tensors)

    def _sources(self, adapter_name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What A and B are made from: W, and the tensors by name, where W is."""
        W, held = self.frozen_weight(), self.tensors[adapter_name]
        tensors = {name: of[adapter_name].to(W.device) for name, of in held.items()}
        if any(isinstance(of, BufferDict) for of in held.values()):
            dtype = self.theta(adapter_name)[0].dtype
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        if adapter_name in self.next_layer:
            W = self.read_weight(adapter_name).to(W.device)
        return W, tensors

    def _read(self, adapter_name: str) -> tuple[torch.Tensor, ...]:
        """The tensors that A and B change with."""
        return (*self.theta(adapter_name), self.read_weight(adapter_name))

    def _keeps_factors(self, adapter_name: str) -> bool:
        """Whether A and B serve more than one call: in evaluation, where no gradient passes through them."""
        has_gradient = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in self._read(adapter_name)
        )
        return not self.training and not has_gradient

    def _factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B for the forward pass: made in every call in training, once in evaluation.

        Kept while neither maps nor W are written to or replaced, as torch's version counters tell; `train()`
        and `eval()` forget them, since writing through `.data` moves no counter.
        """
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_traced or not self._keeps_factors(adapter_name):
            return self.materialise(adapter_name)
        sources = self._read(adapter_name)
        device = sources[0].device.type  # autocast decides what dtype A and B come out in
        state = [torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        try:
            state += [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in sources]
        except (
            RuntimeError
        ):  # made in inference mode, or seen through torch.func: nothing to tell by
            return self.materialise(adapter_name)
        kept_state, kept, _ = self.made.get(adapter_name, (None, None, None))
        if state != kept_state:
            kept = self.materialise(adapter_name)
            # With the storages that they were made of: freed, these could give others their address, and so their state.
            self.made[adapter_name] = (state, kept, [tensor.detach() for tensor in sources])
        return kept

    def cut(self, A, B, adapter_name: str, rank: int):
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
        return self.condlora_magnitude[adapter_name].to(W.device) / norm

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

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device=None) -> None:
        # PEFT's own also casts to the base layer's dtype, which would round float32 maps that were loaded.
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        for held in (getattr(self, name) for name in self.adapter_layer_names):
            if adapter_name in held and held[adapter_name].device.type != "meta":
                held[adapter_name].data = held[adapter_name].data.to(device)


class Linear(nn.Module, CondLoraLayer):
    """CondLoRA on `nn.Linear`, GPT-2's `Conv1D` or a linear layer that bitsandbytes quantised."""

    def __init__(self, base_layer: nn.Module, adapter_name: str):
        super().__init__()
        CondLoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name

    def update_layer(
        self,
        adapter_name: str,
        *,
        r: int,
        lora_alpha: int,
        group: str,
        path: str,
        config,
        holder: CondLoraLayer | None,
    ) -> None:
        """Put one more adapter on this layer.

        `holder` is the first layer of its sharing group, None if this is; `path` its place in the model.
        """
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
        self.tensors[adapter_name] = {}
        tensors = self.method[adapter_name].tensors(self.frozen_weight(), r)
        for name, tensor in tensors.items():
            if tensor.is_shared and holder is not None:
                self.tensors[adapter_name][name] = holder.tensors[adapter_name][name]
            elif isinstance(tensor, Trained):
                self._hold_trained(adapter_name, name, tensor, config.init_weights)
            else:
                self._hold_derived(adapter_name, name, tensor, group if tensor.is_shared else path)

        if config.use_dora:
            magnitude = torch.linalg.norm(self.frozen_weight().detach(), dim=1)
            held = self._held("condlora_magnitude", nn.ParameterDict)
            held[adapter_name] = nn.Parameter(magnitude)

    def _hold_trained(self, adapter_name: str, name: str, tensor: Trained, init: bool) -> None:
        W = self.frozen_weight()
        values = torch.empty(tensor.shape, dtype=W.dtype, device=W.device)
        start = tensor.start if init else kaiming
        held = self._held(f"condlora_{name}", nn.ParameterDict)
        held[adapter_name] = nn.Parameter(start(values))
        self.tensors[adapter_name][name] = held

    @torch.no_grad()  # the base model is frozen only after this
    def _hold_derived(self, adapter_name: str, name: str, tensor: Derived, place: str) -> None:
        W = self.frozen_weight()
        held = self._held(f"condlora_derived_{name}", BufferDict)
        self.tensors[adapter_name][name] = held
        if not W.is_meta:
            generator = self.method[adapter_name].generator(f"{place}/{name}")
            with torch.device("cpu"):  # where it draws, whatever the default device
                values = tensor.make(generator)
            held[adapter_name] = values.to(W.device, torch.promote_types(W.dtype, torch.float32))

    def train(self, mode: bool = True):
        self.made.clear()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        """As for any module (`.to`, `.half`), and the weights that the layer keeps move with it."""
        self.made.clear()
        if self._dequantised is not None:
            self._dequantised = fn(self._dequantised)
        if self.pretrained is not None and self.quantization_backend is None:
            self.pretrained[0].data = fn(self.pretrained[0].data)
        return super()._apply(fn, recurse)

    def forward(self, x: torch.Tensor, *args, adapter_names: list[str] | None = None, **kwargs):
        if self.merged and adapter_names is not None:
            raise AdapterError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        if self.merged and self.disable_adapters:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
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
        if self.training and not torch.is_grad_enabled() and _processes() > 1:
            warnings.warn(
                "A forward pass in training without gradients: if this is gradient checkpointing under DDP, set "
                '{"use_reentrant": False}, or DDP averages the gradient of a shared map before every layer has '
                "added to it.",
                stacklevel=2,
            )
        if self.frozen_weight().is_meta and not x.is_meta:
            raise AdapterError(
                "CondLoRA needs the base model's weights where it runs, and accelerate has offloaded them: load the "
                "model whole, in half precision or quantised, or export the adapter to LoRA."
            )
        scaling = self.scaling[adapter_name]
        is_short = x[..., :1].numel() < self.r[adapter_name]  # making A and B would take more work
        if (
            is_short
            and self.method[adapter_name].can_train_jointly
            and not self.use_dora[adapter_name]
        ):
            added = self._product(x, adapter_name)
            if added is not None:
                return added * scaling
        A, B = self._factors(adapter_name)
        if self.training and self.method[adapter_name].is_nested:
            if adapter_name not in self.drawn_rank:
                raise AdapterError(
                    "In training the ranks of this method are drawn in the forward pass of the whole model that was "
                    "adapted, and a part of it was called alone: call the model."
                )
            A, B, scaling = self.cut(A, B, adapter_name, self.drawn_rank[adapter_name])
        x = self.lora_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        added = F.linear(F.linear(x, A), B) * scaling
        if self.use_dora[adapter_name]:
            gain = self.gain(adapter_name, scaling * (B @ A))
            added = gain * added + (gain - 1) * F.linear(x, self.frozen_weight().to(x.dtype))
        return added

    def _product(self, x: torch.Tensor, adapter_name: str) -> torch.Tensor | None:
        """B (A x) without A and B, where A and B would be made for this call alone."""
        if self._keeps_factors(adapter_name):
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
