"""CondLoRA as a PEFT method. Importing this package registers it, see `register`."""

from peft import mapping

from condlora.tuner.config import PEFT_TYPE, CondLoraConfig
from condlora.tuner.factors import Factors, layer_factors
from condlora.tuner.model import CondLoraModel

__all__ = ["CondLoraConfig", "CondLoraModel", "Factors", "layer_factors", "register"]


def register() -> None:
    """Make PEFT know CondLoRA in this process; calling it again changes nothing.

    `peft.utils.register_peft_method` (0.21) accepts only names of PEFT's own enum, so the three tables it
    fills are filled here, with a name of our own as key.
    """
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = CondLoraConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = CondLoraModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = CondLoraModel.prefix


register()
