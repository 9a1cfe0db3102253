"""The methods of the tuner: CondLoRA, its controls, and other ways to share or generate A and B.

To add one: a file with a `Method` in this folder, a line in METHODS, and a config in `configs/adapter/`.
What does not belong here: layers, models and files, which are the same for all methods.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from condlora.errors import AdapterError
from condlora.tuner.methods.base import Method
from condlora.tuner.methods.cond_adalora import CondAdaLora
from condlora.tuner.methods.cond_pissa import CondPissa
from condlora.tuner.methods.condlora import CondLora
from condlora.tuner.methods.condlora_x import CondLoraX
from condlora.tuner.methods.controls import (
    FrozenA,
    FrozenB,
    OtherLayer,
    RandomCondition,
    SpectrumCondition,
)
from condlora.tuner.methods.core import CondLoraCore, LoTR
from condlora.tuner.methods.dylora import CondDyLora, DyLora
from condlora.tuner.methods.half_lora import HalfLora
from condlora.tuner.methods.lora_xs import LoraXs
from condlora.tuner.methods.melora import MeLora
from condlora.tuner.methods.nola import Nola
from condlora.tuner.methods.share_lora import ShareLora
from condlora.tuner.methods.tied_lora import TiedLora

METHODS: dict[str, type[Method]] = {
    "condlora": CondLora,
    "condlora_random": RandomCondition,
    "condlora_spectrum": SpectrumCondition,
    "condlora_other_layer": OtherLayer,
    "condlora_frozen_a": FrozenA,
    "condlora_frozen_b": FrozenB,
    "condlora_core": CondLoraCore,
    "condlora_x": CondLoraX,
    "cond_adalora": CondAdaLora,
    "cond_pissa": CondPissa,
    "cond_dylora": CondDyLora,
    "share_lora": ShareLora,
    "lotr": LoTR,
    "tied_lora": TiedLora,
    "lora_xs": LoraXs,
    "nola": Nola,
    "dylora": DyLora,
    "half_lora": HalfLora,
    "melora": MeLora,
}


def has_form(name: str) -> bool:
    """Whether A and B are made from W in one of CondLoRA's forms."""
    return "form" in _fields(name)


def make_method(name: str, options: dict[str, Any], form: str | None) -> Method:
    """The method of this name with these options.

    `form` is for CondLoRA and the methods built on it; None stands for the default, which `resolve_form` of
    `condlora.tuner.placement` fills in when the targets are known.

    Raises:
        AdapterError: there is no such method, or it has no such option or form.
    """
    if name not in METHODS:
        raise AdapterError(f"Unknown method {name!r}: choose one of {', '.join(METHODS)}.")
    if not isinstance(options, dict):
        raise AdapterError(f"options is {options!r}: give names and values, such as {{'seed': 1}}.")
    fields = _fields(name)
    unknown = sorted(set(options) - fields | set(options) & {"form"})
    if unknown:
        has = ", ".join(sorted(fields - {"form"}))
        raise AdapterError(
            f"The method {name!r} has no option {', '.join(unknown)}: "
            f"{f'its options are {has}' if has else 'leave options empty'}."
        )
    if "form" in fields:
        options = options if form is None else options | {"form": form}
    elif form not in (None, "code"):  # "code" stands in adapter files of all methods
        raise AdapterError(
            f"form says how A and B are made from W, and the method {name!r} makes them in another way: leave form out."
        )
    return METHODS[name](**options)


def _fields(name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(METHODS[name])}


def options_of(method: Method) -> dict[str, Any]:
    """All options of a method, including those that were left to their defaults."""
    return {name: value for name, value in dataclasses.asdict(method).items() if name != "form"}
