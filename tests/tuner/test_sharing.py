"""Every method of `condlora.tuner.methods`: what CondLoRA does as a PEFT method, each of them does."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from condlora import CondLoraConfig, export_lora
from condlora.errors import AdapterError
from condlora.tuner import layer_factors
from condlora.tuner.io.card import model_card
from condlora.tuner.kept import kept_factors
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.methods import METHODS
from condlora.tuner.methods.base import Method, Seeded, Trained
from condlora.tuner.methods.cond_adalora import CondAdaLora
from condlora.tuner.methods.controls import haar
from condlora.tuner.methods.lora_xs import principal_factors
from tests.tuner.families import FAMILIES, IDS, adapted, logits, perturb

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "nola": [{"bases": 5}, {"bases": 5, "start": "authors"}],
    "share_lora": [
        *({"shared": shared} for shared in ("A", "B", "AB")),
        {"shared": "A", "random": "B"},
    ],
    "half_lora": [
        {"trained": "A", "frozen": "kaiming"},
        {"trained": "B", "frozen": "orthogonal"},
        {"trained": "A", "frozen": "singular"},
    ],
    "melora": [{"blocks": 2}],
}
CASES = [
    pytest.param(
        {"method": name, "options": options}, id="-".join([name, *map(str, options.values())])
    )
    for name in METHODS
    for options in OPTIONS.get(name, [{}])
]
# Some with blocks of layers in place of whole groups: of three layers two blocks, or three.
CASES += [
    pytest.param(
        settings | {"layers_per_map": k},
        id="-".join([settings["method"], *settings["options"].values(), f"k{k}"]),
    )
    for settings, k in (
        ({"method": "condlora", "options": {}}, 2),
        ({"method": "condlora_random", "options": {}}, 2),
        ({"method": "condlora_frozen_a", "options": {}}, 1),
        ({"method": "share_lora", "options": {"shared": "AB"}}, 1),
        ({"method": "tied_lora", "options": {}}, 2),
    )
]
CONTROLS = [name for name in METHODS if name.startswith("condlora")]
SEEDED = [name for name in METHODS if issubclass(METHODS[name], Seeded)]
# One method of each kind is tested in `make test`, the others in `make test-slow`.
FAST = ("condlora", "share_lora", "tied_lora", "cond_adalora", "lotr", "vera")
every_method = pytest.mark.parametrize(
    "settings",
    [
        case
        if case.values[0]["method"] in FAST
        and case.values[0]["options"].get("shared", "AB") == "AB"
        else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for case in CASES
    ],
)


def layers_of(model, adapter_name="default"):
    layers = {n: m for n, m in model.named_modules() if isinstance(m, CondLoraLayer)}
    return {n: m for n, m in layers.items() if adapter_name in m.group}


def queries(model):
    return [layer for name, layer in layers_of(model).items() if name.endswith("query")]


def derived(model):
    return {name: buffer for name, buffer in model.named_buffers() if "condlora_derived" in name}


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad and "condlora_" in n}


@every_method
def test_it_starts_as_the_frozen_model(settings):
    model = adapted("bert", init_weights=True, **settings)
    # LoRA-XS starts at a Gaussian R of 1e-5, as its paper has it.
    tolerance = 1e-4 if settings["method"] == "lora_xs" else 0.0
    expected = logits(FAMILIES["bert"].build())
    torch.testing.assert_close(logits(model), expected, rtol=0.0, atol=tolerance)


@every_method
def test_it_trains_every_tensor_and_the_loss_falls(settings):
    torch.manual_seed(1)
    model = adapted("bert", init_weights=True, **settings).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    frozen = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if "condlora_" not in name and "classifier" not in name
    }
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2, weight_decay=0.0)
    labels, losses = torch.tensor([0, 1, 2]), []
    for _ in range(15):
        losses.append(model(input_ids=IDS, labels=labels).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 1e-3
    for name, parameter in trained(model).items():
        assert not torch.equal(parameter, before[name]), name
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())


@every_method
def test_saved_and_loaded_it_gives_the_same_bits_and_nothing_derived_is_saved(settings, tmp_path):
    model = perturb(adapted("bert", **settings))
    model.save_pretrained(tmp_path)
    for frugal in (True, False):
        base = FAMILIES["bert"].build()
        torch.manual_seed(123)  # what was drawn may not be drawn anew
        loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=frugal).eval()
        # Its maps have rank 2 here, and BLAS rounds such products by where in memory they begin.
        tolerance = 1e-6 if frugal and settings["method"] == "cond_pissa" else 0.0
        torch.testing.assert_close(logits(loaded), logits(model), rtol=0.0, atol=tolerance)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    names = {n.removesuffix(".default") for n in trained(model)}
    assert {name for name in saved if "condlora_" in name} == names
    again, first = derived(loaded), derived(model)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if settings["method"] == "condlora":
        assert "method" not in config and "options" not in config  # as before there were others
    else:
        assert config["method"] == settings["method"]
        assert config["options"].items() >= settings["options"].items()
        assert isinstance(config["options"].get("seed", 0), int)


@pytest.mark.parametrize(
    "settings",
    [
        case if n < 4 else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for n, case in enumerate(CASES)
    ],
)
def test_a_file_that_lacks_a_tensor_or_holds_one_of_another_shape_is_refused(settings, tmp_path):
    model = perturb(adapted("bert", **settings))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    saved = load_file(file)
    for name in (n for n in saved if "condlora_" in n):
        rest = {key: tensor for key, tensor in saved.items() if key != name}
        save_file(rest, file)
        with pytest.raises(AdapterError, match=f"lacks .*{name.rpartition('.')[2]}"):
            PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path)
        save_file(rest | {name: saved[name][:, :-1].contiguous()}, file)
        with pytest.raises(AdapterError, match="in the adapter's file and"):
            PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path)


@every_method
def test_another_default_device_changes_nothing(settings):
    """Where a GPU is the default, what is drawn is the same; here the default is torch's device without values."""
    options = {"seed": 3} if settings["method"] in SEEDED else {}
    settings = settings | {"options": settings["options"] | options}
    expected = derived(adapted("bert", **settings))
    base = FAMILIES["bert"].build()
    with torch.device("meta"):
        found = derived(adapted("bert", base=base, **settings))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@every_method
