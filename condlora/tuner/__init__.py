"""CondLoRA as a PEFT method. Importing this package registers it, see `register`."""

from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner

from condlora.tuner.config import PEFT_TYPE, CondLoraConfig
from condlora.tuner.factors import Factors, layer_factors
from condlora.tuner.model import CondLoraModel

__all__ = ["CondLoraConfig", "CondLoraModel", "Factors", "layer_factors", "register"]


def register() -> None:
    """Make PEFT know CondLoRA in this process; calling it again changes nothing.

    `peft.utils.register_peft_method` (0.21) accepts only names of PEFT's own enum, so the three tables it
    fills are filled here, with a name of our own as key.
    """
    configs: dict[str, type[PeftConfig]] = mapping.PEFT_TYPE_TO_CONFIG_MAPPING  # type: ignore[assignment]  # keys: PEFT's enum
    tuners: dict[str, type[BaseTuner]] = mapping.PEFT_TYPE_TO_TUNER_MAPPING  # type: ignore[assignment]  # as above
    prefixes: dict[str, str] = mapping.PEFT_TYPE_TO_PREFIX_MAPPING  # type: ignore[assignment]  # as above
    configs[PEFT_TYPE] = CondLoraConfig
    tuners[PEFT_TYPE] = CondLoraModel
    prefixes[PEFT_TYPE] = CondLoraModel.prefix


register()
