"""Several adapters on one model: added, switched, deleted, disabled, active together, mixed in a batch."""

import pytest
import torch
from peft import PeftModel

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer
from tests.tuner.families import FAMILIES, IDS, adapted, logits, perturb


def other(**settings):
    """An adapter of another rank, form and other targets than `adapted`'s."""
    defaults = {"r": 2, "form": "consistent", "target_modules": ["key", "query"]}
    return CondLoraConfig(**(defaults | {"init_weights": False} | settings))


def two_adapters(task_type="SEQ_CLS", **settings):
    model = adapted("bert", task_type=task_type)
    model.add_adapter("other", other(**settings))
    return model.eval()


def alone(model, name):
    model.set_adapter(name)
    return logits(model)


def test_adding_one_changes_neither_output_nor_trainability():
    model = adapted("bert")
    before = logits(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    model.add_adapter("other", other())
    assert torch.equal(logits(model), before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained


def test_switching_to_and_fro_gives_each_its_own_output_and_gradients():
    model = two_adapters()
    first, second = alone(model, "default"), alone(model, "other")
    assert not torch.allclose(first, second, atol=1e-3)
    trained = {
        n.rsplit(".", 1)[1] for n, p in model.named_parameters() if "theta" in n and p.requires_grad
    }
    assert trained == {"other"}
    assert torch.equal(alone(model, "default"), first)


def test_each_holds_maps_of_its_own_rank_and_form():
    model = two_adapters()
    shapes = {
        name: {g: tuple(a.shape) for g, (a, _) in model.base_model.maps(name).items()}
        for name in ("default", "other")
    }
    path = "bert.encoder.layer.attention.self"
    assert shapes == {
        "default": {f"{path}.query": (4, 16), f"{path}.value": (4, 16)},
        "other": {f"{path}.query": (2, 16), f"{path}.key": (2, 16)},
    }


def test_deleting_one_leaves_no_trace_and_the_other_as_it_was():
    model = two_adapters()
    first = alone(model, "default")
    model.delete_adapter("other")
    assert torch.equal(logits(model), first)
    assert not any(name.endswith("other") for name in model.state_dict())
    assert model.base_model.maps("other") == {}


def test_deleting_the_first_leaves_the_second_working():
    """The first adapter's maps and the second's lie in the same layers, and must not go with them."""
    model = two_adapters()
    second = alone(model, "other")
    model.delete_adapter("default")
    assert torch.equal(alone(model, "other"), second)


def test_a_deleted_name_can_be_used_again():
    model = two_adapters()
    model.delete_adapter("other")
    model.add_adapter("other", other(r=3))
    shapes = {tuple(a.shape) for a, _ in model.base_model.maps("other").values()}
    assert shapes == {(3, 16)}


def test_disabled_adapters_give_the_base_model():
    model = two_adapters()
    base = logits(FAMILIES["bert"].build())
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert not torch.allclose(logits(model), base, atol=1e-3)


def test_two_active_adapters_add_their_updates():
    model = two_adapters(task_type=None)  # PEFT allows one trained head at a time
    model.base_model.set_adapter(["default", "other"])
    layer = model.base_model.model.bert.encoder.layer[1].attention.self.query
    x = torch.randn(2, 16)
    W = layer.frozen_weight() + layer.get_delta_weight("default") + layer.get_delta_weight("other")
    expected = torch.nn.functional.linear(x, W, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_some_layers_holds_its_maps_in_the_first_of_them():
    model = adapted("bert")
    model.add_adapter("upper", other(target_modules=["query"], layers_to_transform=[1, 2]))
    names = [n for n, _ in model.named_parameters() if n.endswith(".upper")]
    assert names and all("encoder.layer.1." in name for name in names)
    first = logits(model)
    model.set_adapter("upper")
    layers = [m for m in model.modules() if isinstance(m, CondLoraLayer) and "upper" in m.group]
    assert len(layers) == 2 and not torch.allclose(logits(model), first, atol=1e-3)


def test_a_batch_may_mix_adapters():
    model = two_adapters()
    apart = {"default": alone(model, "default"), "other": alone(model, "other")}
    with model.disable_adapter():
        apart["__base__"] = logits(model)
    for names in (["other", "default", "__base__"], ["default"] * 2 + ["other"]):
        mixed = logits(model, adapter_names=names)
        expected = torch.stack([apart[name][row] for row, name in enumerate(names)])
        torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), apart["other"])  # the call left nothing behind


def test_a_mixed_batch_uses_each_adapters_head():
    model = adapted("bert", modules_to_save=["classifier"])
    model.add_adapter("other", other(modules_to_save=["classifier"]))
    for name in ("default", "other"):
        model.set_adapter(name)
        perturb(model)
    apart = [alone(model, "other")[0], alone(model, "default")[1], alone(model, "other")[2]]
    mixed = logits(model, adapter_names=["other", "default", "other"])
    torch.testing.assert_close(mixed, torch.stack(apart), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_mixed_batch_survives_beam_search(family):
    model = adapted(family, lora_alpha=400)
    one = FAMILIES[family]
    extra = CondLoraConfig(r=2, lora_alpha=400, target_modules=list(one.square), init_weights=False)
    model.add_adapter("other", extra)
    settings = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
    apart = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        apart[name] = model.generate(input_ids=IDS, **settings)
    with model.disable_adapter():
        base = model.generate(input_ids=IDS, **settings)
    assert not torch.equal(apart["default"][1], base[1]) and not torch.equal(
        apart["other"][0], base[0]
    )
    names = ["other", "default", "other"]
    mixed = model.generate(input_ids=IDS, adapter_names=names, **settings)
    width = mixed.shape[1]
    for row, name in enumerate(names):
        assert torch.equal(mixed[row], apart[name][row, :width])


@pytest.mark.parametrize(
    ("names", "train", "message"),
    [
        (
            ["default", "typo", "default"],
            False,
            "non-existing adapter.*: typo. The model has default, other",
        ),
        (["default"] * 3, True, "in training mode"),
        (["default"], False, "got 1 and 3 respectively"),
        (["default"] * 4, False, "got 4 and 3 respectively"),
    ],
)
def test_a_mixed_batch_that_cannot_be_is_refused(names, train, message):
    model = two_adapters().train(train)
    with pytest.raises(AdapterError, match=message):
        model(input_ids=IDS, adapter_names=names)


def test_a_mixed_batch_on_a_merged_model_is_refused_in_pefts_words():
    model = two_adapters()
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged adapters, please call `unmerge_adapter` first"):
        model(input_ids=IDS, adapter_names=["default", "other", "default"])


def test_adapters_are_not_added_with_weights_directly():
    with pytest.raises(AdapterError, match="condlora.export_lora"):
        two_adapters().add_weighted_adapter(["default", "other"], [0.5, 0.5], "mean")


def test_several_adapters_are_saved_and_loaded_each_by_itself(tmp_path):
    model = two_adapters(modules_to_save=["classifier"])
    for name in ("default", "other"):
        model.set_adapter(name)
        perturb(model)
    expected = {name: alone(model, name) for name in ("default", "other")}
    model.save_pretrained(tmp_path)
    base = FAMILIES["bert"].build()
    loaded = PeftModel.from_pretrained(base, tmp_path, adapter_name="default").eval()
    loaded.load_adapter(tmp_path / "other", adapter_name="renamed")
    assert torch.equal(alone(loaded, "default"), expected["default"])
    assert torch.equal(alone(loaded, "renamed"), expected["other"])


def test_the_models_status_names_method_and_adapters():
    status = two_adapters().get_model_status()
    assert status.peft_types == {"default": "CONDLORA", "other": "CONDLORA"}
    assert status.available_adapters == ["default", "other"]
    assert status.adapter_model_type == "CondLoraModel"
    assert status.requires_grad == {"default": True, "other": False}
