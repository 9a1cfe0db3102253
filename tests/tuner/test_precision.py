"""Number formats: float32 maps over half-precision bases, autocast, meta tensors, quantised bases."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from condlora import CondLoraConfig
from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.methods import METHODS
from condlora.tuner.methods.condlora import make_factors
from tests.tuner.families import FAMILIES, IDS, adapted, logits, perturb

HALVES = [torch.bfloat16, torch.float16]


def map_dtypes(model):
    return {theta.dtype for pair in model.base_model.maps().values() for theta in pair}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_half_precision_base_keeps_its_dtype_and_gets_float32_maps(dtype):
    model = adapted("bert", base=FAMILIES["bert"].build().to(dtype))
    assert map_dtypes(model) == {torch.float32}
    assert model.get_base_model().bert.encoder.layer[0].attention.self.query.weight.dtype == dtype
    assert logits(model).dtype == dtype
    model(input_ids=IDS).logits.float().sum().backward()
    thetas = [theta for pair in model.base_model.maps().values() for theta in pair]
    assert {theta.grad.dtype for theta in thetas} == {torch.float32}


def test_maps_stay_in_the_bases_dtype_where_that_is_asked_for():
    config = CondLoraConfig(r=4, target_modules=["query"])
    model = get_peft_model(
        FAMILIES["bert"].build().bfloat16(), config, autocast_adapter_dtype=False
    )
    assert map_dtypes(model) == {torch.bfloat16}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_under_autocast_a_float32_model_is_near_its_own_output(dtype):
    exact = logits(adapted("bert"))
    model = adapted("bert")
    with torch.autocast("cpu", dtype=dtype):
        rough = logits(model)
    assert 0 < (rough - exact).abs().max() < 0.1
    assert torch.equal(logits(model), exact)  # what was made under autocast is not used outside it


class Copies(TorchDispatchMode):
    """Shapes of the tensors that are brought into another format within it."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, operator, types, arguments=(), settings=None):
        if operator is torch.ops.aten._to_copy.default:
            self.shapes.append(tuple(arguments[0].shape))
        return operator(*arguments, **(settings or {}))


