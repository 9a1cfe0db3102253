"""Saving and loading through PEFT: each shared tensor once, and nothing silently drawn anew."""

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from condlora import CondLoraConfig

INPUT = {"input_ids": torch.arange(1, 25).reshape(3, 8)}


def trained(model, **settings):
    config = CondLoraConfig(
        r=4, target_modules=["query", "value"], modules_to_save=["classifier"], **settings
    )
    model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_round_trip_gives_identical_logits(tiny_bert, tmp_path):
    model = trained(tiny_bert())
    expected = model(**INPUT).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    assert torch.equal(loaded(**INPUT).logits, expected)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_file_holds_each_shared_tensor_once(tiny_bert, tmp_path):
    trained(tiny_bert()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    maps = {name: t for name, t in tensors.items() if "condlora_theta" in name}
    assert sorted(maps) == [
        f"base_model.condlora_theta_{which}.bert/encoder/layer/attention/self/{kind}"
        for which in "AB"
        for kind in ("query", "value")
    ]
    assert len(tensors) == 6  # and the head's weight and bias


def test_loading_into_a_live_model_keeps_its_parameters(tiny_bert, tmp_path):
    """An optimizer holds Parameters: loading must fill them, not replace them."""
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    trained(tiny_bert()).save_pretrained(tmp_path)
    model = trained(tiny_bert())
    before = [p for p in model.parameters() if p.requires_grad]
    set_peft_model_state_dict(model, load_peft_weights(str(tmp_path), device="cpu"))
    after = [p for p in model.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(after, before, strict=True))
    maps = load_file(tmp_path / "adapter_model.safetensors")
    got = {n.replace(".default", ""): p for n, p in model.named_parameters() if "theta" in n}
    assert all(torch.equal(got[name], t) for name, t in maps.items() if "theta" in name)


def test_bfloat16_base_keeps_float32_maps(tiny_bert, tmp_path):
    model = trained(tiny_bert().bfloat16())
    assert {p.dtype for n, p in model.named_parameters() if "theta" in n} == {torch.float32}
    assert model(**INPUT).logits.dtype == torch.bfloat16
