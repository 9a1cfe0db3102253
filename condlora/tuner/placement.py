"""The group, rank and alpha of every target module of an adapter, decided and checked before any module is replaced."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TypeVar

import torch
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from condlora.errors import AdapterError
from condlora.tuner.config import CondLoraConfig, method_of
from condlora.tuner.methods import has_form
from condlora.tuner.methods.base import Method
from condlora.tuner.sharing import Target, sharing_groups, sizes

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Placement:
    """The group, rank and alpha of one target."""

    path: str
    group: str
    r: int
    lora_alpha: float


def is_read_only(module: nn.Module) -> bool:
    """Whether it is the output layer of `nn.MultiheadAttention`, which reads its weight and never calls it."""
    return isinstance(module, NonDynamicallyQuantizableLinear)


def check_target(module: nn.Module, path: str) -> None:
    """Refuse a module that is not a linear layer, or whose weight CondLoRA cannot read.

    Raises:
        AdapterError: in these cases; it names the supported modules.
    """
    is_torchao = type(getattr(module, "weight", None)).__module__.startswith("torchao")
    if isinstance(module, nn.Linear | Conv1D) and not is_read_only(module) and not is_torchao:
        return
    kind = "quantised by torchao" if is_torchao else f"a {type(module).__name__}"
    if is_read_only(module):
        kind = "nn.MultiheadAttention's output"
    elif hasattr(module, "base_layer"):
        kind = f"adapted by another PEFT method already ({type(module).__module__})"
    raise AdapterError(
        f"{path} is {kind}, and CondLoRA adapts nn.Linear, transformers' Conv1D and bitsandbytes' linear "
        "layers: choose other target_modules."
    )


def resolve_form(config: CondLoraConfig, targets: list[Target]) -> None:
    """Fill in a form that was left out: the paper's where all targets are square, "consistent" otherwise."""
    if config.form is not None:
        return
    config.form = "code"
    if not has_form(config.method):
        return
    for target in targets:
        if target.shape[0] != target.shape[1]:
            config.form = "consistent"
            warnings.warn(
                f'{target.path} is {sizes(target.shape)}, and the paper\'s form "code" is defined for square weights '
                'only: form="consistent" is used for all target modules. Set form to choose yourself.',
                stacklevel=2,
            )
            return


def plan(config: CondLoraConfig, targets: list[Target], caps_rank: bool = False) -> list[Placement]:
    """The placement of every target, in their order.

    With `caps_rank` a module whose smaller side is below `config.r` gets the highest rank that it can have, which is
    written into `config.rank_pattern`, with a warning.

    Raises:
        AdapterError: a target cannot have this rank or form, modules that share differ in rank, alpha or shape, or a
            pattern names no shape, or `unshared_modules` a module that is no target.
    """
    method = method_of(config)
    _check_unshared_named(config, {target.path for target in targets})
    groups = sharing_groups(targets, config)
    if config.sharing == "shape":
        _check_shapes_named(config, {sizes(target.shape, "x") for target in targets})
    if caps_rank:
        _cap_ranks(config, method, targets)
    placements = []
    shared: dict[str, tuple[Placement, Target]] = {}
    for target in targets:
        group = groups[target.path]
        name = _pattern_name(target, config)
        placement = Placement(
            target.path,
            group,
            r=_by_pattern(config.rank_pattern, name, config.r),
            lora_alpha=_by_pattern(config.alpha_pattern, name, config.lora_alpha),
        )
        _check_fit(config, method, placement.r, target)
        first, first_target = shared.setdefault(group, (placement, target))
        if first is not placement and method.shares(_empty(target), placement.r):
            _check_shared(placement, target, first, first_target)
        placements.append(placement)
    if method.reads_next_layer:
        _check_neighbours(placements)
    return placements


def _pattern_name(target: Target, config: CondLoraConfig) -> str:
    """The name that keys of rank_pattern and alpha_pattern are compared with. They are for groups, not for blocks."""
    return sizes(target.shape, "x") if config.sharing == "shape" else target.path


