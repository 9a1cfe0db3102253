"""LoRA adapters from anywhere: read as runs are, whatever their modules, and refused with a sentence."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from analysis.maths.conversion_similarity import TRAINED, figure1
from analysis.maths.linear_map import SHARED, linear_maps
from analysis.study.adapters import WEIGHTS, read_pairs
from analysis.study.rank_selection import load_ranks
from analysis.study.selection import open_matrices, open_study
from analysis.study.stacks import load_stacks
from condlora.errors import AdapterError, BackboneError, NetworkError, UserError
from condlora.paths import CONFIGS

LAYERS, R = 4, 2


def settings(folder, **changes):
    plain = {"results": str(folder / "results"), "runs": str(folder / "runs")} | changes
    return OmegaConf.merge(OmegaConf.load(CONFIGS / "analysis" / "settings.yaml"), plain)


def make_adapter(model, folder, seed, **changes):
    """A PEFT adapter with Gaussian A and B, saved without training."""
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=R, lora_alpha=4, **changes))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    peft.save_pretrained(folder)
    peft.unload()
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A base with grouped queries in bfloat16, two adapters of it, and one in float32."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    targets = ["q_proj", "v_proj", "down_proj"]
    for n, name in enumerate(("a", "b")):
        make_adapter(model, folder / name, n, target_modules=targets)
    make_adapter(model, folder / "half", 7, target_modules=targets)
    path = folder / "half" / WEIGHTS
    save_file({k: v.to(torch.float16) for k, v in load_file(path).items()}, path)
    return folder


def open_llama(llama, tmp_path, *names, base="base", **changes):
    adapters = [str(llama / name) for name in names]
    base = str(llama / base) if base else None
    return open_matrices(settings(tmp_path, adapters=adapters, base=base, **changes))


def test_adapters_become_stacks_as_runs_do(llama, tmp_path):
    study = open_llama(llama, tmp_path, "a", "b", "half")
    stacks = {stack.module: stack for stack in load_stacks(study.done, study.load)}
    assert set(stacks) == {"q_proj", "v_proj", "down_proj"}
    assert {name: tuple(s.W.shape[1:]) for name, s in stacks.items()} == {
        "q_proj": (16, 16), "v_proj": (8, 16), "down_proj": (16, 24),
    }  # fmt: skip
    v = stacks["v_proj"]
    assert v.adapter == "lora" and v.layers == [1, 2, 3, 4]
    assert [cell.task for cell in v.cells] == ["a", "b", "half"]
    weights = load_file(llama / "base" / "model.safetensors")
    torch.testing.assert_close(v.W[2], weights["model.layers.2.self_attn.v_proj.weight"])
    pairs = read_pairs(llama / "b")
    torch.testing.assert_close(v.A[1, 3], pairs["model.layers.3.self_attn.v_proj"][0])
    assert v.B.shape == (3, LAYERS, 8, R)


def test_every_analysis_of_matrices_takes_them(llama, tmp_path):
    from analysis.maths.amplification import amplify
    from analysis.maths.conversion_controls import controls
    from analysis.maths.lora_subspace import TASKS, compare
    from analysis.maths.power import measure
    from analysis.maths.weights import weights_of
    from analysis.present import conversion_similarity, lora_subspace

    study = open_llama(llama, tmp_path, "a", "b", "half", baseline_draws=4)
    stacks = load_stacks(study.done, study.load)
    result = figure1(stacks, study.settings)
    trained = result.values[result.values.source == TRAINED]
    assert trained.groupby("module").size().to_dict() == {
        "q_proj": 4 * 3,  # A, B, B A and, as W is square, W^-T A'
        "v_proj": 3 * 3,
        "down_proj": 3 * 3,
    }
    assert np.isfinite(trained.off_diagonal).all() and len(result.notes) == 2  # two rectangular
    paths = conversion_similarity.draw(result, tmp_path / "figures")
    assert all(path.is_file() for path in paths.values())
    assert len(controls(stacks, study.settings).values)
    linear = linear_maps(stacks, study.settings).values
    assert np.isfinite(linear.left_out).all()
    ranks = load_ranks(study.done, study.load)
    pairs = compare(ranks, study.settings)
    assert {c.pairs[0] for c in pairs.between(TASKS)} == {("a and b", 0, 0)}
    lora_subspace.table_by_layer(pairs)
    assert set(amplify(ranks, study.settings).values.task) == {"a", "b", "half"}
    layers, weights = weights_of(stacks, "base")
    cfg = OmegaConf.create({"rho": [0, 1], "draws": 2, "r": 2, "seed": 0})
    power = measure(weights, cfg, layers)
    assert power.response["v_proj", "W", "left_out_map"][1] == pytest.approx([1, 1])


def test_without_the_base_what_needs_no_w0_remains(llama, tmp_path):
    from analysis.maths.lora_subspace import compare
    from analysis.maths.span_similarity import spans
    from analysis.present import linear_map

    study = open_llama(llama, tmp_path, "a", "b", base=None)
    stacks = load_stacks(study.done, study.load)
    assert all(stack.W is None for stack in stacks)
    result = figure1(stacks, study.settings)
    assert not result.modules and "need W₀" in result.notes[0]
    linear = linear_maps(stacks, study.settings)
    assert set(linear.values.source) == {SHARED} and len(linear_map.table(linear).rows) == 6
    assert len(spans(stacks, study.settings).maps) == 3 * 2 * 2
    assert compare(stacks, study.settings).comparisons
    with pytest.raises(UserError, match="needs W0: add base="):
        open_matrices(settings(tmp_path, adapters=[str(llama / "a")]), needs_base=True)


def test_a_transposed_weight_is_read_as_out_by_in(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    model = GPT2ForSequenceClassification(config)
    model.transformer.save_pretrained(tmp_path / "base")  # its names lack "transformer."
    make_adapter(model, tmp_path / "a", 0, target_modules=["c_attn"], fan_in_fan_out=True)
    cfg = settings(tmp_path, adapters=[str(tmp_path / "a")], base=str(tmp_path / "base"))
    study = open_matrices(cfg)
    (stack,) = load_stacks(study.done, study.load)
    assert stack.module == "c_attn" and stack.W.shape == (2, 48, 16)
    torch.testing.assert_close(stack.W[1], model.transformer.h[1].attn.c_attn.weight.T)


def changed(llama, tmp_path, **changes):
    """A copy of adapter a with another adapter_config.json."""
    folder = tmp_path / "copy"
    shutil.copytree(llama / "a", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def retensored(llama, tmp_path, change):
    folder = changed(llama, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)
    return folder


def pickled(llama, tmp_path):
    folder = changed(llama, tmp_path)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    return folder


def without_a_b(tensors):
    return {key: value for key, value in tensors.items() if "layers.1.self_attn.v_proj.lora_B" not in key}  # fmt: skip


BAD = {
    "pickled": (pickled, AdapterError, "pickled weights.*convert them there with python -c"),
    "no config": (lambda _, tmp: tmp, AdapterError, "holds no adapter_config.json"),
    "another method": (
        lambda *a: changed(*a, peft_type="IA3"), AdapterError, "of type IA3 and not LORA",
    ),
    "condlora": (lambda *a: changed(*a, peft_type="CONDLORA"), AdapterError, "condlora-export"),
    "rank pattern": (
        lambda *a: changed(*a, rank_pattern={"q_proj": 4}), AdapterError, "sets rank_pattern",
    ),
    "no alpha": (lambda *a: changed(*a, lora_alpha=None), AdapterError, "lora_alpha above 0"),
    "half a pair": (lambda *a: retensored(*a, without_a_b), AdapterError, "no A and B of one rank"),
    "not finite": (
        lambda *a: retensored(*a, lambda t: {k: v * torch.nan for k, v in t.items()}),
        AdapterError,
        "not finite",
    ),
    "no lora": (
        lambda *a: retensored(*a, lambda t: {"score.weight": torch.ones(2, 2)}),
        AdapterError,
        "holds no A and B",
    ),
    "missing": (lambda _, tmp: tmp / "nothing", UserError, "There is no folder"),
    "a file": (lambda llama, _: llama / "a" / WEIGHTS, AdapterError, "condlora-import"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said_in_a_sentence(llama, tmp_path, name):
    make, kind, says = BAD[name]
    folder = make(llama, tmp_path)
    with pytest.raises(kind, match=says):
        study = open_matrices(settings(tmp_path, adapters=[str(folder)]))
        load_stacks(study.done, study.load)


def test_a_base_that_is_not_the_adapters_is_refused(llama, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(llama / "base", other)
    tensors = load_file(llama / "base" / "model.safetensors")
    wrong = {k: v[:8].clone() if "q_proj" in k else v for k, v in tensors.items()}
    save_file(wrong, other / "model.safetensors")
    study = open_llama(llama, tmp_path, "a", base=str(other))
    with pytest.raises(BackboneError, match="is 8 x 16 and the adapter's is 16 x 16"):
        load_stacks(study.done, study.load)
    save_file({"embed.weight": torch.ones(2, 2)}, other / "model.safetensors")
    study = open_llama(llama, tmp_path, "a", base=str(other))
    with pytest.raises(BackboneError, match="has no weight of model.layers.0"):
        load_stacks(study.done, study.load)
    (other / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="holds no model.safetensors"):
        open_llama(llama, tmp_path, "a", base=str(other))


@pytest.mark.slow
def test_shares_are_given_at_each_rank(llama, tmp_path):
    from analysis.linear_map import main

    model = LlamaForCausalLM.from_pretrained(llama / "base", dtype=torch.float32)
    targets = ["q_proj", "v_proj", "down_proj"]
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=1, target_modules=targets, init_lora_weights=False))
    peft.save_pretrained(tmp_path / "narrow")
    adapters = [str(llama / "a"), str(tmp_path / "narrow")]
    main.__wrapped__(settings(tmp_path, adapters=adapters, base=str(llama / "base")))
    tables = tmp_path / "results" / "adapters" / "tables"
    found = pd.read_csv(tables / "shares_by_rank.csv")
    assert set(found[found.module == "q_proj"].r) == {1, R}
    whole = pd.read_csv(
        tables / "linear_map.csv"
    )  # at the rank that stands for all: the higher one
    assert set(whole[whole.form == "B"].module) == set(targets)


def test_an_adapter_of_another_rank_is_not_joined(llama, tmp_path):
    config = LlamaConfig.from_pretrained(llama / "base")
    model = LlamaForCausalLM(config)
    make_adapter(model, tmp_path / "wide", 0, target_modules=["q_proj"])
    tensors = load_file(tmp_path / "wide" / WEIGHTS)
    more = {k: torch.cat([v, v], dim=0 if "lora_A" in k else 1) for k, v in tensors.items()}
    save_file(more, tmp_path / "wide" / WEIGHTS)
    cfg = settings(tmp_path, adapters=[str(llama / "a"), str(tmp_path / "wide")])
    study = open_matrices(cfg)
    with pytest.raises(UserError, match="wide has other frozen weights, other layers or another"):
        load_stacks(study.done, study.load)


def test_the_hub_is_asked_for_what_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="someone/nothing-there is no folder, is not cached"):
        open_matrices(settings(tmp_path, adapters=["someone/nothing-there"]))


def test_settings_that_contradict(llama, tmp_path):
    twice = [str(llama / "a"), str(llama / "a")]
    with pytest.raises(AdapterError, match="one adapter twice"):
        open_matrices(settings(tmp_path, adapters=twice))
    with pytest.raises(UserError, match="base= is the base model of adapters="):
        open_matrices(settings(tmp_path, base="somewhere"))
    with pytest.raises(UserError, match="reads finished runs with their scores"):
        open_study(settings(tmp_path, adapters=twice))