def test_merged_and_unmerged_it_is_exact(settings):
    model = adapted("bert", **settings)
    apart = logits(model)
    (layer, *_) = layers_of(model).values()
    parameter, W = layer.weight, layer.weight.clone()
    delta = layer.get_delta_weight("default")
    A, B = layer.materialise()
    torch.testing.assert_close(delta, layer.scaling["default"] * B @ A)
    assert delta.abs().max() > 1e-4
    model.merge_adapter()
    assert torch.equal(layer.weight, W + delta)
    torch.testing.assert_close(logits(model), apart, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert layer.weight is parameter and torch.equal(parameter, W)
    assert torch.equal(logits(model), apart)
    torch.testing.assert_close(logits(model.merge_and_unload()), apart, rtol=1e-4, atol=1e-4)


@every_method
def test_exported_it_is_a_plain_lora_of_equal_logits(settings, tmp_path):
    model = perturb(adapted("bert", use_rslora=True, **settings))
    config = export_lora(model.train(), tmp_path / "lora")
    assert config.peft_type == "LORA" and config.r == 4
    loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path / "lora").eval()
    assert any(isinstance(module, LoraLayer) for module in loaded.modules())
    torch.testing.assert_close(logits(loaded), logits(model.eval()), rtol=1e-5, atol=1e-5)


@every_method
def test_beside_an_adapter_of_another_method_it_stands_and_goes_alone(settings):
    """LoRA-XS's, CondLoRA's and one with a derived theta_A beside a trained one: no name may clash."""
    model = adapted("bert", **settings)
    first = logits(model)
    for method in ("lora_xs", "condlora", "condlora_frozen_a"):
        name = f"beside_{method}"
        other = CondLoraConfig(
            method=method, r=2, target_modules=["query", "key"], init_weights=False
        )
        model.add_adapter(name, other)
        assert torch.equal(logits(model), first)
        model.set_adapter(name)
        assert not torch.allclose(logits(model), first, atol=1e-4)
        shown = logits(model)
        model.set_adapter("default")
        assert torch.equal(logits(model), first)
        mixed = logits(model, adapter_names=["default", name, "default"])
        expected = torch.stack([first[0], shown[1], first[2]])
        torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
        model.delete_adapter(name)
        names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
        assert not [n for n in names if n.endswith(f".{name}")]
        assert not layers_of(model, name)
        assert torch.equal(logits(model), first)
    model.delete_adapter("default")
    assert not trained(model) and not derived(model)


@every_method
def test_a_copy_shares_nothing_with_the_original(settings):
    model = adapted("bert", **settings)
    before = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), before)
    perturb(twin)
    with torch.no_grad():
        for buffer in derived(twin).values():
            buffer.zero_()
        for layer in layers_of(twin).values():
            layer.weight.mul_(2.0)
    assert torch.equal(logits(model), before)


@every_method
def test_factors_are_read_for_the_analysis(settings):
    model = adapted("bert", **settings)
    factors = layer_factors(model, {"query": "query"})["query"]
    assert (factors.W.shape, factors.A.shape) == ((3, 16, 16), (3, 4, 16))
    assert (factors.B.shape, factors.layers, factors.scaling) == ((3, 16, 4), [0, 1, 2], 2.0)
    for A, B, layer in zip(factors.A, factors.B, queries(model), strict=True):
        expected = factors.scaling * B @ A
        torch.testing.assert_close(layer.get_delta_weight("default"), expected)


@every_method
def test_it_is_kept_at_inference_and_follows_what_is_trained(settings):
    model = adapted("bert", **settings)
    (layer, *_) = queries(model)
    with torch.no_grad():
        first = kept_factors(layer, "default")
        assert kept_factors(layer, "default")[0] is first[0]
        before = first[1] @ first[0]
        for theta in layer.theta("default"):
            theta.mul_(2.0)
        again = kept_factors(layer, "default")
        assert not torch.allclose(again[1] @ again[0], before)


@every_method
@pytest.mark.parametrize("use_dora", [False, True])
def test_on_gpt2_s_transposed_weights_it_merges_and_exports(settings, use_dora, tmp_path):
    model = perturb(adapted("gpt2", use_dora=use_dora, **settings), scale=0.03)
    apart = logits(model, "gpt2")
    export_lora(model, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(FAMILIES["gpt2"].build(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(loaded, "gpt2"), apart, rtol=1e-3, atol=1e-4)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, "gpt2"), apart, rtol=1e-3, atol=1e-4)


@every_method
def test_half_precision_weights_are_no_hindrance(settings, tmp_path):
    model = perturb(adapted("bert", base=FAMILIES["bert"].build().bfloat16(), **settings))
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert {buffer.dtype for buffer in derived(model).values()} <= {torch.float32}
    model(input_ids=IDS).logits.sum().backward()
    model.save_pretrained(tmp_path)
    base = FAMILIES["bert"].build().bfloat16()
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@every_method
def test_what_is_trained_may_be_in_half_precision_too(settings):
    config = CondLoraConfig(r=4, target_modules=["query"], init_weights=False, **settings)
    base = FAMILIES["bert"].build().bfloat16()
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    assert {p.dtype for p in trained(model).values()} == {torch.bfloat16}
    model(input_ids=IDS).logits.sum().backward()
    assert all(p.grad is not None for p in trained(model).values())
    A, B = queries(model)[1].materialise()
    assert A.dtype == B.dtype == torch.bfloat16


