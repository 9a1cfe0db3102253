"""The names and the order of tasks, methods and matrices in every table and figure."""

import functools
import re

import yaml

from condlora.paths import CONFIGS

# The tasks as the paper names them, in its order.
TASKS = {
    "mnli": "MNLI",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "cola": "CoLA",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "stsb": "STS-B",
}
# Families of methods, for figures that show many: the first whose pattern a method's name matches.
FAMILIES = {
    "LoRA": r"lora$",
    "CondLoRA": r"condlora$",
    "CondLoRA: variants and controls": r"cond",
    "shared or generated A and B": r"share_|lora_drop|tied_lora|lotr|lora_xs|vera|vblora|unilora|dylora|randlora|nola|lily",
    "no adapter": r"head$|bitfit$|full$|ft_top2$",
    "variants of LoRA": r".*lora|pissa|corda|eva|dora|loftq",
    "other adapters": r"",
}
REFERENCE = "lora"  # what every other adapter is compared with
METHOD_NAMES = {"lora": "LoRA", "condlora": "CondLoRA"}  # others: `title` in configs/adapter
MATRIX_LABEL = {"A": "A", "A_transposed": "A (W₀⁻ᵀ)", "B": "B", "BA": "B A", "delta_W": "ΔW"}


def task_order(task: str) -> tuple[int, str]:
    """Sorting key: the paper's order, then any other task by name."""
    known = list(TASKS)
    return (known.index(task) if task in known else len(known), task)


def adapter_order(adapter: str) -> tuple[int, list[str | int]]:
    """Sorting key: LoRA, CondLoRA, then any other method by name, rank 2 before rank 16."""
    known = [REFERENCE, "condlora"]
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", adapter)]
    return (known.index(adapter) if adapter in known else len(known), parts)


def family(adapter: str) -> str:
    """The family of a method, see FAMILIES; one with a rank in its name belongs to that of the method without."""
    name = re.sub(r"_r\d+$", "", adapter)
    return next(title for title, pattern in FAMILIES.items() if re.match(pattern, name))


@functools.cache
def label(adapter: str) -> str:
    """The display name of a method: its configuration's title or name, with the rank or weights that the name has."""
    if adapter in METHOD_NAMES:
        return METHOD_NAMES[adapter]
    path = CONFIGS / "adapter" / f"{adapter}.yaml"
    if path.is_file():
        return yaml.safe_load(path.read_text(encoding="utf-8")).get("title", adapter)
    chosen = re.fullmatch(r"lora_on_([qkvo]+)", adapter)
    if chosen:
        return f"LoRA of {', '.join(f'W{kind}' for kind in chosen[1])}"
    ranked = re.fullmatch(r"(.+)_r(\d+)", adapter)
    return f"{label(ranked[1])}, r = {ranked[2]}" if ranked else adapter
