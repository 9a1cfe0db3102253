"""The method itself: the three forms' formulas and gradients, on both kinds of linear layer."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from condlora.tuner import layer_factors
from condlora.tuner.config import FORMS
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.loraplus import create_loraplus_optimizer
from condlora.tuner.methods.condlora import CondLora


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
def test_a_pair_for_each_layer_reaches_every_update_of_lora(form):
    """For arbitrary A and B there are maps with that very update in every layer, W being square and invertible.

    So what CondLoRA loses against LoRA as layers_per_map grows from 1 is the price of sharing.
    """
    torch.manual_seed(2)
    base = Stack(8, 8)
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["up"]}
    model = get_peft_model(base, CondLoraConfig(form=form, layers_per_map=1, **settings))
    layers = [block["up"] for block in base.blocks]
    assert len(model.base_model.maps()) == len(layers)
    for layer in layers:
        W = layer.frozen_weight()
        A, B = torch.randn(3, 8, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
        theta_A, theta_B = layer.theta("default")
        with (
            torch.no_grad()
        ):  # the forms solved for the maps: theta_A W^T = A, W theta_B^T = B, and so on
            theta_A.copy_(torch.linalg.solve(W.T if form == "consistent" else W, A.T).T)
            theta_B.copy_(torch.linalg.solve(W.T if form == "literal" else W, B).T)
        update = layer.get_delta_weight("default")
        torch.testing.assert_close(update, 2.0 * B @ A, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", [nn.Linear, lambda i, o: Conv1D(o, i)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize(
    ("form", "out", "in_"),
    [*((form, 4, 4) for form in FORMS), ("consistent", 5, 3), ("consistent", 3, 5)],
)
def test_gradient_check_in_double_precision(form, out, in_, layer):
    """Analytic against numeric gradients, square and rectangular."""
    torch.manual_seed(2)
    model = get_peft_model(
        Stack(layer=lambda: layer(in_, out)),
        CondLoraConfig(r=2, form=form, target_modules=["up"], init_weights=False),
    )
    thetas = tuple(p for p in model.parameters() if p.requires_grad)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    x = torch.randn(2, in_, dtype=torch.float64)

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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_few_rows_in_training_give_what_the_made_factors_give(form, rows, monkeypatch):
    """Below `r` rows B (A x) is computed without A and B: same output and gradients, in double precision."""
    torch.manual_seed(5)
    out, in_ = (6, 10) if form == "consistent" else (8, 8)
    settings = {"r": 4, "form": form, "target_modules": ["up"], "init_weights": False}
    model = get_peft_model(Stack(out, in_), CondLoraConfig(**settings))
    trained = [p for p in model.parameters() if p.requires_grad]
    x = torch.randn(1, rows, in_, dtype=torch.float64, requires_grad=True)

    def run():
        return model(x), *torch.autograd.grad(model(x).square().sum(), (*trained, x))

    made = []
    materialise = CondLoraLayer.materialise
    monkeypatch.setattr(CondLoraLayer, "materialise", lambda *a: made.append(1) or materialise(*a))
    found = run()
    assert bool(made) == (rows >= 4)
    monkeypatch.setattr(CondLora, "product", lambda *args, **tensors: None)
    for short, long in zip(found, run(), strict=True):
        torch.testing.assert_close(short, long, rtol=1e-10, atol=1e-10)


def test_in_evaluation_the_factors_of_a_frozen_adapter_are_made_once(monkeypatch):
    """Also where gradients are enabled, as long as none passes through the maps."""
    model = get_peft_model(Stack(8, 8), CondLoraConfig(r=2, target_modules=["up"])).eval()
    made = []
    materialise = CondLoraLayer.materialise
    monkeypatch.setattr(CondLoraLayer, "materialise", lambda *a: made.append(1) or materialise(*a))
    x = torch.randn(5, 8, dtype=torch.float64)
    model.base_model.set_requires_grad("default", False)
    model(x), model(x)
    assert len(made) == 3  # layers
    model.base_model.set_requires_grad("default", True)
    model(x).sum().backward()
    assert len(made) == 6


def test_a_layer_has_the_sizes_and_names_that_peft_shows():
    model = get_peft_model(
        Stack(6, 10, lambda: Conv1D(6, 10)),
        CondLoraConfig(r=2, form="consistent", target_modules=["up"]),
    )
    layer = model.base_model.model.blocks[0]["up"]
    assert (layer.in_features, layer.out_features) == (10, 6)
    assert repr(layer).startswith("condlora.Linear(")
    layer.quantization_backend = type("Backend", (), {"backend_name": "bnb4bit"})()
    assert "quantization_backend='bnb4bit'" in repr(layer)


def test_lora_plus_trains_what_makes_b_at_its_own_rate():
    """PEFT's function knows names of LoRA alone."""
    for method, names in (("condlora", {"theta_B"}), ("tied_lora", {"B", "v"}), ("nola", {"b"})):
        model = get_peft_model(
            Stack(8, 8), CondLoraConfig(r=2, method=method, target_modules=["up"])
        )
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16
        )
        named = {
            id(p): n.split("condlora_")[1].split(".")[0]
            for n, p in model.named_parameters()
            if p.requires_grad
        }
        rates = {
            named[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]
        }
        assert {name for name, rate in rates.items() if rate == 16e-3} == names
        assert set(rates) == set(named.values())
    with pytest.raises(AdapterError, match="no CondLoRA adapter"):
        create_loraplus_optimizer(Stack(8, 8), torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)


def test_maps_of_a_layer_that_was_dropped_live_on_in_the_next_and_are_saved(tmp_path):
    settings = {"r": 2, "target_modules": ["up"], "init_weights": False}
    model = get_peft_model(Stack(8, 8), CondLoraConfig(**settings))
    maps = model.base_model.maps()["blocks.up"]
    model.base_model.model.blocks = model.base_model.model.blocks[1:]
    with pytest.warns(UserWarning, match="no longer in the model: .*blocks.0.up holds them"):
        model.save_pretrained(tmp_path)
    assert all(a is b for a, b in zip(model.base_model.maps()["blocks.up"], maps, strict=True))
    assert sum(p.requires_grad for p in model.parameters()) == 2
    torch.manual_seed(0)
    shorter = Stack(8, 8)
    shorter.blocks = shorter.blocks[1:]
    loaded = PeftModel.from_pretrained(shorter, tmp_path)
    assert all(map(torch.equal, loaded.base_model.maps()["blocks.up"], maps))
