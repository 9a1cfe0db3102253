"""An adapter that is refused leaves nothing behind, and one that is attached again replaces the first."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer
from tests.tuner.families import FAMILIES, IDS, adapted, logits, perturb

GOOD = {"r": 4, "target_modules": ["q_proj", "o_proj"], "form": "code", "init_weights": False}
# Each is refused for its last target only, or for what several targets have in common.
BAD = {
    "form": {"target_modules": ["q_proj", "o_proj", "down_proj"]},
    "type": {"target_modules": ["q_proj", "norm"], "form": None},
    "rank": {"target_modules": ["q_proj", "k_proj"], "form": "consistent", "r": 12},
    "pattern": {"rank_pattern": {r"layers\.1\.self_attn\.o_proj": 2}},
    "neighbours": {
        "target_modules": ["q_proj", "lm_head"],
        "form": None,
        "method": "condlora_other_layer",
    },
    "odd rank": {"method": "cond_pissa", "r": 3},
    "no such target": {"target_modules": ["typo"]},
    "kind of a saved module": {"modules_to_save": ["layers"]},
    "derived tensor": {"method": "condlora_spectrum"},
}


def llama():
    return FAMILIES["llama"].build()


def picture(model):
    """All that can be told apart in a model: modules, tensors, what is trained, hooks, configs, random state."""
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "parameters": [
            (n, id(p), p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()
        ],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "adapters": sorted(getattr(model, "peft_config", None) or {}),
        "is adapted": getattr(model, "_hf_peft_config_loaded", None),
        "random": torch.get_rng_state(),
    }


def assert_same(before, after, has_drawn=False):
    assert before.keys() == after.keys()
    for name in before.keys() - {"parameters", "random"}:
        assert before[name] == after[name], name
    if not has_drawn:
        assert torch.equal(before["random"], after["random"])
    for old, new in zip(before["parameters"], after["parameters"], strict=True):
        assert old[:3] == new[:3] and torch.equal(old[3], new[3])


def refused(case, monkeypatch):
    """The settings of a case, and what makes it fail while its layers are being made, where that is the case."""
    if case == "derived tensor":
        from condlora.tuner.methods import controls

        def fail(W, generator):
            raise MemoryError("no memory for the twin")

        monkeypatch.setattr(controls.SpectrumCondition, "twin", staticmethod(fail))
    return CondLoraConfig(**(GOOD | BAD[case]))


WAYS = {
    "get_peft_model": lambda model, config: get_peft_model(model, config),
    "inject_adapter_in_model": lambda model, config: inject_adapter_in_model(config, model),
    "transformers": lambda model, config: model.add_adapter(config, "default"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", BAD)
def test_a_refused_first_adapter_leaves_the_model_as_it_was_and_can_be_tried_again(
    way, case, monkeypatch
):
    model = llama()
    config = refused(case, monkeypatch)
    settings = copy.deepcopy(vars(config))
    before = picture(model)
    with pytest.raises((ValueError, TypeError, MemoryError)):
        WAYS[way](model, config)
    assert_same(before, picture(model), has_drawn=case == "derived tensor")
    settings["base_model_name_or_path"] = (
        config.base_model_name_or_path
    )  # get_peft_model sets it first
    assert vars(config) == settings
    adapted_later = WAYS[way](model, CondLoraConfig(**GOOD)) or model
    fresh = llama()
    adapted_fresh = WAYS[way](fresh, CondLoraConfig(**GOOD)) or fresh
    names = [name for name, _ in adapted_fresh.named_parameters()]
    assert [name for name, _ in adapted_later.named_parameters()] == names


@pytest.mark.parametrize("case", [name for name in BAD if name != "kind of a saved module"])
def test_a_refused_second_adapter_leaves_the_first_as_it_was(case, monkeypatch):
    model = adapted("llama", base=llama())
    second = refused(case, monkeypatch)
    expected, before = logits(model, "llama"), picture(model)
    with pytest.raises((ValueError, MemoryError)):
        model.add_adapter("second", second)
    assert_same(before, picture(model), has_drawn=case == "derived tensor")
    assert torch.equal(logits(model, "llama"), expected)
    model.add_adapter("second", CondLoraConfig(**GOOD))
    assert torch.equal(logits(model, "llama"), expected)
    model.set_adapter("second")
    assert not torch.equal(logits(model, "llama"), expected)


@pytest.mark.parametrize("case", ["form", "rank", "derived tensor"])
def test_a_refused_replacement_leaves_the_first_adapter_working(case, monkeypatch):
    base = llama()
    model = adapted("llama", base=base, modules_to_save=["lm_head"], bias="none")
    second = refused(case, monkeypatch)
    expected, before = logits(model, "llama"), picture(model)
    config = model.peft_config["default"]
    with pytest.raises((ValueError, MemoryError)), pytest.warns(UserWarning, match="second time"):
        get_peft_model(base, second)
    assert_same(before, picture(model), has_drawn=case == "derived tensor")
    assert model.peft_config["default"] is config
    assert torch.equal(logits(model, "llama"), expected)


def test_a_second_attempt_with_other_settings_trains_and_saves_nothing_of_the_first(tmp_path):
    base = FAMILIES["bert"].build()
    first = {
        "target_modules": ["query", "key"],
        "r": 4,
        "bias": "all",
        "modules_to_save": ["pooler"],
    }
    get_peft_model(base, CondLoraConfig(**first))
    second = {"target_modules": ["value"], "r": 2, "init_weights": False}
    with pytest.warns(UserWarning, match="second time"):
        again = get_peft_model(base, CondLoraConfig(**second))
    fresh = get_peft_model(FAMILIES["bert"].build(), CondLoraConfig(**second))
    trained = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (again, fresh)]
    assert trained[0] == trained[1]
    perturb(again).save_pretrained(tmp_path)
    assert (
        load_file(tmp_path / "adapter_model.safetensors").keys()
        == get_peft_model_state_dict(fresh).keys()
    )
    loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(again.eval()))


def test_a_replacement_leaves_another_adapter_of_the_same_layers_as_it_was():
    base = FAMILIES["bert"].build()
    model = adapted("bert", base=base)
    model.add_adapter("other", CondLoraConfig(r=2, target_modules=["query"], init_weights=False))
    model.set_adapter("other")
    expected = logits(model.eval())
    with pytest.warns(UserWarning):
        again = get_peft_model(base, CondLoraConfig(r=3, target_modules=["value"]), "default")
    again.set_adapter("other")
    assert torch.equal(logits(again.eval()), expected)
    assert set(again.base_model.maps("default")) == {"bert.encoder.layer.attention.self.value"}


def test_running_a_cell_twice_gives_a_fresh_adapter_as_with_lora():
    for config_class in (LoraConfig, CondLoraConfig):
        base = llama()
        before = logits(base, "llama")
        perturb(get_peft_model(base, config_class(r=4, target_modules=["q_proj"])))
        with pytest.warns(UserWarning, match="second time"):
            model = get_peft_model(base, config_class(r=4, target_modules=["q_proj"]))
        assert torch.equal(logits(model.eval(), "llama"), before)
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_peft_model_is_refused_since_what_it_saves_could_not_be_loaded():
    model = adapted("bert")
    before = picture(model)
    with pytest.raises(AdapterError, match=r"call unload\(\).*call add_adapter"):
        get_peft_model(model, CondLoraConfig(r=4, target_modules=["query"]))
    assert_same(before, picture(model))
    get_peft_model(model.unload(), CondLoraConfig(r=4, target_modules=["query"]))


def test_a_merged_adapter_is_not_replaced():
    base = FAMILIES["bert"].build()
    model = adapted("bert", base=base)
    model.merge_adapter()
    with pytest.raises(AdapterError, match="call unmerge_adapter"), pytest.warns(UserWarning):
        get_peft_model(base, CondLoraConfig(r=4, target_modules=["query"]))
    model.unmerge_adapter()


def test_loaded_by_transformers_and_then_by_peft_it_is_the_same_adapter(tmp_path):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    model = perturb(adapted("llama", base=base))
    expected = logits(model, "llama")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(twice, "llama"), expected, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning):
        loaded = PeftModel.from_pretrained(twice, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, "llama"), expected, rtol=1e-4, atol=1e-5)
    assert len([m for m in loaded.modules() if isinstance(m, CondLoraLayer)]) == 6
    loaded.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    names = [
        load_file(tmp_path / f / "adapter_model.safetensors").keys() for f in ("adapter", "again")
    ]
    assert names[0] == names[1]


def test_after_a_load_that_failed_the_right_adapter_loads(tmp_path):
    for name, r in (("two", 2), ("four", 4)):
        perturb(adapted("bert", r=r)).save_pretrained(tmp_path / name)
    (tmp_path / "two" / "adapter_config.json").write_text(
        (tmp_path / "four" / "adapter_config.json").read_text()
    )
    base = FAMILIES["bert"].build()
    with pytest.raises(AdapterError, match="2 x 16 in the adapter's file"):
        PeftModel.from_pretrained(base, tmp_path / "two")
    with pytest.warns(UserWarning):
        loaded = PeftModel.from_pretrained(base, tmp_path / "four").eval()
    fresh = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path / "four").eval()
    assert torch.equal(logits(loaded), logits(fresh))


def test_a_layer_of_another_method_is_refused_by_name():
    base = llama()
    get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    with (
        pytest.raises(AdapterError, match="adapted by another PEFT method already"),
        pytest.warns(UserWarning),
    ):
        inject_adapter_in_model(CondLoraConfig(target_modules=["q_proj"]), base, "second")


def test_mambas_output_is_refused_as_loras_is():
    model = nn.ModuleDict({"out_proj": nn.Linear(8, 8)})
    model.config = type(
        "Config", (), {"model_type": "mamba", "to_dict": lambda self: {"model_type": "mamba"}}
    )()
    for config, error in ((LoraConfig, ValueError), (CondLoraConfig, AdapterError)):
        with pytest.raises(error, match="out_proj.*mamba"):
            inject_adapter_in_model(config(target_modules=["out_proj"]), model)


def test_a_weight_that_torchao_quantised_is_refused():
    class Quantised(torch.nn.Parameter):
        __module__ = "torchao.dtypes"

    model = torch.nn.ModuleDict({"up": torch.nn.Linear(4, 4)})
    model["up"].weight = Quantised(model["up"].weight.detach())
    with pytest.raises(AdapterError, match="up is quantised by torchao"):
        get_peft_model(model, CondLoraConfig(r=2, target_modules=["up"]))
