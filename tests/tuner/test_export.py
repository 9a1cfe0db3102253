"""A CondLoRA adapter exported as LoRA is the same model to stock PEFT, which needs no condlora for it."""

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from condlora import CondLoraConfig
from condlora.errors import AdapterError, BackboneError
from condlora.tuner.io.adapter_folder import load_adapted
from condlora.tuner.io.lora_export import export_lora
from condlora.tuner.layer import CondLoraLayer
from tests.tasks import ROOT

TOKENS = torch.arange(1, 25).reshape(3, 8)

# PEFT looks for the base model's config, which is nowhere here.
pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")


def bert():
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=12,  # two-digit layer numbers: layer 1 must not be taken for layer 11
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def gpt2():
    special = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, **special))


def llama():
    """With grouped keys and values, so that v_proj is 8 x 16."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
    )
    return LlamaForCausalLM(config)


def fresh(make):
    """The model of `make`, the same at every call, with weights large enough for an adapter to show."""
    torch.manual_seed(0)
    return perturbed(make(), 0.2).eval()


def perturbed(model, by):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(make, adapter_name="default", **settings):
    """Perturbed everywhere it trains, so that nothing exported is a start value."""
    settings = {"r": 4, "lora_alpha": 7} | settings
    model = get_peft_model(fresh(make), CondLoraConfig(**settings), adapter_name=adapter_name)
    return perturbed(model, 0.1).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def assert_same(got, want):
    """But for rounding: a loaded tensor may lie at another alignment, by which BLAS adds in another order."""
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def assert_exported(model, make, folder):
    """Stock PEFT finds all its tensors in the folder and gives the same logits, not those of the base model."""
    export_lora(model, folder)
    loaded = PeftModel.from_pretrained(fresh(make), str(folder)).eval()
    saved = load_file(folder / "adapter_model.safetensors")
    assert get_peft_model_state_dict(loaded).keys() == saved.keys()
    assert_same(logits(loaded), logits(model))
    assert not torch.allclose(logits(loaded), logits(fresh(make)), atol=1e-3)
    return json.loads((folder / "adapter_config.json").read_text())


PLAIN = {
    "bert": (bert, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "gpt2": (gpt2, {"target_modules": ["c_attn"], "form": "consistent"}),
    "llama": (llama, {"target_modules": ["q_proj", "v_proj"], "form": "consistent"}),
}
ELSEWHERE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "condlora":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
try:
    import condlora
except ModuleNotFoundError:
    pass
else:
    sys.exit("condlora can be imported here")
import torch, transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

tokens = load_file("tokens.safetensors")["tokens"]
found = {}
for name, model_class in [word.split("=") for word in sys.argv[1:]]:
    base = getattr(transformers, model_class).from_pretrained(f"{name}/base")
    model = PeftModel.from_pretrained(base, f"{name}/lora").eval()
    with torch.no_grad():
        found[name] = model(input_ids=tokens).logits
save_file(found, "found.safetensors")
"""


@pytest.mark.slow
def test_a_process_without_condlora_gives_the_same_logits(tmp_path):
    want, words = {}, []
    for name, (make, settings) in PLAIN.items():
        fresh(make).save_pretrained(tmp_path / name / "base")
        model = adapted(make, **settings)
        export_lora(model, tmp_path / name / "lora")
        want[name] = logits(model)
        words.append(f"{name}={type(model.get_base_model()).__name__}")
    save_file({"tokens": TOKENS}, tmp_path / "tokens.safetensors")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE, *words],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == want.keys()
    for name in want:
        assert_same(found[name], want[name])