@every_method
def test_the_card_names_the_method(settings):
    model = adapted("bert", **settings)
    method = METHODS[settings["method"]]
    text = str(model_card(model, "me/it"))
    assert f"# {method.title} adapter for" in text
    assert f"[{method.title}](https://arxiv.org/abs/{method.arxiv})" in text
    assert ("| form |" in text) == ("form" in method.__dataclass_fields__)
    assert ("| method |" in text) == (settings["method"] != "condlora")


@pytest.mark.parametrize("method", [*CONTROLS, "cond_adalora"])
def test_methods_with_forms_take_all_linear_modules_in_the_consistent_form(method, tmp_path):
    model = adapted("bert", "consistent", method=method, target_modules=["query", "dense"],
                    exclude_modules=["pooler.dense"])  # fmt: skip
    assert {tuple(layer.weight.shape) for layer in layers_of(model).values()} == {
        (16, 16), (24, 16), (16, 24),
    }  # fmt: skip
    export_lora(model, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [c for c in CASES if c.values[0]["method"] not in ("condlora_other_layer",)]
)
def test_all_linear_adapts_every_linear_module(settings):
    form = "form" in METHODS[settings["method"]].__dataclass_fields__
    model = get_peft_model(
        FAMILIES["bert"].build(),
        CondLoraConfig(r=4, form="consistent" if form else "code", target_modules="all-linear",
                       task_type="SEQ_CLS", init_weights=False, **settings),
    )  # fmt: skip
    assert len(layers_of(model)) == 3 * 6 + 1  # of each layer six, and the pooler
    model(input_ids=IDS).logits.sum().backward()
    assert all(p.grad is not None for p in trained(model).values())