@pytest.mark.parametrize("form", ["code", "literal", "consistent"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_w_is_rounded_once_to_the_same_bits(base, form):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(12, 12, generator=generator).to(base)
    theta_A, theta_B = (torch.randn(4, 12, generator=generator) for _ in "AB")
    exact = W.float()
    with torch.autocast("cpu", torch.bfloat16):
        with Copies() as copies:
            A, B = make_factors(W, theta_A, theta_B, form)
        expected_A = theta_A @ (exact if form == "consistent" else exact.T)
        expected_B = (theta_B @ (exact if form == "literal" else exact.T)).T
    assert torch.equal(A, expected_A) and torch.equal(B, expected_B)
    assert copies.shapes.count((12, 12)) == (base == torch.float32)
    assert make_factors(W, theta_A, theta_B, form)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_cpu_mem_usage_loads_the_same_maps(dtype, tmp_path):
    build = FAMILIES["bert"].build
    model = perturb(adapted("bert", base=build().to(dtype)))
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(build().to(dtype), tmp_path).eval()
    frugal = PeftModel.from_pretrained(build().to(dtype), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(frugal), logits(model)) and torch.equal(logits(plain), logits(model))
    assert map_dtypes(frugal) == {torch.float32}  # and not rounded to the base's on the way
    for group, pair in model.base_model.maps().items():
        for theta, loaded in zip(pair, frugal.base_model.maps()[group], strict=True):
            assert torch.equal(theta, loaded)


@pytest.mark.parametrize("form", ["code", "literal", "consistent"])
def test_double_precision_is_kept_throughout(form):
    model = adapted("bert", form, base=FAMILIES["bert"].build().double())
    assert map_dtypes(model) == {torch.float64} and logits(model).dtype == torch.float64


# Quantised bases


@pytest.fixture
def quantised():
    """A function (bits) -> BERT whose encoder's linear layers bitsandbytes has quantised, on the CPU."""
    bnb = pytest.importorskip("bitsandbytes")

    def build(bits):
        model = FAMILIES["bert"].build(hidden_size=64, intermediate_size=128)
        kinds = {
            4: lambda i, o: bnb.nn.Linear4bit(i, o, compute_dtype=torch.float32, quant_type="nf4"),
            8: lambda i, o: bnb.nn.Linear8bitLt(i, o, has_fp16_weights=False),
        }
        for name, module in list(model.bert.encoder.named_modules()):
            if isinstance(module, torch.nn.Linear):
                parent, _, last = name.rpartition(".")
                fresh = kinds[bits](module.in_features, module.out_features)
                fresh.load_state_dict(module.state_dict())
                setattr(model.bert.encoder.get_submodule(parent), last, fresh.to("cpu"))
        return model.requires_grad_(False).eval()

    return build


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_adapted_by_its_dequantised_weight(quantised, bits):
    model = adapted("bert", base=quantised(bits))
    layer = model.get_base_model().bert.encoder.layer[0].attention.self.query
    assert layer.quantization_backend.backend_name == f"bnb {bits}bit"
    W = layer.frozen_weight()
    dense = FAMILIES["bert"].build(hidden_size=64, intermediate_size=128)
    exact = dense.bert.encoder.layer[0].attention.self.query.weight
    assert W.is_floating_point() and 0 < (W - exact).abs().max() < 0.2
    assert layer.frozen_weight() is W  # dequantised once
    theta_A, theta_B = layer.theta("default")
    A, B = layer.materialise()
    torch.testing.assert_close(A, theta_A @ W.T.to(A.dtype))
    torch.testing.assert_close(B, W.to(B.dtype) @ theta_B.T)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_trains_saves_and_loads(quantised, bits, tmp_path):
    before = logits(adapted("bert", base=quantised(bits)))
    model = adapted("bert", base=quantised(bits)).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=IDS).logits.sum().backward()
    optimizer.step()
    trained = logits(model.eval())
    assert not torch.allclose(trained, before, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(quantised(bits), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_merged_with_rounding_and_restored_without(quantised, bits):
    model = adapted("bert", base=quantised(bits), lora_alpha=32)
    with model.disable_adapter():
        base = logits(model)
    apart = logits(model)
    model.merge_adapter()
    merged = logits(model)
    assert (merged - apart).abs().max() < 0.5 * (apart - base).abs().max()
    layer = next(m for m in model.modules() if isinstance(m, CondLoraLayer))
    assert layer.merged and not layer.weight.is_floating_point()
    model.unmerge_adapter()
    assert torch.equal(logits(model), apart)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "condlora"])
def test_every_other_method_stands_on_a_quantised_base_too(quantised, method, bits, tmp_path):
    """It trains, is merged with rounding and unmerged without, and saves and loads."""
    options = {"nola": {"bases": 5}, "melora": {"blocks": 2}}.get(method, {})
    model = adapted("bert", base=quantised(bits), method=method, options=options, lora_alpha=32)
    model.train()  # before any evaluation, after which bitsandbytes' 4 bits train no more on some CPUs
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and "condlora_" in n}
    model(input_ids=IDS, labels=torch.tensor([0, 1, 2])).loss.backward()
    torch.optim.SGD(trained.values(), lr=0.1).step()
    for name, parameter in trained.items():
        assert parameter.dtype == torch.float32 and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    apart = logits(model.eval())
    with model.disable_adapter():
        base = logits(model)
    model.merge_adapter()
    assert (logits(model) - apart).norm() < 0.7 * (apart - base).norm()
    model.unmerge_adapter()
    assert torch.equal(logits(model), apart)
    model.save_pretrained(tmp_path)  # by which bitsandbytes rounds the 4 bits' scales on such CPUs
    loaded = PeftModel.from_pretrained(quantised(bits), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), apart, rtol=1e-5, atol=1e-6)


def test_a_base_quantised_otherwise_is_refused():
    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qweight = torch.nn.Parameter(
                torch.zeros(4, 4, dtype=torch.int32), requires_grad=False
            )

    model = torch.nn.ModuleDict({"query": Packed()})
    with pytest.raises(AdapterError, match="Packed.*bitsandbytes"):
        get_peft_model(model, CondLoraConfig(r=2, target_modules=["query"]))
