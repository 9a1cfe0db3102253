"""What CondLoRA relies on in PEFT, so that a PEFT that changes it is told from a defect of ours."""

import inspect

import pytest
from peft import PeftType, mapping
from peft.tuners import tuners_utils
from peft.utils import quantization_utils

from condlora.tuner import CondLoraConfig, CondLoraModel, register

HOOKS = {
    "_create_and_replace": [
        "peft_config",
        "adapter_name",
        "target",
        "target_name",
        "parent",
        "current_key",
    ],
    "_replace_module": ["parent", "child_name", "new_module", "child"],
    "_remap_adapter_state_dict_for_load": ["model", "config", "adapter_name", "state_dict"],
}
LAYER = [
    "get_base_layer",
    "set_adapter",
    "enable_adapters",
    "delete_adapter",
    "merge",
    "unmerge",
    "_cast_input_dtype",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_peft_calls_the_hooks_we_fill_with_the_arguments_we_take(hook):
    method = getattr(tuners_utils.BaseTuner, hook, None)
    assert method is not None, f"PEFT no longer has BaseTuner.{hook}, which CondLoraModel overrides"
    parameters = [name for name in inspect.signature(method).parameters if name != "self"]
    assert parameters[: len(HOOKS[hook])] == HOOKS[hook]


@pytest.mark.parametrize("name", LAYER)
def test_peft_has_the_layer_methods_we_build_on(name):
    assert hasattr(tuners_utils.BaseTunerLayer, name), f"PEFT no longer has BaseTunerLayer.{name}"


def test_peft_has_the_functions_we_import():
    assert list(inspect.signature(tuners_utils.check_adapters_to_merge).parameters) == [
        "module",
        "adapter_names",
    ]
    assert (
        "base_layer"
        in inspect.signature(quantization_utils.resolve_quantization_backend).parameters
    )


def test_registering_fills_pefts_three_tables_and_leaves_its_enum_alone():
    register()
    register()
    tables = {
        "PEFT_TYPE_TO_CONFIG_MAPPING": CondLoraConfig,
        "PEFT_TYPE_TO_TUNER_MAPPING": CondLoraModel,
        "PEFT_TYPE_TO_PREFIX_MAPPING": "condlora_",
    }
    for name, entry in tables.items():
        table = getattr(mapping, name, None)
        assert table is not None, f"PEFT no longer has {name}, which `register` fills"
        assert table["CONDLORA"] is entry or table["CONDLORA"] == entry
    assert "CONDLORA" not in PeftType.__members__


def test_pefts_own_registration_still_refuses_names_outside_its_enum():
    """When it accepts them, `register` can be one call."""
    from peft.utils import register_peft_method

    with pytest.raises((ValueError, KeyError)):
        register_peft_method(name="condlora", config_cls=CondLoraConfig, model_cls=CondLoraModel)
