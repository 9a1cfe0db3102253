"""A and B of all adapted layers of a model with LoRA or CondLoRA, stacked over layers for the analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    found: dict[str, list[Row]] = {kind: [] for kind in modules}
    kinds = {name: kind for kind, name in modules.items()}
    for path, layer in model.named_modules():
        kind = kinds.get(path.rsplit(".", 1)[-1])
        if kind is None or not isinstance(layer, LoraLayer | CondLoraLayer):
            continue
        if isinstance(layer, CondLoraLayer):
            W, (A, B) = layer.frozen_weight(), layer.materialise(adapter_name)
        else:
            base = layer.get_base_layer()
            W = _weight(base)
            W = W.T if isinstance(base, Conv1D) else W  # GPT-2's is (in, out)
            A, B = _weight(layer.lora_A[adapter_name]), _weight(layer.lora_B[adapter_name])
        found[kind].append(Row(layer_index(path) or 0, layer.scaling[adapter_name], W, A, B))
    for kind, rows in found.items():
        if not rows:
            raise AdapterError(
                f"The adapter has no {kind!r} module named {modules[kind]!r}: "
                "check `modules` in the backbone's config."
            )
    return {kind: _stack(rows) for kind, rows in found.items()}


class Row(NamedTuple):
    """One adapted module."""

    layer: int
    scaling: float
    W: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor


def _weight(module: nn.Module) -> torch.Tensor:
    assert isinstance(module.weight, torch.Tensor)
    return module.weight


def _stack(rows: list[Row]) -> Factors:
    rows = sorted(rows, key=lambda row: row.layer)
    return Factors(
        W=torch.stack([row.W.detach() for row in rows]),
        A=torch.stack([row.A.detach() for row in rows]),
        B=torch.stack([row.B.detach() for row in rows]),
        layers=[row.layer for row in rows],
        scaling=rows[0].scaling,
    )
