"""CondLoRA: task-adapted low-rank matrices from a single linear layer (Kim et al., arXiv 2403.14946).

Importing it makes PEFT know the method: `peft.get_peft_model(model, condlora.CondLoraConfig(...))`.
"""

from condlora.versions import require_versions

require_versions()  # before what imports those libraries

from condlora.tuner import CondLoraConfig, CondLoraModel  # noqa: E402
from condlora.tuner.io.lora_export import export_lora  # noqa: E402

__all__ = ["CondLoraConfig", "CondLoraModel", "export_lora"]