# Trained parameters of a model of L layers of width d, query and value adapted with rank r: two groups.
L, D, R = 12, 768, 8
COUNTS = {
    "condlora": 2 * R * 2 * D,  # section 3.4 and Table 4 of CondLoRA's paper
    "condlora_random": 2 * R * 2 * D,
    "condlora_spectrum": 2 * R * 2 * D,
    "condlora_other_layer": 2 * R * 2 * D,
    "condlora_frozen_a": 2 * R * D,
    "condlora_frozen_b": 2 * R * D,
    "condlora_core": 2 * (R * 2 * D + L * R**2),
    "condlora_x": 2 * R * 2 * D + R * D,  # one theta_x for both groups: 30,720
    "cond_adalora": 2 * (R * 2 * D + L * R),  # CondLoRA's, and Lambda of AdaLoRA's section 3.1
    "cond_pissa": 2 * (R // 2) * 2 * D,  # CondLoRA's of half the rank
    "cond_dylora": 2 * R * 2 * D,
    "share_lora-A": 2 * (R * D + L * R * D),  # ShareLoRA, section 3: A shared, B free
    "share_lora-B": 2 * (R * D + L * R * D),
    "share_lora-AB": 2 * R * 2 * D,
    "share_lora-A-B": 2 * (R * D + L * R * D),
    "lotr": 2 * (R * 2 * D + L * R**2),  # two factors once, a core for each layer
    "tied_lora": 2 * (R * 2 * D + L * (R + D)),  # Tied-LoRA's vBuA, A and B once, u and v a layer
    "lora_xs": 2 * L * R * R,  # LoRA-XS, section 3: r^2 a module
    "nola-5-authors": 2 * L * 2 * 5,
    "nola-5": 2 * L * 2 * 5,  # NOLA, section 3: the coefficients of A and of B
    "dylora": 2 * L * R * 2 * D,  # as LoRA
    "half_lora-A-kaiming": 2 * L * R * D,  # half of LoRA's
    "half_lora-B-orthogonal": 2 * L * R * D,
    "half_lora-A-singular": 2 * L * R * D,
    "melora-2": 2 * L * R * 2 * D // 2,  # MELoRA: LoRA's over the number of blocks
    "condlora-k2": 6 * 2 * R * 2 * D,  # a pair for each two of the twelve layers
    "condlora_random-k2": 6 * 2 * R * 2 * D,
    "condlora_frozen_a-k1": L * 2 * R * D,
    "share_lora-AB-k1": 2 * L * R * 2 * D,  # as LoRA
    "tied_lora-k2": 2 * (6 * R * 2 * D + L * (R + D)),
}


@pytest.mark.parametrize("settings", CASES)
def test_parameter_counts_are_the_papers_formulas(settings, request):
    from transformers import RobertaConfig, RobertaModel

    config = CondLoraConfig(r=R, target_modules=["query", "value"], **settings)
    with torch.device("meta"):
        model = get_peft_model(RobertaModel(RobertaConfig(vocab_size=50)), config)
    assert model.get_nb_trainable_parameters()[0] == COUNTS[request.node.callspec.id]


def test_random_condition_has_w_s_shape_and_scale_and_nothing_else_of_it():
    one, other = (adapted("bert", method="condlora_random", options={"seed": s}) for s in (3, 3))
    (first, second, *_), twins = queries(one), []
    for layer in (first, second, queries(other)[0]):
        C, W = layer.condlora_derived_condition["default"], layer.frozen_weight()
        assert C.shape == W.shape
        torch.testing.assert_close(C.norm(), W.norm())
        assert not torch.allclose(torch.linalg.svdvals(C), torch.linalg.svdvals(W), rtol=0.05)
        twins.append(C)
    assert torch.equal(twins[0], twins[2])  # of the seed and the place
    assert abs(torch.corrcoef(torch.stack([twins[0].flatten(), twins[1].flatten()]))[0, 1]) < 0.3
    theta_A, theta_B = first.theta("default")
    A, B = first.materialise()
    torch.testing.assert_close(A, theta_A @ twins[0].T)
    torch.testing.assert_close(B, twins[0] @ theta_B.T)


def test_spectrum_condition_has_w_s_singular_values_and_random_vectors():
    model = adapted(
        "bert", "consistent", method="condlora_spectrum", target_modules=["intermediate.dense"]
    )
    for layer in layers_of(model).values():
        C, W = layer.condlora_derived_condition["default"], layer.frozen_weight()
        torch.testing.assert_close(
            torch.linalg.svdvals(C), torch.linalg.svdvals(W), rtol=1e-4, atol=1e-5
        )
        cosines = torch.linalg.svd(C)[0][:, :4].T @ torch.linalg.svd(W)[0][:, :4]
        assert cosines.abs().max() < 0.9
        A, _ = layer.materialise()
        torch.testing.assert_close(A, layer.theta("default")[0] @ C)


def test_haar_matrices_are_orthonormal_and_prefer_no_sign():
    draws = [haar(5, 3, torch.Generator().manual_seed(n)) for n in range(300)]
    for Q in draws[:5]:
        torch.testing.assert_close(Q.T @ Q, torch.eye(3, dtype=torch.float64))
    mean = torch.stack(draws).mean(0)  # of entries with variance 1/5: sd 0.026
    assert mean.abs().max() < 0.13


def test_other_layer_gives_each_layer_the_next_ones_weight_also_while_that_is_merged():
    model = adapted("bert", method="condlora_other_layer")
    one, two, three = queries(model)
    weights = [layer.weight.detach().clone() for layer in (two, three, one)]
    for merged in (False, True):
        if merged:
            model.merge_adapter()
        for layer, W in zip((one, two, three), weights, strict=True):
            theta_A, theta_B = layer.theta("default")
            A, B = layer.materialise()
            assert torch.equal(A, theta_A @ W.T) and torch.equal(B, (theta_B @ W.T).T)
    model.unmerge_adapter()
    with torch.no_grad():
        before = kept_factors(one, "default")[0]
        two.weight.mul_(2.0)
        torch.testing.assert_close(kept_factors(one, "default")[0], 2.0 * before)


def test_a_name_that_was_deleted_can_be_given_to_another_method():
    model = adapted("bert", method="condlora_other_layer")
    model.add_adapter("kept", CondLoraConfig(r=2, target_modules=["query"]))
    model.delete_adapter("default")
    model.add_adapter("default", CondLoraConfig(r=2, target_modules=["query"]))
    (layer, *_) = queries(model)
    theta_A, _ = layer.theta("default")
    assert torch.equal(layer.materialise()[0], theta_A @ layer.weight.T)


def test_other_layer_needs_another_layer():
    with pytest.raises(AdapterError, match="is one layer"):
        adapted("bert", method="condlora_other_layer", layers_to_transform=[1])


def test_frozen_a_trains_theta_b_alone():
    model = adapted("bert", method="condlora_frozen_a", options={"seed": 1})
    assert all("theta_B" in name for name in trained(model)) and len(trained(model)) == 2
    holder, second, _ = queries(model)
    theta_A = holder.condlora_derived_theta_A["default"]
    assert not hasattr(second, "condlora_derived_theta_A")
    torch.testing.assert_close(second.materialise()[0], theta_A @ second.weight.T)
    (value, *_) = (x for n, x in layers_of(model).items() if n.endswith("value"))
    assert not torch.equal(value.condlora_derived_theta_A["default"], theta_A)


@pytest.mark.parametrize(
    "settings",
    [
        c
        for c in CASES
        if c.id
        in (
            *("share_lora-AB", "tied_lora", "nola-5", "dylora", "lotr", "melora-2"),
            "half_lora-B-orthogonal",
        )
    ],
)
def test_methods_without_a_condition_do_not_depend_on_w(settings):
    model = adapted("bert", **settings)
    before = [layer.materialise() for layer in layers_of(model).values()]
    with torch.no_grad():
        for layer in layers_of(model).values():
            layer.weight.normal_()
    for layer, (A, B) in zip(layers_of(model).values(), before, strict=True):
        assert torch.equal(layer.materialise()[0], A) and torch.equal(layer.materialise()[1], B)


def test_share_lora_shares_what_it_says():
    for shared in ("A", "B", "AB"):
        model = adapted("bert", method="share_lora", options={"shared": shared})
        one, two, _ = queries(model)
        for name, a, b in zip("AB", one.materialise(), two.materialise(), strict=True):
            assert torch.equal(a, b) == (name in shared)


def test_nola_as_in_the_authors_code_starts_from_a_frozen_a():
    """Against the released layer, written out: A = A_0 + sum of a_k U_k / sqrt(k), U uniform in (-1, 1); B in the same way."""
    options = {"bases": 5, "start": "authors", "seed": 1}
    model = adapted("bert", method="nola", options=options, init_weights=True)
    holder, second, _ = queries(model)
    A_0 = second.condlora_derived_A_0["default"]
    A, B = second.materialise()
    assert torch.equal(A, A_0) and not B.any()
    assert not torch.equal(A_0, holder.condlora_derived_A_0["default"])
    for name in ("bases_A", "bases_B"):
        bases = getattr(holder, f"condlora_derived_{name}")["default"]
        assert 0.8 / 5**0.5 < bases.abs().max() <= 1 / 5**0.5 and bases.min() < 0
    perturb(model)
    A, _ = second.materialise()
    bases, a = holder.condlora_derived_bases_A["default"], second.condlora_a["default"][0]
    torch.testing.assert_close(A, A_0 + sum(a[k] * bases[k] for k in range(5)))


def test_tied_lora_has_the_numbers_of_parameters_that_its_paper_prints():
    """LLaMA-2 7B, rank 8, queries, keys and values in one: about 4.2M for LoRA, 131K for A and B once for all 32 layers."""
    W = torch.empty(3 * 4096, 4096, device="meta")
    tensors = METHODS["tied_lora"]().tensors(W, 8)
    shared = sum(math.prod(t.shape) for t in tensors.values() if t.is_shared)
    assert (shared // 1000, round(32 * shared / 1e6, 1)) == (131, 4.2)
    own = {name: t.shape for name, t in tensors.items() if not t.is_shared}
    assert own == {"u": (8, 1), "v": (3 * 4096, 1)}


def test_tied_lora_scales_what_is_shared():
    model = perturb(adapted("bert", method="tied_lora"))
    holder, second, _ = queries(model)
    u, v = second.condlora_u["default"], second.condlora_v["default"]
    A, B = second.materialise()
    torch.testing.assert_close(A, torch.diag(u[:, 0]) @ holder.condlora_A["default"])
    torch.testing.assert_close(B, torch.diag(v[:, 0]) @ holder.condlora_B["default"])


def test_a_frozen_theta_b_is_random_and_theta_a_starts_at_zero():
    model = adapted("bert", method="condlora_frozen_b", options={"seed": 1}, init_weights=True)
    assert all("theta_A" in name for name in trained(model)) and len(trained(model)) == 2
    holder, second, _ = queries(model)
    theta_B = holder.condlora_derived_theta_B["default"]
    A, B = second.materialise()
    assert not A.any() and not hasattr(second, "condlora_derived_theta_B")
    torch.testing.assert_close(B, second.weight @ theta_B.T)


def test_the_authors_type1_adds_one_theta_x_of_all_layers_to_the_input_of_b():
    """Against the released layer's forward pass, written out: B (A x + 0.5 theta_x x)."""
    model = perturb(adapted("bert", method="condlora_x"))
    named = [name for name in trained(model) if "theta_x" in name]
    assert len(named) == 1  # for query and value of all three layers
    theta_x, x = trained(model)[named[0]], torch.randn(5, 16)
    for layer in layers_of(model).values():
        theta_A, theta_B, common = layer.theta("default")
        assert common is theta_x
        W = layer.weight
        hidden = x @ (theta_A @ W.T).T + 0.5 * (x @ theta_x.T)
        expected = x @ W.T + layer.bias + 2.0 * hidden @ (W @ theta_B.T).T
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_layers_of_another_width_have_a_theta_x_of_their_own():
    model = adapted("bert", "consistent", method="condlora_x", target_modules=["query", "dense"],
                    exclude_modules=["pooler.dense"])  # fmt: skip
    shapes = [tuple(p.shape) for name, p in trained(model).items() if "theta_x" in name]
    assert sorted(shapes) == [(4, 16), (4, 24)]


def test_the_theta_x_of_removed_layers_is_kept(tmp_path):
    model = perturb(adapted("bert", method="condlora_x"))
    model.base_model.model.bert.encoder.layer = model.base_model.model.bert.encoder.layer[1:]
    with pytest.warns(UserWarning, match="is no longer in the model"):
        model.eval()
    before = {id(p) for n, p in trained(model).items() if "theta_x" in n}
    assert len(before) == 1
    export_lora(model, tmp_path / "lora")


def test_a_core_starts_as_condlora_and_stands_between_b_and_a():
    model = adapted("bert", method="condlora_core", init_weights=True)
    holder, second, _ = queries(model)
    assert torch.equal(second.condlora_G["default"], torch.eye(4))
    perturb(model)
    theta_A, theta_B, G = second.theta("default")
    A, B = second.materialise()
    W = second.weight
    torch.testing.assert_close(B @ A, W @ theta_B.T @ G @ theta_A @ W.T, rtol=1e-4, atol=1e-5)
    assert G is not holder.condlora_G["default"] and theta_A is holder.condlora_theta_A["default"]


def test_lotr_shares_its_factors_and_not_its_cores():
    model = perturb(adapted("bert", method="lotr"))
    holder, second, _ = queries(model)
    A, B = second.materialise()
    G = second.condlora_G["default"]
    torch.testing.assert_close(
        B @ A, holder.condlora_B["default"] @ G @ holder.condlora_A["default"]
    )
    assert not torch.equal(G, holder.condlora_G["default"])


def test_lotr_has_the_number_of_parameters_that_its_authors_print():
    """The example of github.com/daskol/lotr: rank 2, query and value share; 595,298 less the head's 592,130."""
    from transformers import RobertaConfig, RobertaModel

    config = CondLoraConfig(r=2, method="lotr", sharing="shape", target_modules=["query", "value"])
    with torch.device("meta"):
        model = get_peft_model(RobertaModel(RobertaConfig(vocab_size=50)), config)
    assert model.get_nb_trainable_parameters()[0] == 595_298 - 592_130


@pytest.mark.parametrize("matrix", ["A", "B"])
def test_the_frozen_half_of_lora_is_what_it_says(matrix):
    def half(frozen):
        options = {"trained": "AB".replace(matrix, ""), "frozen": frozen, "seed": 1}
        model = adapted("bert", method="half_lora", options=options, init_weights=True)
        (layer, other, _) = queries(model)
        assert [name.rpartition("_")[2] for name in trained(model)] == [
            f"{options['trained']}.default"
        ] * 6
        own, following = (
            getattr(one, f"condlora_derived_{matrix}")["default"] for one in (layer, other)
        )
        assert not torch.allclose(own, following)  # each layer has its own
        return layer.weight, own if matrix == "A" else own.T

    _, rows = half("orthogonal")
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), rtol=0, atol=1e-5)
    W, rows = half("singular")
    U, _, Vh = torch.linalg.svd(W)
    expected = Vh[:4] if matrix == "A" else U[:, :4].T
    torch.testing.assert_close((rows @ expected.T).abs(), torch.eye(4), rtol=0, atol=1e-4)
    _, rows = half("kaiming")
    assert rows.abs().max() <= 0.5  # LoRA's A is uniform below 1 / sqrt(in), here of 16 or 4 inputs