def _by_pattern(pattern: dict[str, Number], name: str, default: Number) -> Number:
    return pattern.get(get_pattern_key(list(pattern), name), default)


def _empty(target: Target) -> torch.Tensor:
    """A tensor without memory, for computations that need only the weight's shape."""
    return torch.empty(target.shape, device="meta")


def _cap_ranks(config: CondLoraConfig, method: Method, targets: list[Target]) -> None:
    capped = {}
    for target in targets:
        name = _pattern_name(target, config)
        limit = method.max_rank(target.shape)
        if 1 <= limit < config.r and _by_pattern(config.rank_pattern, name, 0) == 0:
            # For all modules of this kind, whatever the numbers in their paths.
            parts = [r"\d+" if part.isdigit() else re.escape(part) for part in name.split(".")]
            capped[r"\.".join(parts) if config.sharing == "path" else name] = (limit, target)
    config.rank_pattern |= {key: limit for key, (limit, _) in capped.items()}
    if capped:
        lowered = ", ".join(
            f"{limit} for {target.path} ({sizes(target.shape)})"
            for limit, target in capped.values()
        )
        warnings.warn(
            f"The rank {config.r} is above the smaller side of some linear layers, which get a lower one: {lowered}. "
            "Leave such layers out with exclude_modules, or set rank_pattern.",
            stacklevel=2,
        )


def _check_fit(config: CondLoraConfig, method: Method, r: int, target: Target) -> None:
    """Raise an AdapterError if a weight of this shape cannot have this rank or form."""
    limit = min(target.shape)
    if r > limit:
        name = target.path.rpartition(".")[2]
        raise AdapterError(
            f"Rank {r} is above the smaller side of {target.path}, which is {sizes(target.shape)}: "
            f"choose r of at most {limit}, set rank_pattern={{{name!r}: {limit}}}, or leave it out with "
            f"exclude_modules=[{name!r}]."
        )
    if method.needs_square and target.shape[0] != target.shape[1]:
        raise AdapterError(
            f"{target.path} is {sizes(target.shape)}, and the form {config.form!r} is defined for square "
            'weights only: set form="consistent" or choose other target_modules.'
        )
    method.tensors(_empty(target), r)  # refuses a rank that the method cannot have


def _check_shared(
    placement: Placement, target: Target, first: Placement, first_target: Target
) -> None:
    if (first.r, first.lora_alpha) != (placement.r, placement.lora_alpha):
        raise AdapterError(
            f"{target.path} shares its maps with modules of another rank or alpha: write rank_pattern and alpha_pattern "
            "for whole sharing groups, such as {'query': 4}, not for single layers."
        )
    if first_target.shape != target.shape:
        raise AdapterError(
            f"{target.path} is {sizes(target.shape)}, another shape than the modules it shares its maps with: "
            'set sharing="shape", or adapt them with separate adapters.'
        )


def _check_neighbours(placements: list[Placement]) -> None:
    groups = [placement.group for placement in placements]
    for group in dict.fromkeys(groups):
        if groups.count(group) < 2:
            raise AdapterError(
                f"{group} is one layer, and this method gives each layer another's weight: adapt at least two, "
                "and let layers_per_map leave no layer alone."
            )


def _check_unshared_named(config: CondLoraConfig, paths: set[str]) -> None:
    unknown = sorted(set(config.unshared_modules or ()) - paths)
    if unknown:
        raise AdapterError(
            f"unshared_modules names {unknown[0]}, which is not a target module: give paths such as {min(paths)}."
        )


def _check_shapes_named(config: CondLoraConfig, shapes: set[str]) -> None:
    unknown = sorted({*config.rank_pattern, *config.alpha_pattern} - shapes)
    if unknown:
        raise AdapterError(
            f'With sharing="shape", rank_pattern and alpha_pattern name shapes, here {", ".join(sorted(shapes))}: '
            f"{', '.join(unknown)} is none of them."
        )
