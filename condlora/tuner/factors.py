"""A and B of every adapted layer of a model, LoRA or CondLoRA, stacked over layers for the analysis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.sharing import layer_index


@dataclass(frozen=True)
class Factors:
    """The adapted modules of one kind over the L layers that have one; float32 unless the model is not.

    W (L, out, in): frozen weights; A (L, r, in) and B (L, out, r): what the adapter adds is
    `scaling * B @ A`; layers: 0-based layer indices, ascending.
    """

    W: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    layers: list[int]
    scaling: float


def layer_factors(
    model: nn.Module, modules: dict[str, str], adapter_name: str = "default"
) -> dict[str, Factors]:
    """Read W, A and B from an adapted model, by module kind.

    `modules` maps a kind ("query") to the last component of its modules' paths ("q_proj").

    Raises:
        AdapterError: a kind has no adapted module.
    """
    found: dict[str, list] = {kind: [] for kind in modules}
    kinds = {name: kind for kind, name in modules.items()}
    for path, layer in model.named_modules():
        kind = kinds.get(path.rsplit(".", 1)[-1])
        if kind is None or not isinstance(layer, LoraLayer | CondLoraLayer):
            continue
        if isinstance(layer, CondLoraLayer):
            W, (A, B) = layer.frozen_weight(), layer.materialise(adapter_name)
        else:
            base = layer.get_base_layer()
            W = base.weight.T if isinstance(base, Conv1D) else base.weight  # GPT-2's is (in, out)
            A, B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        found[kind].append((layer_index(path), layer.scaling[adapter_name], W, A, B))
    for kind, rows in found.items():
        if not rows:
            raise AdapterError(
                f"The adapter has no {kind!r} module named {modules[kind]!r}: "
                "check `modules` in the backbone's config."
            )
    return {kind: _stack(rows) for kind, rows in found.items()}


def _stack(rows: list) -> Factors:
    rows = sorted(rows, key=lambda row: row[0])
    W, A, B = (torch.stack([row[i].detach() for row in rows]) for i in (2, 3, 4))
    return Factors(W=W, A=A, B=B, layers=[row[0] for row in rows], scaling=rows[0][1])
