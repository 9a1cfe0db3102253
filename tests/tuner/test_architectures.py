"""Encoders, decoders and encoder-decoders: create, train, save, load, merge, unload, on every family."""

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file

from condlora import CondLoraConfig
from condlora.tuner.layer import CondLoraLayer
from tests.tuner.families import CASES, FAMILIES, adapted, logits, perturb

AUTO = {
    "SEQ_CLS": AutoPeftModelForSequenceClassification,
    "CAUSAL_LM": AutoPeftModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoPeftModelForSeq2SeqLM,
}


def layers(model):
    return [m for m in model.modules() if isinstance(m, CondLoraLayer)]


@pytest.mark.parametrize(("family", "form"), CASES)
def test_only_the_maps_are_trained(family, form):
    model = adapted(family, form)
    trained = {
        n for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in n
    }
    assert trained and all("condlora_theta" in name for name in trained)
    groups = {layer.group["default"] for layer in layers(model)}
    assert len(trained) == 2 * len(groups) < 2 * len(layers(model))


@pytest.mark.parametrize(("family", "form"), CASES)
def test_a_new_adapter_changes_nothing_and_a_step_changes_the_output(family, form):
    base = FAMILIES[family].build()
    before = logits(base, family)
    model = adapted(family, form, base=base, init_weights=True)
    torch.testing.assert_close(logits(model, family), before, rtol=0, atol=0)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**FAMILIES[family].inputs()).logits.square().mean().backward()
    optimizer.step()
    assert not torch.allclose(logits(model.eval(), family), before, atol=1e-4)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_round_trip_gives_the_same_logits_and_holds_each_tensor_once(family, form, tmp_path):
    head = FAMILIES[family].head
    model = perturb(adapted(family, form, modules_to_save=[head] if head else None))
    expected = logits(model, family)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(FAMILIES[family].build(), tmp_path).eval()
    assert torch.equal(logits(loaded, family), expected)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = {n.replace(".default", "") for n, p in model.named_parameters() if p.requires_grad}
    assert {name.replace(".modules_to_save", "") for name in trained} == set(saved)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_merged_and_unloaded_it_is_the_plain_model_with_the_same_logits(family, form):
    model = adapted(family, form)
    apart = logits(model, family)
    names = set(FAMILIES[family].build().state_dict())
    plain = model.merge_and_unload()
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(logits(plain, family), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_unloaded_it_is_the_base_model(family, form):
    base = logits(FAMILIES[family].build(), family)
    model = adapted(family, form)
    assert not torch.allclose(logits(model, family), base, atol=1e-3)
    assert torch.equal(logits(model.unload(), family), base)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_auto_class_loads_base_and_adapter(family, tmp_path):
    one = FAMILIES[family]
    base = one.build()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    model = perturb(adapted(family, base=base))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    settings = {"num_labels": 3} if one.head else {}
    loaded = AUTO[one.task_type].from_pretrained(tmp_path / "adapter", **settings).eval()
    # Not to the bit: memory that is aligned otherwise lets a matrix product round otherwise.
    torch.testing.assert_close(logits(loaded, family), logits(model, family), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_with_the_consistent_form(family):
    model = adapted(family, "consistent", target_modules="all-linear")
    base = FAMILIES[family].build()
    linear = sum(
        isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D" for m in base.modules()
    )
    assert linear - 3 <= len(layers(model)) < linear  # PEFT leaves out the head
    apart = logits(model, family)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, family), apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_architecture_has_default_targets(family):
    """PEFT's for LoRA: query and value, or the module that holds them; these may be rectangular."""
    model = adapted(family, target_modules=None, form="consistent")
    names = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, CondLoraLayer)}
    expected = {"gpt2": {"c_attn"}, "llama": {"q_proj", "v_proj"}, "t5": {"q", "v"}}
    default = {"query_proj", "value_proj"} if family == "deberta" else {"query", "value"}
    assert names == expected.get(family, default)


def test_encoder_and_decoder_of_t5_do_not_share_maps():
    groups = {layer.group["default"] for layer in layers(adapted("t5"))}
    assert groups == {
        f"{side}.block.layer.{place}.{kind}.{name}"
        for side, place, kind in (
            ("encoder", 0, "SelfAttention"),
            ("decoder", 0, "SelfAttention"),
            ("decoder", 1, "EncDecAttention"),
        )
        for name in "qv"
    }


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_merging_a_tied_output_layer_leaves_the_embedding_as_it_was(family):
    """Both architectures tie lm_head to the embedding: merging into one must not change the other."""
    base = FAMILIES[family].build(tie_word_embeddings=True)
    table = base.get_input_embeddings().weight
    assert base.lm_head.weight is table
    before = table.clone()
    model = adapted(family, "consistent", base=base, target_modules=["lm_head"])
    apart = logits(model, family)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model.merge_adapter()
    torch.testing.assert_close(logits(model, family), apart, rtol=1e-4, atol=1e-4)
    assert torch.equal(table, before)
    model.unmerge_adapter()
    assert model.get_base_model().lm_head.weight is table  # tied again


def test_generation_with_a_decoder_uses_the_adapter():
    family = FAMILIES["llama"]
    prompt = {"input_ids": family.inputs()["input_ids"], "max_new_tokens": 4, "do_sample": False}
    base = family.build().generate(**prompt, pad_token_id=0)
    model = adapted("llama", "consistent")
    made = model.generate(**prompt, pad_token_id=0)
    assert not torch.equal(made, base)
    with model.disable_adapter():
        assert torch.equal(model.generate(**prompt, pad_token_id=0), base)


def test_attention_of_torch_is_refused_since_it_never_calls_its_output_layer():
    block = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    with pytest.raises(ValueError, match="MultiheadAttention"):
        get_peft_model(block, CondLoraConfig(r=2, target_modules=["out_proj"]))