def test_swapped_it_starts_with_a_random_b():
    model = adapted(
        "bert", method="share_lora", options={"shared": "A", "random": "B"}, init_weights=True
    )
    one, two, _ = queries(model)
    assert not one.materialise()[0].any() and one.materialise()[1].any()
    assert not torch.equal(one.materialise()[1], two.materialise()[1])


def test_melora_is_small_loras_side_by_side():
    model = perturb(adapted("bert", method="melora", options={"blocks": 2}))
    (layer, *_) = queries(model)
    small_A, small_B = layer.condlora_A["default"], layer.condlora_B["default"]
    A, B = layer.materialise()
    torch.testing.assert_close(A, torch.block_diag(small_A[:2], small_A[2:]))
    torch.testing.assert_close(B, torch.block_diag(small_B[:8], small_B[8:]))
    with pytest.raises(AdapterError, match="blocks is 3, the rank 4 and a target weight 16 x 16"):
        adapted("bert", method="melora", options={"blocks": 3})


def test_lora_xs_at_the_identity_is_the_best_approximation_of_w():
    model = adapted("bert", method="lora_xs")
    (layer, *_) = queries(model)
    with torch.no_grad():
        layer.theta("default")[0].copy_(torch.eye(4))
    U, S, Vh = torch.linalg.svd(layer.weight)
    A, B = layer.materialise()
    torch.testing.assert_close(B @ A, U[:, :4] * S[:4] @ Vh[:4], rtol=1e-4, atol=1e-5)


