"""LoRA-drop: which layers keep a pair, decided from the outputs of a first training."""

import dataclasses
import json

import pytest
import torch
from peft import get_peft_model

from condlora import CondLoraConfig
from condlora.models.adapters import save_adapter
from condlora.models.backbones import load_backbone
from condlora.models.baselines.lora_drop import important, squared_outputs
from condlora.training import setup
from condlora.training.data import prepare
from tests.tasks import compose_tiny
from tests.tuner.families import FAMILIES, perturb

KIND = "encoder.layer.{}.query"


def test_the_fewest_layers_that_reach_the_threshold_keep_a_pair_in_each_module_kind():
    outputs = {KIND.format(i): x for i, x in enumerate([1.0, 6.0, 2.5, 0.5])}
    outputs |= {KIND.format(i).replace("query", "value"): x for i, x in enumerate([0.01, 0.09])}
    assert important(outputs, 0.8) == {KIND.format(1), KIND.format(2), "encoder.layer.1.value"}
    assert len(important(outputs, 0.9)) == 3 + 1
    assert important(outputs, 1.0) == set(outputs)


def test_the_output_of_a_layer_is_s_b_a_x_over_the_tokens_of_the_text():
    config = CondLoraConfig(
        r=4, lora_alpha=8, method="share_lora", options={"shared": "AB"}, layers_per_map=1,
        target_modules=["query"], task_type="SEQ_CLS", init_weights=False,
    )  # fmt: skip
    model = perturb(get_peft_model(FAMILIES["bert"].build(), config)).eval()
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batches = [{"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:1], "attention_mask": mask[:1]}]  # fmt: skip
    found = squared_outputs(model, batches)
    assert list(found) == [f"bert.encoder.layer.{i}.attention.self.query" for i in range(3)]
    with torch.no_grad():
        states = model.get_base_model().bert(ids, mask, output_hidden_states=True).hidden_states
        for (path, total), x in zip(found.items(), states[:3], strict=True):
            A, B = model.get_base_model().get_submodule(path).materialise()
            squares = (2.0 * x @ A.T @ B.T).square().sum(-1) * mask
            torch.testing.assert_close(total, (squares.sum() + squares[0].sum()).item(), rtol=1e-5, atol=0)  # fmt: skip


def start(*overrides):
    (cfg,) = compose_tiny("task=rte", "protocol.precision=no", *overrides)
    backbone = load_backbone(cfg.backbone, num_labels=2)
    return setup.initialise(cfg, backbone, setup.streams(0, "rte"), prepare(cfg))


def test_the_layers_are_in_the_saved_config_and_the_pairs_are_drawn_as_without_the_first_training(
    tmp_path,
):
    words = ("adapter=lora_drop", "protocol.learning_rate=1e-2", "adapter.importance.threshold=0.3")
    model = start(*words)
    own = model.peft_config["default"].unshared_modules
    assert sorted(path.rpartition(".")[2] for path in own) == ["query", "value"]
    assert start(*words).peft_config["default"].unshared_modules == own
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["unshared_modules"] == own
    trained = sum(p.numel() for n, p in model.named_parameters() if "condlora_" in n)
    assert trained == 2 * 2 * 8 * (16 + 16)  # of each kind a pair of one layer and a shared one
    plain = start("adapter=share_lora_ab", f"+adapter.config.unshared_modules={own}")
    theirs = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    ours = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(p, theirs[n]) for n, p in ours.items())


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_first_training_changes_neither_the_backbone_nor_the_config_but_for_the_layers(share):
    model = start(
        "adapter=lora_drop", "protocol.learning_rate=1e-2", f"adapter.importance.share={share}"
    )
    plain = start("adapter=share_lora_ab")
    frozen = {n: p for n, p in plain.named_parameters() if not p.requires_grad}
    ours = dict(model.named_parameters())
    assert all(torch.equal(ours[n], p) for n, p in frozen.items())
    config = model.peft_config["default"]
    assert dataclasses.replace(config, unshared_modules=None) == plain.peft_config["default"]
