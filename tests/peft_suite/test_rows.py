from peft import BOFTConfig, LoraConfig, VeraConfig

from condlora import CondLoraConfig
from tests.peft_suite.__main__ import add_rows
from tests.peft_suite.rows import with_condlora


def test_condlora_gets_loras_rows_with_the_rank_of_the_smallest_target():
    two = {"target_modules": ["lin0", "lin1"], "lora_alpha": 4}
    rows = [
        ("MLP 1 LoRA", "MLP", LoraConfig, two),
        ("MLP 1 VeRA", "MLP", VeraConfig, {"target_modules": "lin0"}),
        ("MLP 1 BOFT", "MLP", BOFTConfig, {"target_modules": "lin0"}),
    ]
    assert with_condlora(rows) == [
        *rows[:2],
        ("MLP 1 CondLoRA", "MLP", CondLoraConfig, two | {"r": 2}),
    ]


def test_rows_with_settings_or_layers_that_condlora_lacks_are_left_out():
    rows = [
        ("a", "MLP", LoraConfig, {"target_modules": ["lin0"], "lora_bias": True}),
        ("b", "MLP", LoraConfig, {"target_modules": ["lin0"], "init_lora_weights": "mica"}),
        ("c", "Conv1d", LoraConfig, {"target_modules": ["conv1d"]}),
        ("d", "EmbConv1D", LoraConfig, {"target_modules": ["emb"]}),
    ]
    assert with_condlora(rows) == []


def test_the_start_of_a_row_is_said_in_condloras_name():
    start = {"target_modules": ["lin0"], "init_lora_weights": False}
    row = ("LoRA Same", "lora", LoraConfig, start, start)
    ours = {"target_modules": ["lin0"], "r": 10, "init_weights": False}
    assert with_condlora([row]) == [row, ("CondLoRA Same", "condlora", CondLoraConfig, ours, ours)]


def test_a_table_of_a_module_gets_the_rows_and_nothing_else_changes(tmp_path):
    module = tmp_path / "suite.py"
    module.write_text(
        "from peft import LoraConfig\nALL_CONFIGS = [\n    (LoraConfig, {'target_modules': None}),\n]\nOTHER = [1]\n"
    )
    add_rows(module)
    names: dict = {}
    exec(module.read_text(), names)
    assert names["OTHER"] == [1]
    assert [row[0] for row in names["ALL_CONFIGS"]] == [LoraConfig, CondLoraConfig]
