"""CondLoRA: task-adapted low-rank matrices from a single linear layer (Kim et al., arXiv 2403.14946).

Importing it makes PEFT know the method: `peft.get_peft_model(model, condlora.CondLoraConfig(...))`.

The method is registered with PEFT as soon as both packages are imported, in either order. PEFT and torch take seconds to
import, and a command that lists runs or reports a wrong setting needs neither. So the package imports them only when
one of its names is read; and if PEFT is imported later, a finder in `sys.meta_path` registers the method right after
that import (`condlora.registration`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from condlora.registration import register_with_peft
from condlora.versions import require_versions

if TYPE_CHECKING:
    from condlora.tuner import CondLoraConfig, CondLoraModel
    from condlora.tuner.io.lora_export import export_lora

__all__ = ["CondLoraConfig", "CondLoraModel", "export_lora"]

_PLACES = {
    "CondLoraConfig": "condlora.tuner",
    "CondLoraModel": "condlora.tuner",
    "export_lora": "condlora.tuner.io.lora_export",
}

require_versions()  # before what imports those libraries
register_with_peft()


def __getattr__(name: str) -> object:
    """The public names, imported when they are first read (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'condlora' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
