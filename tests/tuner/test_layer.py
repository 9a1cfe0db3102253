"""The method itself: the three forms' formulas and gradients, on both kinds of linear layer."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from condlora import CondLoraConfig
from condlora.tuner import layer_factors
from condlora.tuner.config import FORMS


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
