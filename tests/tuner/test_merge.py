"""Merging: what is added, what unmerging restores, and what is refused."""

import pytest
import torch

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer
from tests.tuner.families import CASES, FAMILIES, adapted, logits


def first_layer(model):
    return next(m for m in model.modules() if isinstance(m, CondLoraLayer))


@pytest.mark.parametrize(("family", "form"), CASES)
def test_merging_adds_the_update_and_unmerging_restores_the_bits(family, form):
    model = adapted(family, form)
    layer = first_layer(model)
    parameter, W = layer.weight, layer.weight.clone()
    delta, apart = layer.get_delta_weight("default"), logits(model, family)
    model.merge_adapter()
    assert torch.equal(layer.weight, W + delta)
    torch.testing.assert_close(logits(model, family), apart, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert layer.weight is parameter and torch.equal(parameter, W)
    assert torch.equal(logits(model, family), apart)


def test_the_update_comes_from_the_pretrained_weight_while_merged():
    model = adapted("bert")
    layer = first_layer(model)
    delta = layer.get_delta_weight("default")
    model.merge_adapter()
    assert torch.equal(layer.get_delta_weight("default"), delta)


def test_several_adapters_merge_into_one_weight_each_made_from_the_pretrained_one():
    model = adapted("bert")
    model.add_adapter("other", CondLoraConfig(r=2, target_modules=["query"], init_weights=False))
    layer = first_layer(model)
    W = layer.weight.clone()
    deltas = [layer.get_delta_weight(name) for name in ("default", "other")]
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging other"):
        model.merge_adapter(["other"])
    assert torch.equal(layer.weight, W + deltas[0] + deltas[1])
    model.unmerge_adapter()
    assert torch.equal(layer.weight, W)


def test_merge_and_unload_of_one_adapter_leaves_the_other_out():
    model = adapted("bert")
    expected = logits(model)
    model.add_adapter("other", CondLoraConfig(r=2, target_modules=["key"], init_weights=False))
    plain = model.merge_and_unload(adapter_names=["default"])
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)


def test_the_pretrained_weight_follows_the_model_to_another_dtype_while_merged():
    model = adapted("bert")
    expected = adapted("bert").double()
    model.merge_adapter()
    model.double()
    model.unmerge_adapter()
    assert first_layer(model).weight.dtype == torch.float64
    torch.testing.assert_close(logits(model), logits(expected))


def test_merging_twice_adds_once():
    model = adapted("bert")
    model.merge_adapter()
    once = first_layer(model).weight.clone()
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert torch.equal(first_layer(model).weight, once)


def test_safe_merge_refuses_values_that_are_not_finite():
    model = adapted("bert")
    layer = first_layer(model)
    W = layer.weight.clone()
    with torch.no_grad():
        layer.theta("default")[1].fill_(float("nan"))
    with pytest.raises(AdapterError, match="NaNs detected in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.weight, W) and not layer.merged


def test_disabling_unmerges_first():
    model = adapted("bert")
    apart = logits(model)
    with model.disable_adapter():
        base = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), apart)


def test_a_merged_adapter_cannot_be_deleted():
    model = adapted("bert")
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge"):
        model.delete_adapter("default")


def test_training_goes_on_after_merging_and_unmerging():
    """The maps and the optimizer's hold on them survive."""
    model = adapted("bert")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model.merge_adapter()
    model.unmerge_adapter()
    before = logits(model)
    model(input_ids=torch.arange(1, 9)[None]).logits.sum().backward()
    optimizer.step()
    assert not torch.allclose(logits(model), before, atol=1e-4)


def test_bfloat16_weights_are_merged_in_their_own_precision():
    model = adapted("bert", base=FAMILIES["bert"].build().bfloat16())
    layer = first_layer(model)
    W, delta = layer.weight.clone(), layer.get_delta_weight("default")
    assert delta.dtype == torch.float32
    model.merge_adapter()
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, W + delta.bfloat16())
    model.unmerge_adapter()
    assert torch.equal(layer.weight, W)


def test_unloading_keeps_a_trained_head_of_several_layers():
    """RoBERTa's head, the paper's, is a module without a weight of its own."""
    model = adapted("roberta", modules_to_save=["classifier"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    apart = logits(model, "roberta")
    plain = model.merge_and_unload()
    assert not any("modules_to_save" in name for name, _ in plain.named_parameters())
    torch.testing.assert_close(logits(plain, "roberta"), apart, rtol=1e-4, atol=1e-4)