def test_cond_pissa_is_pissas_factors_moved_by_condlora_less_where_they_start():
    model = perturb(adapted("bert", method="cond_pissa"))
    for layer in queries(model):
        W = layer.weight
        U, S, Vh = torch.linalg.svd(W)
        A0, B0 = S[:2, None].sqrt() * Vh[:2], U[:, :2] * S[:2].sqrt()
        signs = (A0 * layer.condlora_derived_A0["default"]).sum(1).sign()
        A0, B0 = signs[:, None] * A0, B0 * signs
        theta_A, theta_B = layer.theta("default")
        assert theta_A.shape == theta_B.shape == (2, 16)
        expected = (B0 + W @ theta_B.T) @ (A0 + theta_A @ W.T) - B0 @ A0
        A, B = layer.materialise()
        assert A.shape == B.T.shape == (4, 16)
        torch.testing.assert_close(B @ A, expected, rtol=1e-4, atol=1e-5)


def test_cond_pissa_refuses_an_odd_rank():
    with pytest.raises(AdapterError, match="The rank is 3, .*: give an even one"):
        adapted("bert", method="cond_pissa", r=3)


def test_singular_vectors_have_the_sign_that_makes_their_largest_entry_positive():
    """Else a library that chooses another sign would turn a trained R around."""
    W = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    for of in (W, -W):
        V, US = principal_factors(of, 3)
        assert (V.gather(1, V.abs().argmax(1, keepdim=True)) > 0).all()
        torch.testing.assert_close(US.norm(dim=0), torch.linalg.svdvals(of.double())[:3])
    torch.testing.assert_close(V, principal_factors(W, 3)[0])


def test_nola_combines_bases_that_are_kept_once():
    model = perturb(adapted("bert", method="nola", options={"bases": 5}))
    holder, second, _ = queries(model)
    bases = holder.condlora_derived_bases_B["default"]
    assert bases.shape == (5, 16, 4) and len(derived(model)) == 4
    b = second.condlora_b["default"][0]
    expected = sum(x * basis for x, basis in zip(b, bases, strict=True))
    torch.testing.assert_close(second.materialise()[1], expected)


def test_cond_adalora_puts_each_layers_own_diagonal_between():
    model = perturb(adapted("bert", method="cond_adalora"))
    for layer in queries(model):
        theta_A, theta_B, Lambda = layer.theta("default")
        W = layer.frozen_weight()
        expected = 2.0 * W @ theta_B.T @ torch.diag(Lambda[:, 0]) @ theta_A @ W.T
        torch.testing.assert_close(
            layer.get_delta_weight("default"), expected, rtol=1e-4, atol=1e-6
        )
    assert len({id(layer.theta("default")[2]) for layer in queries(model)}) == 3


SCHEDULE = {"target_r": 2, "total_step": 12, "tinit": 2, "tfinal": 4, "deltaT": 2}


def pruning(steps, **options):
    """Conditional AdaLoRA of rank 4 as it is trained for so many steps; the model, and how many entries each left."""
    model = adapted("bert", method="cond_adalora", options=SCHEDULE | options).train()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    labels, left = torch.tensor([0, 1, 2]), []
    for step in range(1, steps + 1):
        model(input_ids=IDS, labels=labels).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        left.append(int(sum((x != 0).sum() for n, x in trained(model).items() if "Lambda" in n)))
    return model.eval(), left


def test_cond_adalora_is_pruned_by_the_cubic_schedule_to_its_budget_and_stays_there(tmp_path):
    model, left = pruning(12)
    # 6 layers: all 24 until step 2, then at every second step 12 + 12 (1 - (t - 2) / 6)^3, from step 8 on 12.
    assert left[:2] == [24, 24] and [left[i] for i in (3, 5)] == [15, 12]
    assert left[4] > 15  # what was pruned may grow again
    assert left[7:] == [12] * 5
    ranks = {
        int((layer.condlora_Lambda["default"] != 0).sum()) for layer in layers_of(model).values()
    }
    assert len(ranks) > 1  # layers compete
    model.save_pretrained(tmp_path / "own")
    export_lora(model, tmp_path / "lora")
    for name in ("own", "lora"):
        loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path / name).eval()
        torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
        for module in loaded.modules():
            if isinstance(module, LoraLayer):
                A = module.lora_A["default"].weight
                assert int((A.abs().amax(1) > 0).sum()) in ranks  # what is pruned is zero there too


def test_cond_adalora_prunes_the_triplets_of_least_importance():
    """As AdaLoRA's equations 8 to 11, written out for one step."""
    model = adapted("bert", method="cond_adalora", options=SCHEDULE | {"tinit": 0, "deltaT": 1})
    entries = [p for n, p in trained(model).items() if "Lambda" in n]
    for entry in entries:
        entry.grad = torch.randn_like(entry)
    sensitivity = torch.cat([(p * p.grad).abs().detach() for p in entries])
    smoothed = 0.15 * sensitivity
    importance = (smoothed * 0.15 * (sensitivity - smoothed).abs()).flatten()
    model.base_model.update_and_allocate(4)
    budget = 12 + int(12 * 0.5**3)
    kept = torch.cat(entries).flatten() != 0
    assert kept.sum() == budget
    assert importance[kept].min() > importance[~kept].max()