VARIANTS = {
    "literal form": (bert, {"form": "literal"}),
    "rslora": (bert, {"use_rslora": True}),
    "rank and alpha by group": (
        bert,
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
    ),
    "rslora with a rank pattern": (bert, {"use_rslora": True, "rank_pattern": {"value": 9}}),
    "one map for all of a shape": (bert, {"sharing": "shape"}),
    "two layers of twelve": (bert, {"layers_to_transform": [1, 11]}),
    "head saved whole": (bert, {"modules_to_save": ["classifier", "pooler"]}),
    "all biases": (bert, {"bias": "all"}),
    "biases of the targets": (bert, {"bias": "condlora_only"}),
    "regular expression": (bert, {"target_modules": r".*\.(1|10)\.attention\.self\.key"}),
    "all linear, one excluded": (
        llama,
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"], "form": "consistent"},
    ),
    "Conv1D, square and rectangular": (
        gpt2,
        {"target_modules": ["attn.c_proj", "c_fc"], "form": "consistent"},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stock_peft_gives_the_same_logits_for(variant, tmp_path):
    make, settings = VARIANTS[variant]
    settings = {"target_modules": ["query", "value"]} | settings
    assert_exported(adapted(make, **settings), make, tmp_path / "lora")


def test_config_and_keys_are_those_that_serving_engines_read(tmp_path):
    config = assert_exported(adapted(llama, **PLAIN["llama"][1]), llama, tmp_path)
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"]) == (4, 7)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["modules_to_save"] is None
    assert config["bias"] == "none"
    assert not config["use_dora"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {"q_proj": (16, 16), "v_proj": (8, 16)}
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{side}.weight": shape
        for layer in range(2)
        for name, (out, in_) in shapes.items()
        for side, shape in (("A", (4, in_)), ("B", (out, 4)))
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_configs_rank_is_the_largest_and_patterns_name_single_modules(tmp_path):
    model = adapted(
        bert, target_modules=["query", "value"], rank_pattern={"value": 9}, lora_alpha=9
    )
    config = assert_exported(model, bert, tmp_path)
    assert config["r"] == 9
    paths = [f"bert.encoder.layer.{layer}.attention.self.query" for layer in range(12)]
    assert config["rank_pattern"] == {"^" + path.replace(".", r"\."): 4 for path in paths}
    assert config["alpha_pattern"] == {}


class Odd(nn.Module):
    """One module's path is the end of another's, and both are read as regular expressions of something else."""

    def __init__(self):
        super().__init__()
        self.add_module("a+b", nn.ModuleDict({"lin": nn.Linear(6, 6)}))
        self.add_module("outer", nn.ModuleDict({"a+b": nn.ModuleDict({"lin": nn.Linear(6, 6)})}))

    def forward(self, x):
        return self.outer["a+b"]["lin"](torch.relu(self._modules["a+b"]["lin"](x)))


def test_patterns_match_exactly_whatever_the_modules_are_called(tmp_path):
    torch.manual_seed(0)
    base = Odd()
    config = CondLoraConfig(
        r=4,
        target_modules=["lin"],
        rank_pattern={r"^a\+b\.lin": 2},
        alpha_pattern={r"^a\+b\.lin": 5},
        init_weights=False,
    )
    export = tmp_path / "lora"
    x = torch.randn(5, 6)
    with torch.no_grad():
        model = get_peft_model(base, config).eval()
        want = model(x)
        export_lora(model, export)
        loaded = PeftModel.from_pretrained(model.unload(), str(export)).eval()
        assert_same(loaded(x), want)


def test_a_merged_adapter_is_exported_from_the_pretrained_weight(tmp_path):
    model = adapted(bert, target_modules=["query", "value"])
    export_lora(model, tmp_path / "before")
    model.merge_adapter()
    export_lora(model, tmp_path / "merged")
    before, merged = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "merged")
    )
    assert before.keys() == merged.keys()
    assert all(torch.equal(before[key], merged[key]) for key in before)
    assert all(module.merged for module in model.modules() if hasattr(module, "merged_adapters"))


def test_one_adapter_of_several_is_exported_alone(tmp_path):
    model = adapted(bert, target_modules=["query", "value"], modules_to_save=["classifier"])
    model.add_adapter(
        "second",
        CondLoraConfig(r=2, form="consistent", target_modules=["dense"], init_weights=False),
    )
    export_lora(model, tmp_path / "lora", "second")
    model.set_adapter("second")
    loaded = PeftModel.from_pretrained(fresh(bert), str(tmp_path / "lora")).eval()
    assert_same(logits(loaded), logits(model))
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert not [key for key in keys if "query" in key or "second" in key or "classifier" in key]


def test_a_scaling_that_was_changed_since_is_exported_as_it_is(tmp_path):
    model = adapted(bert, target_modules=["query", "value"])
    before = logits(model)
    for module in model.modules():
        if isinstance(module, CondLoraLayer):
            module.scaling["default"] = 0.3
    assert not torch.allclose(logits(model), before, atol=1e-3)
    assert_exported(model, bert, tmp_path / "lora")


def test_factors_over_a_bfloat16_base_stay_float32(tmp_path):
    base = fresh(bert).to(torch.bfloat16)
    config = CondLoraConfig(r=4, target_modules=["query"], init_weights=False)
    model = get_peft_model(base, config).eval()
    want = logits(model)
    export_lora(model, tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    loaded = PeftModel.from_pretrained(fresh(bert).to(torch.bfloat16), str(tmp_path / "lora"))
    assert torch.equal(logits(loaded.eval()), want)


def test_two_exports_are_the_same_bytes(tmp_path):
    model = adapted(llama, target_modules="all-linear", form="consistent")
    for name in ("one", "two"):
        export_lora(model, tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    names = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 7
    assert names == sorted(names)  # in every process, whatever the order of its sets


def test_what_lies_in_the_target_already_is_left_alone(tmp_path):
    model = adapted(bert, target_modules=["query"])
    model.save_pretrained(str(tmp_path / "own"))
    (tmp_path / "file").write_text("mine")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    for name in ("own", "file"):
        with pytest.raises(AdapterError, match="choose a new folder"):
            export_lora(model, tmp_path / name)
    assert saved == {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert_exported(model, bert, tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "own"]


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("condlora.tuner.io.adapter_folder.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_lora(adapted(bert, target_modules=["query"]), tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_what_is_no_condlora_adapter_is_refused(tmp_path):
    model = adapted(bert, target_modules=["query"])
    with pytest.raises(AdapterError, match="no adapter 'other': choose one of default"):
        export_lora(model, tmp_path / "lora", "other")
    lora = get_peft_model(fresh(bert), LoraConfig(target_modules=["query"]))
    for other in (fresh(bert), lora, model.merge_and_unload()):
        with pytest.raises(AdapterError, match="no CondLoRA adapter"):
            export_lora(other, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_a_saved_adapter_is_found_with_its_base_and_its_number_of_labels(tmp_path):
    base = fresh(bert)
    base.save_pretrained(tmp_path / "base")
    wide = BertForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True
    )
    config = CondLoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS", init_weights=False)
    model = get_peft_model(wide, config).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = load_adapted(tmp_path / "adapter")  # save_pretrained notes the base's folder
    assert_same(logits(loaded), logits(model))
    with pytest.raises(BackboneError, match="--base"):
        load_adapted(tmp_path / "adapter", base=str(tmp_path / "nowhere"))
    with pytest.raises(AdapterError, match="no readable adapter"):
        load_adapted(tmp_path / "base")


def test_the_script_exports_a_folder_and_says_what_is_wrong_in_a_sentence(
    tmp_path, monkeypatch, capsys
):
    script = runpy.run_path(str(ROOT / "scripts" / "export_lora.py"))["main"]
    fresh(bert).save_pretrained(tmp_path / "base")
    model = adapted(bert, target_modules=["query", "value"], task_type="SEQ_CLS")
    model.save_pretrained(str(tmp_path / "adapter"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export_lora.py", "adapter", "lora", "--base", "base"])
    script()
    assert "LoRA, r 4, alpha 7" in capsys.readouterr().out
    loaded = PeftModel.from_pretrained(fresh(bert), str(tmp_path / "lora")).eval()
    assert_same(logits(loaded), logits(model))
    monkeypatch.setattr(sys, "argv", ["export_lora.py", "adapter", "adapter"])
    with pytest.raises(SystemExit) as stopped:
        script()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: adapter exists and is not empty")


def test_the_script_cuts_a_nested_adapter_to_its_leading_ranks(tmp_path, monkeypatch, capsys):
    script = runpy.run_path(str(ROOT / "scripts" / "export_lora.py"))["main"]
    fresh(bert).save_pretrained(tmp_path / "base")
    models = {}
    for method in ("dylora", "condlora"):
        models[method] = adapted(
            bert, target_modules=["query", "value"], task_type="SEQ_CLS", method=method
        )
        models[method].save_pretrained(str(tmp_path / method))
    monkeypatch.chdir(tmp_path)
    words = ["export_lora.py", "dylora", "lora", "--base", "base", "--rank", "2"]
    monkeypatch.setattr(sys, "argv", words)
    script()
    assert "LoRA, r 2, alpha 7" in capsys.readouterr().out
    export_lora(models["dylora"], tmp_path / "expected", rank=2)
    found, expected = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "expected")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    for source, rank, message in (
        ("dylora", "5", "error: rank is 5: choose one from 1 to 4, which was trained."),
        (
            "condlora",
            "2",
            "error: rank cuts an adapter that was trained for it, with method dylora",
        ),
    ):
        monkeypatch.setattr(sys, "argv", [*words[:1], source, "other", *words[3:5], "--rank", rank])
        with pytest.raises(SystemExit) as stopped:
            script()
        assert stopped.value.code == 2 and message in capsys.readouterr().err
        assert not (tmp_path / "other").exists()


def test_an_adapter_is_overwritten_on_request_and_nothing_else_is(tmp_path):
    from tests.tuner.families import adapted as bert

    model = bert("bert")
    export_lora(model, tmp_path / "lora")
    with pytest.raises(AdapterError, match="is not empty"):
        export_lora(model, tmp_path / "lora")
    export_lora(model, tmp_path / "lora", overwrite=True)
    (tmp_path / "lora" / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match="is not empty"):
        export_lora(model, tmp_path / "lora", overwrite=True)
    assert (tmp_path / "lora" / "adapter_model.safetensors").exists()
