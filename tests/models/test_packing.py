"""Packed batches: layers see no padding, and nothing but speed changes."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers import BertForSequenceClassification as Classifier
from transformers.models.bert import modeling_bert

from condlora import CondLoraConfig
from condlora.errors import ConfigError
from condlora.models.packing import FAMILIES, pack
from condlora.runs.record import run_folder
from condlora.training import compatibility, joint, setup
from condlora.training import run as finetune
from condlora.training.device import make_accelerator
from condlora.training.state import Training
from condlora.training.step import step
from tests.members import ACCELERATOR, Member
from tests.models.test_families import FAMILIES as CELLS
from tests.tasks import slow

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")

PAD = 1
LENGTHS = [5, 12, 33, 2, 18, 12]  # three groups for attention: up to 16, 32 and 64 tokens
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64,
}  # fmt: skip
ARCHITECTURES = {
    "bert": SIZES,
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64},
    "llama": SIZES | {"num_key_value_heads": 1},
    # Every second layer has a window of four tokens; the head reads the mean of all.
    "modernbert": SIZES | {
        "local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 0,
        "classifier_pooling": "mean",
    },
    "mpnet": SIZES | {"relative_attention_num_buckets": 32},
    "roberta": SIZES,
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
}  # fmt: skip
MODULES = {
    "bert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "modernbert": ["Wqkv"],
    "mpnet": ["q", "v"],
    "roberta": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
}
HEADS = {"deberta-v2": ["pooler", "classifier"], "modernbert": ["head", "classifier"], "distilbert": ["pre_classifier", "classifier"]}  # fmt: skip
LEFT = ("gpt2", "llama", "modernbert")  # the others' heads read the first token, there padding


@pytest.fixture
def classifier():
    """A function (family, **settings) -> a model of random weights in float64, without dropout."""

    def build(family, attention="sdpa"):
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            family, vocab_size=50, pad_token_id=PAD, bos_token_id=2, eos_token_id=3, num_labels=3,
            **ARCHITECTURES[family],
        )  # fmt: skip
        if family == "mpnet":  # which has no other
            attention = "eager"
        model = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=attention
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.double().eval()

    return build


def adapted(model, method, family):
    settings = {"form": "consistent"} if method is CondLoraConfig else {"init_lora_weights": False}
    torch.manual_seed(1)
    heads = HEADS.get(family)  # else the one that PEFT knows
    config = method(
        r=2, target_modules=MODULES[family], task_type="SEQ_CLS", modules_to_save=heads, **settings
    )
    return get_peft_model(copy.deepcopy(model), config)


def batch(width, side="right", **changes):
    """Six examples of LENGTHS, `changes` being other texts by position."""
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(4, 50, (n,), generator=generator) for n in LENGTHS]
    for position, text in changes.items():
        texts[int(position[1:])] = text
    ids, mask = torch.full((len(texts), width), PAD), torch.zeros(len(texts), width).long()
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, where], mask[row, where] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(texts)) % 3}


def results(model, inputs, **more):
    """Logits, and gradients by name."""
    outputs = model(**inputs, **more)
    outputs.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": outputs.logits.detach()} | gradients


def assert_same(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("method", [None, LoraConfig, CondLoraConfig])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_padding_gives_equal_logits_and_gradients(classifier, family, method):
    model = classifier(family)
    ways = [adapted(model, method, family) if method else copy.deepcopy(model) for _ in range(3)]
    expected = results(ways[0], batch(40))
    assert len(expected) > 3
    assert_same(results(ways[1], batch(33)), expected)
    assert_same(results(pack(ways[2]), batch(33), lengths=LENGTHS), expected)


def test_padding_changes_nothing_in_a_family_that_cannot_be_packed(classifier):
    model = classifier("deberta-v2", "eager")
    expected = results(copy.deepcopy(model), batch(40))
    assert_same(results(model, batch(33)), expected, 1e-6)


@pytest.mark.parametrize("family", LEFT)
def test_padding_may_be_on_the_left(classifier, family):
    model, inputs = classifier(family), batch(37, side="left")
    expected = results(copy.deepcopy(model), inputs)
    assert_same(results(pack(model), inputs, lengths=LENGTHS), expected)


@pytest.mark.parametrize("members", [2, 3, 6])
@pytest.mark.parametrize("family", FAMILIES)
def test_members_have_their_tokens_apart_and_the_same_logits(classifier, family, members):
    model, inputs = classifier(family), batch(33)
    expected = results(pack(copy.deepcopy(model)), inputs, lengths=LENGTHS)
    assert_same(results(pack(model), inputs, lengths=LENGTHS, members=members), expected)


@pytest.mark.parametrize("precision", [torch.float64, *slow(torch.bfloat16)])
@pytest.mark.parametrize("family", [*FAMILIES, "deberta-v2"])
def test_runs_of_a_fleet_have_the_gradients_they_have_alone(classifier, family, precision):
    """Of adapters and of each family's head, which is one, two or three layers; in bfloat16 but for its rounding."""
    trainings, batches, expected, is_mixed = [], [], [], precision == torch.bfloat16
    for seed in range(3):
        attention = "eager" if family == "deberta-v2" else "sdpa"  # it has no other
        model = adapted(classifier(family, attention), LoraConfig, family)
        for module in model.modules():
            for name in ("p", "attention_dropout"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        inputs = batch(33, _1=torch.randint(4, 50, (12,)))
        model = model.float() if is_mixed else model
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            expected.append(results(copy.deepcopy(model).train(), inputs))
        trainings.append(Training(model, None, None, ACCELERATOR, 1.0))
        batches.append(inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        joint.joint_gradients(trainings, batches)
    for training, own in zip(trainings, expected, strict=True):
        del own["logits"]
        found = {n: p.grad for n, p in training.trainable.items()}
        assert sum(".modules_to_save." in name for name in found) > 0
        if is_mixed:
            tolerance = 0.05 * max(tensor.abs().max() for tensor in own.values())
        else:
            tolerance = 1e-6 if family == "deberta-v2" else 1e-10  # parts of it are float32
        assert_same(found, own, tolerance)


def test_dropout_in_a_head_is_drawn_for_each_run_of_a_fleet(classifier):
    model = adapted(classifier("roberta"), LoraConfig, "roberta")
    model.requires_grad_(False)
    trainings = []
    for _ in range(2):
        own = copy.deepcopy(model)
        for path, module in own.named_modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5 * (".modules_to_save." in path)
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(".modules_to_save." in name)
        trainings.append(Training(own, None, None, ACCELERATOR, 1.0))
    first, second = joint.joint_gradients(trainings, [batch(33), batch(33)])
    assert first != second


def test_layers_see_real_tokens_alone_and_an_adapter_with_them(classifier):
    shapes = []
    for members in (1, 2):
        model = pack(adapted(classifier("bert"), LoraConfig, "bert"))
        for path, module in model.named_modules():
            if path.endswith(("lora_A.default", "intermediate.dense")):
                module.register_forward_pre_hook(lambda _, x: shapes.append(tuple(x[0].shape)))
        model(**batch(40), lengths=LENGTHS, members=members)
    assert set(shapes[:9]) == {(1, sum(LENGTHS), 16)}
    assert set(shapes[9:]) == {(2, max(sum(LENGTHS[:3]), sum(LENGTHS[3:])), 16)}
    assert len(shapes) == 18


def test_attention_is_over_examples_of_about_one_length(classifier, monkeypatch):
    """Short ones are not padded to the longest: up to 16 tokens, up to 32 and up to 64 each have theirs."""
    shapes, original = [], modeling_bert.eager_attention_forward

    def watched(module, query, *rest, **settings):
        shapes.append(tuple(query.shape))
        return original(module, query, *rest, **settings)

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", watched)
    for members in (1, 2):
        pack(classifier("bert", "eager"))(**batch(40), lengths=LENGTHS, members=members)
    assert shapes == [(4, 2, 12, 8), (1, 2, 33, 8), (1, 2, 18, 8)] * 3 * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_another_text_changes_no_other_examples_logits(classifier, family):
    model = pack(classifier(family))
    for text in (torch.arange(10, 43), torch.arange(20, 31)):  # of the same length, and shorter
        lengths = [*LENGTHS[:2], len(text), *LENGTHS[3:]]
        before = model(**batch(33), lengths=LENGTHS).logits
        after = model(**batch(33, _2=text), lengths=lengths).logits
        changed = (before - after).abs().amax(dim=1) > 1e-12
        assert changed.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_attention_is_packed_too(classifier, family):
    model = classifier(family, "eager").float()  # some models have their softmax in float32 always
    expected = results(copy.deepcopy(model), batch(33))
    assert_same(results(pack(model), batch(33), lengths=LENGTHS), expected, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_precision_is_as_near_as_without_packing(classifier, family):
    model = classifier(family).float()
    exact = model(**batch(33)).logits
    with torch.autocast("cpu", torch.bfloat16):
        padded = model(**batch(33)).logits
        packed = pack(model)(**batch(33), lengths=LENGTHS).logits
    assert (packed - exact).abs().max() < 2 * (padded - exact).abs().max() + 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_waits_for_the_device(classifier, family):
    """On the meta device there are no values to wait for: asking for one raises."""
    model = pack(classifier(family)).to("meta").train()
    inputs = {name: tensor.to("meta") for name, tensor in batch(33).items()}
    model(**inputs, lengths=LENGTHS).loss.backward()


@pytest.mark.parametrize("methods", [[LoraConfig], [LoraConfig, CondLoraConfig, CondLoraConfig]])
def test_a_training_step_waits_for_nothing(classifier, tiny_cells, monkeypatch, methods):
    """As above, from the batch to the optimizer's step, of one run and of a fleet; the loss is read later."""
    (cfg,) = tiny_cells("task=rte", "protocol.precision=no", "runtime.padding=packed")
    accelerator = make_accelerator(cfg)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    monkeypatch.setattr(
        compatibility, "share_frozen", lambda *_: True
    )  # which compares values, once before the first step
    # There already, as going there makes other parameters than the optimizer knows, where going to a GPU does not.
    models = [pack(adapted(classifier("bert"), method, "bert")).to("meta") for method in methods]
    trainings = [setup.prepare_training(cfg, model, 6, accelerator) for model in models]
    assert next(trainings[0].model.parameters()).device.type == "meta"
    inputs = send_to_device(batch(33) | {"lengths": LENGTHS}, "meta")
    members = [Member(training, dict(inputs)) for training in trainings]
    compatibility.find_kinds(members)
    for _ in range(2):
        (group,) = compatibility.compatible(members)
        for member, loss in step(group):
            member.training.progress.count(len(LENGTHS), loss)
    assert all(t.progress.loss_sum.device.type == "meta" for t in trainings)
    assert all(len(t.optimizer.state) == len(t.trainable) for t in trainings)


def losses(cell):
    finetune.run(cell)
    return pd.read_csv(run_folder(cell) / "curve.csv")["train_loss"].to_numpy()


@pytest.fixture
def cell(tiny_cells, tmp_path):
    """A function (padding, *overrides) -> config of a short run without dropout, or with."""

    def compose(padding, *overrides):
        words = ["task=stsb", "protocol.max_length=64", "protocol.precision=no"]
        words += ["protocol.adapter.lora_dropout=0.0"]
        words += [
            f"+backbone.architecture.{part}_dropout_prob=0.0"
            for part in ("hidden", "attention_probs")
        ]
        words += [f"runtime.padding={padding}", f"runs={tmp_path}/{padding}", *overrides]
        return tiny_cells(*words)[0]

    return compose


@pytest.mark.parametrize("fitting", [10, *slow(32)])
def test_a_run_has_the_same_curve_and_predictions_even_where_batches_are_split(
    cell, monkeypatch, fitting
):
    longest, packed = cell("longest"), cell("packed")
    expected = losses(longest)

    def forward(self, labels=None, original=Classifier.forward, **inputs):
        if self.training and len(labels) > fitting:
            raise torch.OutOfMemoryError
        return original(self, labels=labels, **inputs)

    monkeypatch.setattr(Classifier, "forward", forward)
    np.testing.assert_allclose(losses(packed), expected, rtol=1e-5)
    for split in ("validation", "test"):
        name = f"predictions_{split}.parquet"
        tables = [pd.read_parquet(run_folder(c) / name) for c in (longest, packed)]
        pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_record_says_that_attention_was_packed(cell):
    assert finetune.run(cell("packed"))["environment"]["attention"] == "packed_sdpa"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("adapter=prompt_tuning",), "does not support adapters that add tokens"),
        (("adapter=prefix_tuning",), "does not support adapters that add tokens"),
        (
            ("runtime.attention=flex_attention",),
            "does not support runtime.attention=flex_attention",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused_with_what_to_set(cell, overrides, reason):
    with pytest.raises(ConfigError, match=f"packed {reason}.*: set runtime.padding=longest"):
        finetune.run(cell("packed", *overrides))


def test_other_families_are_refused_with_what_to_set(tiny_cells):
    words = ("task=mrpc", "protocol.max_length=32", *CELLS["deberta"], "runtime.padding=packed")
    with pytest.raises(
        ConfigError, match=r"does not support deberta-v2, only bert, .*padding=longest"
    ):
        finetune.run(tiny_cells(*words)[0])


def test_auto_leaves_padded_what_cannot_be_packed(tiny_cells):
    for adapter, attention in (("lora", "packed_"), ("prompt_tuning", "")):
        (cfg,) = tiny_cells(
            "task=rte", f"adapter={adapter}", "protocol.max_length=64", "protocol.precision=no"
        )
        assert finetune.run(cfg)["environment"]["attention"] == f"{attention}sdpa"