def test_the_gradient_of_a_triplets_entry_stands_for_those_of_its_column_and_row():
    """Why the importance of Lambda's entry is enough: each of the three, set to zero, costs the same to first order."""
    model = adapted("bert", method="cond_adalora")
    (layer, *_) = queries(model)
    Q, P = (x.detach().requires_grad_() for x in CondAdaLora.factors(
        layer.method["default"], layer.frozen_weight(), *layer.theta("default")[:2], torch.ones(4, 1)))  # fmt: skip
    Lambda = layer.condlora_Lambda["default"].detach().clone().requires_grad_()
    (torch.randn(5, 16) @ Q.T * Lambda.T @ P.T).square().sum().backward()
    expected = (Lambda * Lambda.grad)[:, 0]
    torch.testing.assert_close((P * P.grad).sum(0), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((Q * Q.grad).sum(1), expected, rtol=1e-4, atol=1e-4)


def test_cond_adaloras_penalty_is_added_in_training_and_makes_P_and_Q_orthogonal():
    model = adapted("bert", method="cond_adalora", options={"orth_reg_weight": 0.3})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    inputs = {"input_ids": IDS, "labels": torch.tensor([0, 1, 2])}
    plain = model(**inputs).loss

    def distance():
        apart = []
        for layer in layers_of(model).values():
            theta_A, theta_B, _ = layer.theta("default")
            W = layer.frozen_weight()
            for X in (theta_A @ W.T, theta_B @ W.T):
                apart.append(torch.linalg.norm(X @ X.T - torch.eye(4)))
        return torch.stack(apart).mean()

    model.train()
    torch.testing.assert_close(model(**inputs).loss, plain + 0.3 * distance())
    with model.disable_adapter():
        base = model(**inputs).loss
        assert torch.equal(model.eval()(**inputs).loss, base)
    model.train()
    before, optimizer = distance(), torch.optim.Adam(trained(model).values(), lr=3e-2)
    for _ in range(30):
        optimizer.zero_grad()
        (model(**inputs).loss - model.eval()(**inputs).loss).backward()  # the penalty alone
        model.train()
        optimizer.step()
    assert distance() < 0.7 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_step": None}, "set total_step, tinit and tfinal"),
        ({"tfinal": 11}, "set total_step, tinit and tfinal"),
        ({"target_r": 5}, "target_r is 5 and the mean rank to start from 4"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_sentence(options, message):
    with pytest.raises(AdapterError, match=message):
        pruning(1, **options)


def test_a_gradient_that_is_not_finite_leaves_the_importance_finite():
    """fp16's scaler skips such steps, most of all the first ones."""
    model = adapted("bert", method="cond_adalora", options=SCHEDULE)
    for value in (float("inf"), float("nan"), 1.0):
        for layer in layers_of(model).values():
            layer.condlora_Lambda["default"].grad = torch.full((4, 1), value)
        model.base_model.update_and_allocate(1)
    for importance in model.base_model.rankallocator.exp_avg_unc.values():
        assert importance.isfinite().all() and (importance > 0).all()


def test_pruning_needs_the_gradients():
    model = adapted("bert", method="cond_adalora", options=SCHEDULE)
    with pytest.raises(AdapterError, match="before zero_grad"):
        model.base_model.update_and_allocate(1)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_dylora_exported_at_a_rank_is_what_was_trained_at_it(use_rslora, tmp_path, monkeypatch):
    model = adapted("bert", method="dylora", use_rslora=use_rslora, lora_alpha=4)
    for rank in (1, 3, 4):
        config = export_lora(model, tmp_path / str(rank), rank=rank)
        assert (config.r, config.lora_alpha) == (rank, 4)
        loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path / str(rank)).eval()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *_, rank=rank, **__: torch.tensor(rank))
            at_rank = logits(model)
        torch.testing.assert_close(logits(loaded), at_rank, rtol=1e-5, atol=1e-5)
        model.eval()
    with pytest.raises(AdapterError, match="from 1 to 4"):
        export_lora(model, tmp_path / "5", rank=5)
    with pytest.raises(AdapterError, match="method dylora"):
        export_lora(adapted("bert"), tmp_path / "condlora", rank=2)


def test_dylora_draws_one_rank_for_all_layers_from_torchs_generator():
    model = adapted("bert", method="dylora")
    whole, drawn = logits(model), []
    model.train()
    torch.manual_seed(5)
    for _ in range(30):
        model(input_ids=IDS).logits.sum().backward()
        ranks = {layer.drawn_rank["default"] for layer in layers_of(model).values()}
        assert len(ranks) == 1
        drawn.append(ranks.pop())
        for layer in layers_of(model).values():
            used = layer.condlora_A["default"].grad.abs().amax(1) > 0
            assert used.tolist() == [True] * drawn[-1] + [False] * (4 - drawn[-1])
        model.zero_grad()
    assert set(drawn) == {1, 2, 3, 4}
    torch.manual_seed(5)
    again = []
    for _ in range(30):
        model(input_ids=IDS)
        again.append(queries(model)[0].drawn_rank["default"])
    assert again == drawn
    for layer in layers_of(model).values():
        layer.drawn_rank["default"] = 1
    assert torch.equal(logits(model.eval()), whole)  # at inference all ranks serve


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_dylora_recomputes_at_the_rank_it_drew(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = adapted("bert", method="dylora").train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(2)
        model(input_ids=IDS).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in trained(model).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-8)


