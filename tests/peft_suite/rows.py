"""Rows for CondLoRA in the tables of PEFT's tests, made from the rows of LoRA."""

from __future__ import annotations

from peft import LoraConfig, VeraConfig

from condlora import CondLoraConfig

# Settings of LoRA that CondLoRA has too.
SETTINGS = {"bias", "lora_alpha", "lora_dropout", "modules_to_save", "r", "target_modules", "task_type", "use_dora"}  # fmt: skip
NOT_SETTINGS = {"init_lora_weights"}  # CondLoRA's name for it is init_weights
# The linear layers of PEFT's small models; in the others a layer of the same name can be a convolution.
SMALL_MODELS = {"MLP", "EmbConv1D"}
SMALLEST_SIDE = {"lin0": 10, "lin1": 2, "conv1d": 1}
CONTROLS = (LoraConfig, VeraConfig)


def with_condlora(rows: list | tuple) -> list:
    """The rows of LoRA and VeRA that CondLoRA can be compared with, and its own.

    A row is a tuple with a config class, and one or two dictionaries of settings after it. The rank is the smallest
    dimension of the targets, as CondLoRA's cannot be larger.
    """
    kept = [row for row in rows if _is_comparable(row)]
    ours = [
        tuple(_ours(field) for field in row)
        for row in kept
        if any(field is LoraConfig for field in row)
    ]
    return [*kept, *ours]


def _is_comparable(row: tuple) -> bool:
    """Whether the row is VeRA's, or LoRA's with settings that CondLoRA has, on linear layers alone."""
    at = next((n for n, field in enumerate(row) if field in CONTROLS), None)
    if at is None:
        return False
    settings = [field for field in row if isinstance(field, dict)]
    if row[at] is VeraConfig:
        return True
    names_a_model = at == 2 and len(settings) == 1
    if names_a_model and row[1] not in SMALL_MODELS:
        return False
    named = [name for field in settings for name in _names(field.get("target_modules"))]
    has_settings = all(set(field) <= SETTINGS | NOT_SETTINGS for field in settings)
    has_starts = all(isinstance(field.get("init_lora_weights", True), bool) for field in settings)
    return has_settings and has_starts and set(named) <= set(SMALLEST_SIDE)


def _names(targets: list | str | None) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets or [])


def _ours(field: object) -> object:
    if field is LoraConfig:
        return CondLoraConfig
    if isinstance(field, str):
        return "condlora" if field == "lora" else field.replace("LoRA", "CondLoRA")
    if not isinstance(field, dict):
        return field
    settings = {name: value for name, value in field.items() if name not in NOT_SETTINGS}
    if "init_lora_weights" in field:
        settings["init_weights"] = field["init_lora_weights"]
    named = _names(field.get("target_modules"))
    return settings | ({"r": min(SMALLEST_SIDE[name] for name in named)} if named else {})
