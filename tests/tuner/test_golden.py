"""CondLoRA and PEFT's LoRA agree with what the authors' released code computed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from condlora import CondLoraConfig

DTYPES = {"float32": (torch.float32, "", 1e-4), "float64": (torch.float64, ".f64", 1e-8)}


def relative_error(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


class Case:
    """One adapter of the golden set: the adapted model at its start, its inputs and the expected tensors."""

    def __init__(self, method, golden, golden_model, dtype, suffix):
        self.method, self.suffix = method, suffix
        self.tensors = load_file(golden / f"tiny_{method}.safetensors")
        self.inputs = load_file(golden / "tiny_inputs.safetensors")
        config = {"condlora": CondLoraConfig, "lora": LoraConfig}[method](
            r=4, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"]
        )
        self.model = get_peft_model(golden_model(dtype), config).eval()
        self.parameters = dict(self._named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if name.startswith(("theta", "lora")):
                    parameter.copy_(self.tensors[f"adapter.{name}"])

    def _named_parameters(self):
        """Trainable parameters under the golden set's names."""
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            kind = "query" if "query" in name else "value"
            if "condlora_theta" in name:
                yield f"theta_{'A' if 'theta_A' in name else 'B'}.{kind}", parameter
            elif "lora_" in name:
                layer = name.split("layer.")[1].split(".")[0]
                yield f"lora_{'A' if 'lora_A' in name else 'B'}.layer{layer}.{kind}", parameter
            else:
                yield "classifier." + name.split("modules_to_save.default.")[1], parameter

    def expected(self, name):
        return self.tensors[name + self.suffix]

    def loss_and_logits(self):
        output = self.model(**self.inputs)
        return output.loss, output.logits

    def train(self, parameters):
        """20 AdamW steps as in the manifest; returns the 21 losses."""
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
        losses = []
        for _ in range(20):
            loss, _ = self.loss_and_logits()
            losses.append(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return torch.stack([*losses, self.loss_and_logits()[0].detach()])


@pytest.fixture(params=["condlora", "lora"])
def method(request):
    return request.param


@pytest.fixture(params=list(DTYPES))
def case(request, method, golden, golden_model):
    dtype, suffix, tolerance = DTYPES[request.param]
    case = Case(method, golden, golden_model, dtype, suffix)
    case.tolerance = tolerance
    return case


def test_logits_loss_and_gradients(case):
    loss, logits = case.loss_and_logits()
    loss.backward()
    assert relative_error(logits, case.expected("logits")) < case.tolerance
    assert relative_error(loss, case.expected("loss")) < case.tolerance
    for name, parameter in case.parameters.items():
        assert relative_error(parameter.grad, case.expected(f"grad.{name}")) < case.tolerance, name


@pytest.mark.parametrize("trained", ["adapter", "adapter_and_head"])
def test_twenty_adamw_steps(case, trained):
    parameters = {
        name: p
        for name, p in case.parameters.items()
        if trained == "adapter_and_head" or not name.startswith("classifier")
    }
    losses = case.train(parameters.values())
    assert relative_error(losses, case.expected(f"train.{trained}.losses")) < case.tolerance
    # Adam's division amplifies rounding in the weights; the manifest allows 1e-7 for float64 finals.
    tolerance = max(case.tolerance, 1e-7) if case.suffix else 1e-3
    for name, parameter in parameters.items():
        want = case.expected(f"train.{trained}.final.{name}")
        assert relative_error(parameter, want) < tolerance, name


def test_merged_and_disabled(case):
    with torch.no_grad(), case.model.disable_adapter():
        logits = case.loss_and_logits()[1]
    assert relative_error(logits, case.expected("logits_without_adapter")) < case.tolerance
    case.model.merge_adapter()
    with torch.no_grad():
        logits = case.loss_and_logits()[1]
    assert relative_error(logits, case.expected("logits_merged")) < case.tolerance


@pytest.mark.parametrize("method", ["condlora"], indirect=True)
def test_materialised_factors(case):
    layers = case.model.base_model.model.roberta.encoder.layer
    for index, layer in enumerate(layers):
        for kind in ("query", "value"):
            adapted = getattr(layer.attention.self, kind)
            A, B = adapted.materialise()
            delta = adapted.get_delta_weight("default")
            for name, got in (("A", A), ("B", B), ("delta_W", delta)):
                want = case.expected(f"{name}.layer{index}.{kind}")
                assert relative_error(got, want) < case.tolerance