@every_method
def test_with_doras_magnitude_it_equals_what_peft_makes_of_its_export(settings, tmp_path):
    """Output and the gradient of the magnitude, against PEFT's DoRA of the same A and B."""
    model = perturb(adapted("bert", use_dora=True, lora_dropout=0.1, **settings))
    export_lora(model, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(
        FAMILIES["bert"].build(), tmp_path / "lora", is_trainable=True
    ).eval()
    assert loaded.peft_config["default"].use_dora
    found, expected = (one(input_ids=IDS).logits for one in (model, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    ours = [p.grad for n, p in trained(model).items() if "magnitude" in n]
    theirs = [p.grad for n, p in loaded.named_parameters() if "magnitude" in n]
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@every_method
def test_with_doras_magnitude_it_starts_frozen_is_saved_and_merges(settings, tmp_path):
    model = adapted("bert", use_dora=True, init_weights=True, **settings)
    tolerance = 1e-4 if settings["method"] == "lora_xs" else 1e-5
    base = logits(FAMILIES["bert"].build())
    torch.testing.assert_close(logits(model), base, rtol=0.0, atol=tolerance)
    apart = logits(perturb(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path).eval()
    assert torch.equal(logits(loaded), apart)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), apart, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), apart)
    model.delete_adapter("default")
    assert not trained(model)


def test_doras_norm_has_no_gradient():
    """Against the formula written out, gradients of the maps too."""
    model = perturb(adapted("bert", use_dora=True))
    (layer, *_) = queries(model)
    theta_A, theta_B = layer.theta("default")
    m, W, x = layer.condlora_magnitude["default"], layer.weight, torch.randn(5, 16)
    V = W + 2.0 * (W @ theta_B.T) @ (theta_A @ W.T)
    expected = x @ (m / V.norm(dim=1).detach() * V.T) + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    wanted = torch.autograd.grad(expected.square().sum(), (theta_A, theta_B, m))
    found = torch.autograd.grad(layer(x).square().sum(), (theta_A, theta_B, m))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", SEEDED)
def test_a_seed_that_is_left_out_is_drawn_and_kept(method):
    torch.manual_seed(1)
    one = CondLoraConfig(method=method)
    other = CondLoraConfig(method=method)
    torch.manual_seed(1)
    again = CondLoraConfig(method=method)
    assert one.options["seed"] == again.options["seed"] != other.options["seed"]
    state = torch.get_rng_state()
    assert CondLoraConfig(method=method, options={"seed": 7}).options["seed"] == 7
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "typo"}, "Unknown method 'typo': choose one of condlora, "),
        ({"options": {"seed": 1}}, "'condlora' has no option seed: leave options empty"),
        (
            {"method": "nola", "options": {"form": "code"}},
            "no option form: its options are bases, seed, start",
        ),
        ({"method": "tied_lora", "form": "consistent"}, "leave form out"),
        ({"options": [1]}, "give names and values"),
        ({"method": "nola", "options": {"start": "zero"}}, "start is 'zero': choose lora or"),
        ({"method": "nola", "options": {"seed": "a"}}, "seed is 'a': give a whole number"),
        ({"method": "nola", "options": {"bases": 0}}, "positive whole number"),
        ({"method": "share_lora", "options": {"shared": "C"}}, "choose one of A, B, AB"),
        ({"method": "share_lora", "options": {"random": "AB"}}, "random is 'AB': choose A or B"),
        ({"method": "condlora_x", "options": {"use_x": "type2"}}, "cannot be merged or exported"),
        ({"method": "condlora_x", "options": {"use_x": "none"}}, "the only supported value is"),
        ({"method": "condlora_x", "options": {"lora_x_scaling": 0}}, "a number above 0"),
        ({"method": "half_lora", "options": {"trained": "AB"}}, "trained is 'AB': choose A or B"),
        ({"method": "half_lora", "options": {"frozen": "no"}}, "choose one of kaiming, ortho"),
        ({"method": "melora", "options": {"blocks": 0}}, "blocks is 0: give a positive whole"),
        ({"method": "cond_adalora", "options": {"target_r": 0}}, "target_r is 0: give a positive"),
        ({"method": "cond_adalora", "options": {"deltaT": 0.5}}, "deltaT is 0.5: give a positive"),
        ({"method": "cond_adalora", "options": {"beta1": 1}}, "beta1 is 1: give a number between"),
        ({"method": "cond_adalora", "options": {"orth_reg_weight": -1}}, "give 0 or more"),
    ],
)
def test_what_a_method_does_not_have_is_refused(settings, message):
    with pytest.raises(AdapterError, match=message):
        CondLoraConfig(**settings)


def test_a_method_of_ones_own_is_a_few_lines(monkeypatch, tmp_path):
    """What the package says of adding one: all the rest follows."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Diagonal(Method):
        title, arxiv, formula = (
            "Diagonal",
            "0000.00000",
            "A = I diag(d), B = the first columns of I",
        )

        def tensors(self, W, r):
            return {"d": Trained((r, 1))}

        def factors(self, W, d):
            return d * torch.eye(len(d), W.shape[1]), torch.eye(W.shape[0], len(d))

    monkeypatch.setitem(METHODS, "diagonal", Diagonal)
    model = perturb(adapted("bert", method="diagonal"))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    export_lora(model, tmp_path / "lora")


def test_a_part_called_alone_in_training_is_no_full_rank_dylora():
    model = get_peft_model(
        FAMILIES["bert"].build(), CondLoraConfig(method="dylora", r=4, target_modules=["query"])
    ).train()
    with pytest.raises(AdapterError, match="call the model"):
        model.base_model.model.bert(input_ids=IDS)
    model(input_ids=IDS)


def test_one_rank_is_drawn_a_pass_however_often_adapters_came_and_went():
    def ranks(times):
        config = CondLoraConfig(method="dylora", r=4, target_modules=["query"])
        model = get_peft_model(FAMILIES["bert"].build(), config)
        for _ in range(times):
            model.delete_adapter("default")
            model.add_adapter("default", config)
            model.set_adapter("default")
        torch.manual_seed(0)
        model.train()(input_ids=IDS)
        return torch.randint(1000, ())

    assert ranks(0) == ranks(2)
