"""The method itself: formulas, gradients, start, merging, and what does not fit."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from condlora.tuner import layer_factors
from condlora.tuner.config import FORMS
from condlora.tuner.model import layer_index, sharing_group

INPUT = {"input_ids": torch.arange(1, 25).reshape(3, 8)}


def adapted(model, **settings):
    settings = {"target_modules": ["query", "value"], "init_weights": False, **settings}
    return get_peft_model(model, CondLoraConfig(r=4, **settings)).eval()


class Stack(nn.Module):
    """Three rectangular layers of one kind, in double precision."""

    def __init__(self, out=6, in_=10, layer=None):
        super().__init__()
        layer = layer or (lambda: nn.Linear(in_, out))
        self.blocks = nn.ModuleList([nn.ModuleDict({"up": layer()}) for _ in range(3)])
        self.double()

    def forward(self, x):
        return sum(block["up"](x) for block in self.blocks)


@pytest.mark.parametrize(
    ("form", "formula"),
    [
        ("code", lambda W, a, b: (a @ W.T, W @ b.T)),
        ("literal", lambda W, a, b: (a @ W.T, W.T @ b.T)),
        ("consistent", lambda W, a, b: (a @ W, W @ b.T)),
    ],
)
def test_forms_give_the_formulas_of_the_paper(form, formula):
    """Output and gradients against autograd through the formula written out."""
    torch.manual_seed(1)
    out, in_ = (6, 10) if form == "consistent" else (8, 8)
    base = Stack(out, in_)
    weights = [block["up"].weight.detach().clone() for block in base.blocks]
    biases = sum(block["up"].bias.detach() for block in base.blocks)
    config = CondLoraConfig(r=2, lora_alpha=6, form=form, target_modules=["up"], init_weights=False)
    model = get_peft_model(base, config)
    theta_A, theta_B = (p for p in model.parameters() if p.requires_grad)
    x = torch.randn(5, in_, dtype=torch.float64)

    def oracle(a, b):
        y = biases
        for W in weights:
            A, B = formula(W, a, b)
            y = y + x @ W.T + 3.0 * x @ A.T @ B.T
        return y

    assert torch.allclose(model(x), oracle(theta_A, theta_B), rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(model(x).square().sum(), (theta_A, theta_B))
    expected = torch.autograd.grad(oracle(theta_A, theta_B).square().sum(), (theta_A, theta_B))
    for got, want in zip(grads, expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_check(form):
    torch.manual_seed(2)
    model = get_peft_model(
        Stack(4, 4), CondLoraConfig(r=2, form=form, target_modules=["up"], init_weights=False)
    )
    thetas = tuple(p for p in model.parameters() if p.requires_grad)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    x = torch.randn(2, 4, dtype=torch.float64)

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,)).sum()

    assert len(thetas) == 2
    assert torch.autograd.gradcheck(loss, thetas)


def test_conv1d_equals_linear_with_the_transposed_weight():
    torch.manual_seed(3)
    linear, conv = nn.Linear(8, 8).double(), Conv1D(8, 8).double()
    conv.weight.data, conv.bias.data = linear.weight.data.T.contiguous(), linear.bias.data
    x = torch.randn(2, 8, dtype=torch.float64)
    outputs = []
    for layer in (linear, conv):
        torch.manual_seed(4)
        config = CondLoraConfig(r=2, target_modules=["up"], init_weights=False)
        model = get_peft_model(nn.ModuleDict({"up": layer}), config)
        outputs.append(model.base_model.model["up"](x))
    assert torch.allclose(*outputs)
    assert not torch.allclose(outputs[0], linear(x))


def test_adapted_model_starts_as_the_frozen_one(tiny_bert):
    before = tiny_bert()(**INPUT).logits
    model = adapted(tiny_bert(), init_weights=True)
    assert torch.equal(model(**INPUT).logits, before)
    theta_A = model.base_model.condlora_theta_A["default"]
    assert all(p.abs().max() > 0 for p in theta_A.values())


def test_parameter_counts_of_table_4():
    """294,912 for LoRA and 24,576 for CondLoRA on a RoBERTa-base-shaped model, classifier aside."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(vocab_size=50)  # 12 layers of 768 are the defaults
    counts = {}
    for method in (LoraConfig, CondLoraConfig):
        with torch.device("meta"):
            model = RobertaModel(config)
            model = get_peft_model(model, method(r=8, target_modules=["query", "value"]))
        counts[method.__name__] = model.get_nb_trainable_parameters()[0]
    assert counts == {"LoraConfig": 294_912, "CondLoraConfig": 24_576}


def test_layers_of_one_kind_share_storage_and_kinds_do_not(tiny_bert):
    model = adapted(tiny_bert())
    layers = [m for m in model.modules() if type(m).__name__ == "Linear" and hasattr(m, "group")]
    assert len(layers) == 6
    pointers = {layer.condlora_theta_A["default"].data_ptr() for layer in layers}
    groups = {layer.group["default"] for layer in layers}
    assert len(pointers) == len(groups) == 2


