"""The adapted linear layer: y = W x + s B (A x), with A and B made from W by maps shared between layers.

Notation: W is the frozen weight as `nn.Linear` keeps it, (out, in); A is (r, in), B (out, r), s the scaling.
Of the layers that share a pair of maps the first holds them, in its `condlora_theta_A` and `condlora_theta_B`;
the others refer to them. So a state dict holds each map once, with no tuner needed to find it, and a loaded or
replaced parameter is seen by every layer.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.quantization_utils import resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError

Maps = tuple[nn.ParameterDict, nn.ParameterDict]  # theta_A and theta_B by adapter name


def make_factors(W: torch.Tensor, theta_A: torch.Tensor, theta_B: torch.Tensor, form: str):
    """A (r, in) and B (out, r) of one layer from its frozen weight W (out, in).

    theta_A and theta_B are (r, in) or (r, out), see `theta_shapes`. Source: equations 5 and 6 of the
    paper; "code" is what the authors' released layer computes.
    """
    A = theta_A @ W if form == "consistent" else theta_A @ W.T
    # B as the transpose of a product with theta_B in front: with gradients a third faster than W theta_B^T.
    B = (theta_B @ W if form == "literal" else theta_B @ W.T).T
    return A, B


def theta_shapes(out_features: int, in_features: int, r: int, form: str):
    """Shapes of theta_A and theta_B for a weight of shape (out, in); the inverse reading of `make_factors`."""
    shape_A = (r, out_features if form == "consistent" else in_features)
    shape_B = (r, out_features if form == "literal" else in_features)
    return shape_A, shape_B


def _processes() -> int:
    is_spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_spread else 1


class CondLoraLayer(BaseTunerLayer):
    """What PEFT expects of an adapted layer, over maps that it may share with others."""

    adapter_layer_names = ("condlora_theta_A", "condlora_theta_B")
    other_param_names = (
        "r",
        "lora_alpha",
        "scaling",
        "form",
        "group",
        "maps",
        "lora_dropout",
        "made",
    )

    def __init__(self, base_layer: nn.Module):
        self.base_layer = base_layer
        self.condlora_theta_A = nn.ParameterDict({})  # those that this layer holds
        self.condlora_theta_B = nn.ParameterDict({})
        self.maps: dict[
            str, Maps
        ] = {}  # by adapter: the dictionaries of the layer that holds its maps
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.form: dict[str, str] = {}
        self.group: dict[str, str] = {}
        self.lora_dropout = nn.ModuleDict({})
        self.made: dict[str, tuple] = {}  # A and B made at inference, see `_factors`
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.is_conv1d = isinstance(self.get_base_layer(), Conv1D)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._pretrained: tuple | None = None  # the base layer's weight while adapters are merged
        self._dequantised: torch.Tensor | None = None

    def _get_available_adapters(self) -> set[str]:
        return set(self.group)

    def theta(self, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """theta_A and theta_B that make this layer's factors, wherever they are held."""
        theta_A, theta_B = self.maps[adapter_name]
        return theta_A[adapter_name], theta_B[adapter_name]

    def frozen_weight(self) -> torch.Tensor:
        """W (out, in): the pretrained weight, also while adapters are merged into the base layer.

        A quantised weight is dequantised once and kept: 2 or 4 bytes an element, beside the quantised one.
        """
        if self.quantization_backend is not None:
            if self._dequantised is None:
                W = self.quantization_backend.get_base_weight(self.get_base_layer())
                self._dequantised = W.detach()
            return self._dequantised
        weight = self.get_base_layer().weight if self._pretrained is None else self._pretrained[0]
        return weight.T if self.is_conv1d else weight

    def materialise(self, adapter_name: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of this layer, in the dtype of the maps; differentiable."""
        W = self.frozen_weight()
        theta_A, theta_B = (theta.to(W.device) for theta in self.theta(adapter_name))
        return make_factors(W.to(theta_A.dtype), theta_A, theta_B, self.form[adapter_name])

    def _factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B for the forward pass: made anew in training, once at inference.

        Kept while neither maps nor W are written to or replaced, as torch's version counters tell; `train()`
        and `eval()` forget them, since writing through `.data` moves no counter.
        """
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self.training or torch.is_grad_enabled() or is_traced:
            return self.materialise(adapter_name)
        sources = (*self.theta(adapter_name), self.frozen_weight())
        device = sources[0].device.type  # autocast decides what dtype A and B come out in
        state = [torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)]
        try:
            state += [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in sources]
        except (
            RuntimeError
        ):  # made in inference mode, or seen through torch.func: nothing to tell by
            return self.materialise(adapter_name)
        kept_state, kept = self.made.get(adapter_name, (None, None))
        if state != kept_state:
            kept = self.materialise(adapter_name)
            self.made[adapter_name] = (state, kept)
        return kept

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """What merging adds to the base layer's weight, in that weight's own layout: s B A."""
        A, B = self.materialise(adapter_name)
        delta = self.scaling[adapter_name] * (B @ A)
        return delta.T if self.is_conv1d else delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device=None) -> None:
        # PEFT's own also casts to the base layer's dtype, which would round float32 maps that were loaded.
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        for held in (self.condlora_theta_A, self.condlora_theta_B):
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
        config,
        maps: Maps | None,
    ) -> None:
        """Put one more adapter on this layer; `maps` are those of its sharing group, None to make and hold them."""
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.form[adapter_name] = config.form
        self.group[adapter_name] = group
        self.lora_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        )
        if maps is None:
            maps = (self.condlora_theta_A, self.condlora_theta_B)
            self._draw(adapter_name, config.init_weights)
        self.maps[adapter_name] = maps

    def _draw(self, adapter_name: str, init_weights: bool) -> None:
        W = self.frozen_weight()
        shapes = theta_shapes(*W.shape, self.r[adapter_name], self.form[adapter_name])
        held = (self.condlora_theta_A, self.condlora_theta_B)
        for thetas, shape, is_zero in zip(held, shapes, (False, init_weights), strict=True):
            theta = torch.zeros(shape, dtype=W.dtype, device=W.device)
            if not is_zero:
                nn.init.kaiming_uniform_(theta, a=math.sqrt(5))
            thetas[adapter_name] = nn.Parameter(theta)

    def train(self, mode: bool = True):
        self.made.clear()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        """As for any module (`.to`, `.half`), and the weights that are kept beside the layer go along."""
        self.made.clear()
        if self._dequantised is not None:
            self._dequantised = fn(self._dequantised)
        if self._pretrained is not None and self.quantization_backend is None:
            self._pretrained[0].data = fn(self._pretrained[0].data)
        return super()._apply(fn, recurse)

    def forward(self, x: torch.Tensor, *args, adapter_names: list[str] | None = None, **kwargs):
        if self.merged and (self.disable_adapters or adapter_names is not None):
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
        A, B = self._factors(adapter_name)
        x = self.lora_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        return F.linear(F.linear(x, A), B) * self.scaling[adapter_name]

    def _add_by_row(
        self, result: torch.Tensor, x: torch.Tensor, adapter_names: list[str]
    ) -> torch.Tensor:
        """Each row of the batch with its own adapter; "__base__" means none."""
        if len(adapter_names) != len(x):
            raise AdapterError(
                f"adapter_names has {len(adapter_names)} names for {len(x)} rows: give one a row (and to generate "
                "num_beams itself, not in a generation_config; num_return_sequences cannot be mixed)."
            )
        for name in sorted(set(adapter_names) & set(self.group)):
            rows = [row for row, wanted in enumerate(adapter_names) if wanted == name]
            result = result.index_add(
                0,
                torch.tensor(rows, device=result.device),
                self._update(x[rows], name).to(result.dtype),
            )
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add s B A of the (active) adapters to the base weight.

        The base layer gets a new weight and the pretrained one is kept until `unmerge` puts it back: B A is
        made from W, so subtracting an update recomputed from the merged weight would not restore it. A weight
        tied to this one (an embedding, say) stays as it is. A quantised weight is quantised again, which rounds.

        Raises:
            AdapterError: `safe_merge` is set and the merged weight is not finite.
        """
        base = self.get_base_layer()
        for name in check_adapters_to_merge(self, adapter_names) or []:
            if name not in self.group:
                continue
            merged = self._merged_weight([*self.merged_adapters, name])
            if safe_merge and not torch.isfinite(merged).all():
                raise AdapterError(
                    f"Merging adapter {name!r} gives values that are not finite: its maps are broken, train it again."
                )
            if self._pretrained is None:
                # bitsandbytes moves parts of an 8-bit weight into the layer's state.
                state = dict(vars(base.state)) if hasattr(base, "state") else None
                self._pretrained = (base.weight, state)
            if self.quantization_backend is None:
                base.weight = nn.Parameter(merged, requires_grad=False)
            else:
                self.quantization_backend.set_base_weight(self, merged)
            self.merged_adapters.append(name)

    def _merged_weight(self, adapter_names: list[str]) -> torch.Tensor:
        weight = self.frozen_weight().detach()
        weight = weight.T if self.is_conv1d else weight
        for name in adapter_names:
            weight = weight + self.get_delta_weight(name).detach().to(weight.dtype)
        return weight

    def unmerge(self) -> None:
        """Put the pretrained weight back: the very parameter, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.get_base_layer()
        base.weight, state = self._pretrained
        if state is not None:
            vars(base.state).clear()
            vars(base.state).update(state)
        self._pretrained = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return "condlora." + super().__repr__()
