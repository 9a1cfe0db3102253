"""Saving and loading: nothing drawn anew in silence, nothing replaced that an optimizer holds."""

import json

import pytest
import torch
from peft import PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict, load_peft_weights
from safetensors.torch import load_file, save_file

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from tests.tuner.families import FAMILIES, adapted, logits, perturb

WEIGHTS = "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def saved(tmp_path):
    """The folder of a perturbed adapter with a head, and its logits."""
    model = perturb(adapted("bert"))
    model.save_pretrained(tmp_path)
    return tmp_path, logits(model)


def load(folder, **kwargs):
    return PeftModel.from_pretrained(FAMILIES["bert"].build(), folder, **kwargs)


def test_the_file_holds_each_shared_map_once_and_the_head(saved):
    folder, _ = saved
    names = sorted(load_file(folder / WEIGHTS))
    kinds = [QUERY, QUERY.replace("query", "value")]
    maps = [f"{kind}.condlora_theta_{which}" for kind in kinds for which in "AB"]
    head = [f"base_model.model.classifier.{part}" for part in ("bias", "weight")]
    assert names == sorted([*maps, *head])


def test_the_config_says_all_that_was_set(tmp_path):
    model = adapted("bert", r=3, lora_alpha=6, use_rslora=True, rank_pattern={"value": 2})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "CONDLORA"
    chosen = {
        "r": 3,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"value": 2},
        "form": "code",
    }
    assert {name: config[name] for name in chosen} == chosen
    loaded = load(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("is_trainable", [False, True])
def test_is_trainable_is_respected(saved, is_trainable):
    folder, expected = saved
    model = load(folder, is_trainable=is_trainable)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == (6 if is_trainable else 0)  # four maps, and the head's weight and bias
    assert torch.equal(logits(model.eval()), expected)


def test_loading_into_a_live_model_fills_the_parameters_an_optimizer_holds(saved):
    folder, expected = saved
    model = adapted("bert")
    held = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(held, lr=0.1)
    model.load_adapter(folder, adapter_name="default", is_trainable=True)
    assert torch.equal(logits(model.eval()), expected)
    now = [p for p in model.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(now, held, strict=True))
    model(**FAMILIES["bert"].inputs()).logits.sum().backward()
    optimizer.step()
    assert not torch.allclose(logits(model), expected, atol=1e-4)


def test_the_state_dict_functions_need_no_peft_model(saved, tmp_path):
    """As transformers' and diffusers' own adapter integrations use them."""
    config = CondLoraConfig(
        r=4, lora_alpha=8, target_modules=["query", "value"], init_weights=False
    )
    source = perturb(inject_adapter_in_model(config, FAMILIES["bert"].build()).eval())
    state = get_peft_model_state_dict(source)
    assert len([name for name in state if "condlora_theta" in name]) == len(state) == 4
    torch.manual_seed(99)
    other = inject_adapter_in_model(config, FAMILIES["bert"].build()).eval()
    assert not torch.allclose(logits(other), logits(source), atol=1e-3)
    set_peft_model_state_dict(other, state)
    assert torch.equal(logits(other), logits(source))


def test_transformers_own_adapter_methods_work():
    model = FAMILIES["bert"].build()
    base = logits(model)
    model.add_adapter(CondLoraConfig(r=4, target_modules=["query"], init_weights=False), "mine")
    assert not torch.allclose(logits(model), base, atol=1e-5)
    model.disable_adapters()
    assert torch.equal(logits(model), base)


def damaged(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda t: t.pop(f"{QUERY}.condlora_theta_A"),
            AdapterError,
            "lacks .*query.condlora_theta_A",
        ),
        (
            lambda t: t.update({f"{QUERY}.condlora_theta_A": torch.zeros(4, 15)}),
            AdapterError,
            "is 4 x 15 in the adapter's file and 4 x 16 here",
        ),
        (
            lambda t: t.update({"base_model.model.other": torch.zeros(2)}),
            AdapterError,
            "holds .*other",
        ),
        (
            lambda t: t.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 16)}),
            AdapterError,
            "holds .*lora_A",
        ),
        (lambda t: t.pop("base_model.model.classifier.weight"), KeyError, "classifier.weight"),
    ],
    ids=[
        "missing map",
        "wrong shape",
        "unexpected tensor",
        "another method's tensor",
        "missing head",
    ],
)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_file_that_does_not_fit_is_an_error(saved, change, error, message, low_cpu_mem_usage):
    folder, _ = saved
    damaged(folder, change)
    with pytest.raises(error, match=message):
        load(folder, low_cpu_mem_usage=low_cpu_mem_usage)


def test_an_adapter_of_another_rank_is_an_error_for_a_live_model(saved):
    folder, _ = saved
    model = adapted("bert", r=2)
    with pytest.raises(AdapterError, match="4 x 16 in the adapter's file and 2 x 16 here"):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def test_the_adapter_of_a_model_of_another_width_is_an_error(saved):
    folder, _ = saved
    with pytest.raises(AdapterError, match="16 in the adapter's file and .*32 here"):
        PeftModel.from_pretrained(FAMILIES["bert"].build(hidden_size=32), folder)


@pytest.mark.parametrize("bias", ["condlora_only", "all"])
def test_trained_biases_are_saved_and_loaded(bias, tmp_path):
    model = perturb(adapted("bert", bias=bias))
    model.save_pretrained(tmp_path)
    assert sum(name.endswith("base_layer.bias") for name in load_file(tmp_path / WEIGHTS)) == 6
    assert torch.equal(logits(load(tmp_path).eval()), logits(model))


@pytest.mark.parametrize("bias", ["condlora_only", "all"])
def test_trained_biases_find_their_layer_whether_another_adapter_wraps_it_or_not(bias, tmp_path):
    model = adapted("bert", bias=bias, target_modules=["query"])
    model.add_adapter("b", CondLoraConfig(r=2, target_modules=["value"], init_weights=False))
    perturb(model).save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path).eval()), logits(model))
    adapted("bert", bias=bias, target_modules=["query"]).save_pretrained(tmp_path / "alone")
    beside = adapted("bert", target_modules=["value"])
    beside.load_adapter(tmp_path / "alone", adapter_name="alone")


def test_injecting_by_a_state_dict_adapts_every_layer_of_a_group():
    """PEFT would take the targets from the file's names, which are those of the layers that hold maps."""
    config = CondLoraConfig(r=4, target_modules=["query", "value"], init_weights=False)
    source = perturb(inject_adapter_in_model(config, FAMILIES["bert"].build()).eval())
    state = get_peft_model_state_dict(source)
    other = inject_adapter_in_model(config, FAMILIES["bert"].build(), state_dict=state).eval()
    set_peft_model_state_dict(other, state)
    assert torch.equal(logits(other), logits(source))


@pytest.mark.slow
def test_a_process_that_never_imported_condlora_is_told_the_methods_name(saved):
    """README says to import condlora first; without it PEFT knows no such method."""
    import subprocess
    import sys

    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(saved[0])!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode != 0 and "CONDLORA" in ended.stderr