@pytest.mark.parametrize(
    ("path", "group", "index"),
    [
        ("bert.encoder.layer.7.attention.self.query", "bert/encoder/layer/attention/self/query", 7),
        ("encoder.block.3.layer.1.DenseReluDense.wi", "encoder/block/layer/1/DenseReluDense/wi", 3),
        ("head", "head", None),
    ],
)
def test_sharing_group_is_the_path_without_the_layer_index(path, group, index):
    assert sharing_group(path) == group
    assert layer_index(path) == index


def test_dense_layers_of_different_shapes_do_not_collide(tiny_bert):
    """The authors key by the last path component, which mixes three shapes of `dense` in BERT."""
    model = adapted(tiny_bert(), target_modules=["dense"], form="consistent")
    shapes = {k: tuple(p.shape) for k, p in model.base_model.condlora_theta_A["default"].items()}
    assert len(shapes) == 4  # attention output, intermediate, output, pooler
    assert len(set(shapes.values())) == 2


@pytest.mark.parametrize("form", FORMS)
def test_merge_adds_delta_and_unmerge_restores_the_bits(tiny_bert, form):
    model = adapted(tiny_bert(), form=form)
    layer = model.base_model.model.bert.encoder.layer[1].attention.self.query
    W = layer.get_base_layer().weight.clone()
    delta = layer.get_delta_weight("default")
    apart = model(**INPUT).logits
    model.merge_adapter()
    assert torch.equal(layer.get_base_layer().weight, W + delta)
    assert torch.allclose(model(**INPUT).logits, apart, atol=1e-5)
    assert torch.equal(
        layer.get_delta_weight("default"), delta
    )  # from W, not from the merged weight
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_layer().weight, W)
    assert torch.equal(model(**INPUT).logits, apart)


def test_safe_merge_refuses_values_that_are_not_finite(tiny_bert):
    model = adapted(tiny_bert())
    W = model.base_model.model.bert.encoder.layer[0].attention.self.query.weight.clone()
    with torch.no_grad():
        next(iter(model.base_model.condlora_theta_B["default"].values())).fill_(float("nan"))
    with pytest.raises(AdapterError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.base_model.model.bert.encoder.layer[0].attention.self.query.weight, W)


def test_merge_and_unload_gives_a_plain_model(tiny_bert):
    model = adapted(tiny_bert())
    apart = model(**INPUT).logits
    plain = model.merge_and_unload()
    assert not any("condlora" in name for name, _ in plain.named_parameters())
    assert torch.allclose(plain(**INPUT).logits, apart, atol=1e-5)


def test_unloading_keeps_a_trained_head_of_several_layers():
    """RoBERTa's head, the paper's, is a module without a weight of its own."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=50, intermediate_size=24, **sizes)
    model = adapted(RobertaForSequenceClassification(config), task_type="SEQ_CLS")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    apart = model(**INPUT).logits
    plain = model.merge_and_unload()
    assert not any("condlora" in name for name, _ in plain.named_parameters())
    assert torch.allclose(plain(**INPUT).logits, apart, atol=1e-5)


def test_second_adapter_of_other_rank_form_and_targets(tiny_bert):
    model = adapted(tiny_bert())
    first = model(**INPUT).logits
    other = CondLoraConfig(
        r=2, form="consistent", target_modules=["key", "query"], init_weights=False
    )
    model.add_adapter("other", other)
    assert torch.equal(model(**INPUT).logits, first)
    model.set_adapter("other")
    second = model(**INPUT).logits
    assert not torch.allclose(second, first)
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(model(**INPUT).logits, first)
    assert not any("other" in name for name, _ in model.named_parameters())


def test_factors_are_those_of_the_forward_pass(tiny_bert):
    for config in (
        CondLoraConfig(r=4, target_modules=["query", "value"], init_weights=False),
        LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False),
    ):
        model = get_peft_model(tiny_bert(), config).eval()
        factors = layer_factors(model, {"query": "query", "value": "value"})
        assert factors["value"].layers == [0, 1, 2]
        for index in range(3):
            layer = model.base_model.model.bert.encoder.layer[index].attention.self.value
            f = factors["value"]
            delta = f.scaling * f.B[index] @ f.A[index]
            assert torch.allclose(delta, layer.get_delta_weight("default"), atol=1e-6)
            assert torch.equal(f.W[index], layer.get_base_layer().weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["intermediate.dense"]}, 'set form="consistent"'),
        ({"target_modules": ["word_embeddings"]}, "Embedding"),
        ({"r": 17}, "choose r of at most 16"),
        ({"r": 0}, "positive"),
        ({"form": "other"}, "choose one of code, literal, consistent"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(tiny_bert, settings, message):
    with pytest.raises(AdapterError, match=message):
        config = CondLoraConfig(**({"target_modules": ["query"]} | settings))
        get_peft_model(tiny_bert(), config)
