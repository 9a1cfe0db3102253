"""CondLoRA: task-adapted low-rank matrices from a single linear layer (Kim et al., arXiv 2403.14946).

Importing it makes PEFT know the method: `peft.get_peft_model(model, condlora.CondLoraConfig(...))`.
"""

from condlora.tuner import CondLoraConfig, CondLoraModel
from condlora.tuner.lora_export import export_lora

__all__ = ["CondLoraConfig", "CondLoraModel", "export_lora"]
