"""Checkpoints of the authors' code and of loralib become PEFT adapters; anything else is refused in a sentence."""

import copy
import json
import runpy
import shutil
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaForSequenceClassification

from condlora.errors import AdapterError, BackboneError
from condlora.tuner.io.checkpoint_import import import_adapter
from tests.tasks import ROOT

TOKENS = torch.arange(3, 27).reshape(3, 8)
LAYERS, SIZE, LABELS = 3, 16, 5
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def random(*shape, seed=0):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture
def roberta():
    """A function () -> the same tiny classifier of five labels."""

    def build(num_labels=LABELS):
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=50,
            hidden_size=SIZE,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            initializer_range=0.2,
            num_labels=num_labels,
        )
        return RobertaForSequenceClassification(config).eval()

    return build


@pytest.fixture
def base(roberta, tmp_path):
    """The classifier's folder; it says two labels, as a base model does that was never fine-tuned."""
    roberta(num_labels=2).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@torch.no_grad()
def logits(model, **inputs):
    return model(**(inputs or {"input_ids": TOKENS})).logits


def paths():
    for layer in range(LAYERS):
        for name in ("query", "value"):
            yield f"roberta.encoder.layer.{layer}.attention.self.{name}"


def head(prefix=""):
    return {
        f"{prefix}classifier.dense.weight": random(SIZE, SIZE),
        f"{prefix}classifier.dense.bias": random(SIZE),
        f"{prefix}classifier.out_proj.weight": random(LABELS, SIZE),
        f"{prefix}classifier.out_proj.bias": random(LABELS),
    }


def loralib_tensors(r=4):
    """What `loralib.lora_state_dict` gives, and the classifier."""
    tensors = head()
    for seed, path in enumerate(paths()):
        tensors[f"{path}.lora_A"] = random(r, SIZE, seed=seed)
        tensors[f"{path}.lora_B"] = random(SIZE, r, seed=seed)
    return tensors


def authors_tensors(method):
    if method == "lora":
        return head("base_model.model.") | {
            f"base_model.model.{key}.weight": tensor
            for key, tensor in loralib_tensors().items()
            if "lora_" in key
        }
    return head("base_model.model.") | {
        f"{name}.linear_for_lora_{side}": random(4, SIZE, seed=seed)
        for seed, name in enumerate(("query", "value"))
        for side in "AB"
    }


def authors_settings(method, **settings):
    peft_type = {"condlora": "ConditionalLORA", "lora": "LORA"}[method]
    own = {"use_x": "none", "lora_x_scaling": 0.0} if method == "condlora" else {}
    return {
        "auto_mapping": None,
        "base_model_name_or_path": "",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": peft_type,
        "r": 4,
        "revision": None,
        "target_modules": ["query", "value"],
        "task_type": "SEQ_CLS",
    } | (own | settings)


@pytest.fixture
def planted(tmp_path):
    """A function that lays a checkpoint of the authors' out in a folder, changed by `edit`."""

    def plant(method, edit=None, **settings):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        tensors = authors_tensors(method)
        if edit is not None:
            edit(tensors)
        (folder / CONFIG).write_text(json.dumps(authors_settings(method, **settings)))
        save_file(tensors, folder / WEIGHTS)
        return folder

    return plant


def with_updates(model, update, scaling):
    """The model with `scaling * update(path, W)` added to its weights and the head put in: a reference by hand."""
    with torch.no_grad():
        for path in paths():
            module = model.get_submodule(path)
            module.weight += scaling * update(path, module.weight.clone())
    model.load_state_dict(head(), strict=False)
    return model


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("method", ["condlora", "lora"])
def test_authors_checkpoint_gives_the_golden_logits(
    method, pickled, golden, golden_model, tmp_path
):
    source = tmp_path / "source"
    shutil.copytree(golden / f"checkpoint_{method}", source)
    if pickled:
        torch.save(load_file(source / WEIGHTS), source / "adapter_model.bin")
        (source / WEIGHTS).unlink()
    golden_model().save_pretrained(tmp_path / "base")
    config = import_adapter(source, tmp_path / "adapter", base=str(tmp_path / "base"))
    assert (config.r, config.lora_alpha) == (4, 8)
    model = PeftModel.from_pretrained(golden_model(), str(tmp_path / "adapter")).eval()
    inputs = load_file(golden / "tiny_inputs.safetensors")
    want = load_file(golden / f"tiny_{method}.safetensors")["logits"]
    torch.testing.assert_close(logits(model, **inputs), want, rtol=0, atol=1e-5)


def test_authors_condlora_becomes_our_form_code_with_each_map_once(
    planted, roberta, base, tmp_path
):
    import_adapter(planted("condlora"), tmp_path / "adapter", base=base)
    settings = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert (settings["peft_type"], settings["form"]) == ("CONDLORA", "code")
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0.1)
    assert settings["base_model_name_or_path"] == base
    maps = [key for key in load_file(tmp_path / "adapter" / WEIGHTS) if "theta" in key]
    assert len(maps) == 4
    thetas = authors_tensors("condlora")

    def update(path, W):
        kind = path.rpartition(".")[2]
        A = thetas[f"{kind}.linear_for_lora_A"] @ W.T
        B = W @ thetas[f"{kind}.linear_for_lora_B"].T
        return B @ A

    model = PeftModel.from_pretrained(roberta(), str(tmp_path / "adapter")).eval()
    want = logits(with_updates(roberta(), update, scaling=2.0))
    torch.testing.assert_close(logits(model), want, rtol=0, atol=1e-5)


def repeat_in_every_layer(tensors):
    for key in [key for key in tensors if "linear_for" in key]:
        name, side = key.split(".")
        tensor = tensors.pop(key)
        for path in paths():
            if path.endswith(name):
                tensors[f"base_model.model.{path}.{side}.weight"] = tensor.clone()


TYPE1 = {"use_x": "type1", "lora_x_scaling": 0.25}


def add_theta_x(tensors):
    tensors["linear_for_lora_x"] = random(4, SIZE, seed=9)  # as the authors' save_and_load.py


def repeat_theta_x_too(tensors):
    repeat_in_every_layer(tensors)
    for path in paths():
        tensors[f"base_model.model.{path}.linear_for_lora_x.weight"] = random(4, SIZE, seed=9)


@pytest.mark.parametrize("edit", [add_theta_x, repeat_theta_x_too])
def test_authors_type_1_adds_the_scaled_theta_x_to_A_and_can_be_merged(
    edit, planted, roberta, base, tmp_path
):
    config = import_adapter(planted("condlora", edit, **TYPE1), tmp_path / "adapter", base=base)
    assert (config.method, config.options) == ("condlora_x", TYPE1)
    thetas, theta_x = authors_tensors("condlora"), random(4, SIZE, seed=9)

    def update(path, W):
        kind = path.rpartition(".")[2]
        A = thetas[f"{kind}.linear_for_lora_A"] @ W.T + 0.25 * theta_x
        return W @ thetas[f"{kind}.linear_for_lora_B"].T @ A

    model = PeftModel.from_pretrained(roberta(), str(tmp_path / "adapter")).eval()
    want = logits(with_updates(roberta(), update, scaling=2.0))
    torch.testing.assert_close(logits(model), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload()), want, rtol=0, atol=1e-5)


def test_maps_repeated_in_every_layer_are_stored_once(planted, base, tmp_path):
    import_adapter(planted("condlora", repeat_in_every_layer), tmp_path / "adapter", base=base)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert len([key for key in tensors if "theta" in key]) == 4


def test_maps_that_differ_between_layers_are_refused(planted, base, tmp_path):
    def edit(tensors):
        repeat_in_every_layer(tensors)
        tensors[
            "base_model.model.roberta.encoder.layer.2.attention.self.value.linear_for_lora_B.weight"
        ][0, 0] += 1e-3

    with pytest.raises(
        AdapterError, match=r"different tensors for value.linear_for_lora_B .*layer\.2"
    ):
        import_adapter(planted("condlora", edit), tmp_path / "adapter", base=base)
    assert not (tmp_path / "adapter").exists()


def test_loralib_file_gives_the_logits_of_its_weights_merged_by_hand(roberta, base, tmp_path):
    tensors = loralib_tensors()
    torch.save(tensors, tmp_path / "lora.bin")
    config = import_adapter(tmp_path / "lora.bin", tmp_path / "adapter", base=base, lora_alpha=6)
    assert (config.r, config.lora_alpha) == (4, 6)
    model = PeftModel.from_pretrained(roberta(), str(tmp_path / "adapter")).eval()
    reference = with_updates(
        roberta(), lambda path, W: tensors[f"{path}.lora_B"] @ tensors[f"{path}.lora_A"], 1.5
    )
    torch.testing.assert_close(logits(model), logits(reference), rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert settings["peft_type"] == "LORA"
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["target_modules"] == ["query", "value"]
    assert settings["base_model_name_or_path"] == base


def drop(ending):
    def edit(tensors):
        del tensors[next(key for key in tensors if key.endswith(ending))]

    return edit


def replace(ending, *shape):
    def edit(tensors):
        tensors[next(key for key in tensors if key.endswith(ending))] = random(*shape)

    return edit


def add(name, *shape):
    return lambda tensors: tensors.__setitem__(name, random(*shape))


LAYER_3 = "roberta.encoder.layer.3.attention.self.query.lora_A"
WRONG_LORALIB = {
    "a missing factor": (drop("layer.1.attention.self.value.lora_B"), "lacks .*layer.1.*value.lora_B"),
    "a missing head": (drop("classifier.out_proj.bias"), "lacks classifier.out_proj.bias"),
    "a factor of another width": (replace("2.attention.self.query.lora_B", 8, 4), "is 8 x 4 in .* 16 x 4"),
    "a transposed factor": (replace("2.attention.self.query.lora_A", SIZE, 4), "one rank"),
    "a head of another width": (replace("dense.weight", 8, 8), "classifier.dense.weight is 8 x 8"),
    "a layer that the base lacks": (add(LAYER_3, 4, SIZE), "holds .*layer.3"),
    "weights of the base": (add("roberta.embeddings.LayerNorm.bias", SIZE), "weights of the base"),
    "a head that the base lacks": (add("pooler.dense.bias", SIZE), "pooler"),
    "the authors' maps beside": (add("query.linear_for_lora_A", 4, SIZE), "mixes the layouts"),
    "PEFT's keys beside": (add(f"base_model.model.{LAYER_3}.weight", 4, SIZE), "mixes the layouts"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_LORALIB)
def test_loralib_file_is_refused_for(fault, base, tmp_path):
    edit, message = WRONG_LORALIB[fault]
    tensors = loralib_tensors()
    edit(tensors)
    torch.save(tensors, tmp_path / "lora.bin")
    with pytest.raises(AdapterError, match=message):
        import_adapter(tmp_path / "lora.bin", tmp_path / "adapter", base=base, lora_alpha=8)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "lora.bin"}


WRONG_AUTHORS = {
    "a missing map": ("condlora", drop("value.linear_for_lora_B"), {}, "lacks value.linear_for_lora_B"),
    "a map of another width": ("condlora", replace("query.linear_for_lora_A", 4, 8), {}, "is 4 x 8 in"),
    "a rank that its config denies": ("condlora", None, {"r": 8}, "is 4 x 16 in .* 8 x 16"),
    "a map of a module it does not adapt": ("condlora", add("key.linear_for_lora_A", 4, SIZE), {}, "holds key"),
    "a missing head": ("condlora", drop("classifier.dense.bias"), {}, "lacks classifier.dense.bias"),
    "a variant nobody knows": ("condlora", None, {"use_x": "add"}, "sets use_x"),
    "the variant that reads the first token": (
        "condlora",
        None,
        {"use_x": "type2", "lora_x_scaling": 0.5},
        "sets use_x to type2. .* the update differs between examples and cannot be merged",
    ),
    "a type 1 without theta_x": ("condlora", None, TYPE1, "lacks linear_for_lora_x"),
    "a theta_x of another width": (
        "condlora", add("linear_for_lora_x", 4, 8), TYPE1, "linear_for_lora_x is 4 x 8",
    ),
    "a theta_x that its config denies": (
        "condlora", add_theta_x, {}, "holds linear_for_lora_x, which",
    ),
    "a type 1 without its factor": ("condlora", add_theta_x, {"use_x": "type1"}, "lacks lora_x_scaling"),
    "a setting nobody knows": ("condlora", None, {"use_dora": True}, "sets use_dora"),
    "trained biases": ("lora", None, {"bias": "all"}, "sets bias"),
    "no alpha": ("condlora", None, {"lora_alpha": None}, "lacks lora_alpha"),
    "a config of another method": ("lora", None, {"peft_type": "ConditionalLORA"}, "does not name peft_type 'LORA'"),
    "modules the base lacks": ("condlora", None, {"target_modules": ["q_proj"]}, "does not fit"),
    "modules that are not square": ("condlora", None, {"target_modules": ["query", "dense"]}, "square"),
    "a missing layer of LoRA": ("lora", drop("layer.2.attention.self.value.lora_A.weight"), {}, "lacks .*layer.2"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_AUTHORS)
def test_authors_checkpoint_is_refused_for(fault, planted, base, tmp_path):
    method, edit, settings, message = WRONG_AUTHORS[fault]
    with pytest.raises(AdapterError, match=message):
        import_adapter(planted(method, edit, **settings), tmp_path / "adapter", base=base)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "checkpoint"}


class Planted:
    """Unpickling this runs code, which must never happen."""

    def __reduce__(self):
        return (open, ("ran", "w"))


ODD_FILES = {
    "a pickle with code": lambda path: torch.save({"x.lora_A": Planted()}, path),
    "random bytes": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "an empty file": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a list of tensors": lambda path: torch.save([torch.ones(2)], path),
    "a checkpoint with more than tensors": lambda path: torch.save({"x.lora_A": 3}, path),
    "another model's state dict": lambda path: torch.save({"fc.weight": torch.ones(2, 2)}, path),
    "an empty state dict": lambda path: torch.save({}, path),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_file_is_refused_that_is(kind, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ODD_FILES[kind](tmp_path / "lora.bin")
    with pytest.raises(AdapterError) as refused:
        import_adapter(tmp_path / "lora.bin", tmp_path / "adapter", base=base, lora_alpha=8)
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "lora.bin"}


def test_what_the_user_must_say_is_asked_for(planted, base, tmp_path):
    torch.save(loralib_tensors(), tmp_path / "lora.bin")
    out = tmp_path / "adapter"
    with pytest.raises(AdapterError, match="give --lora-alpha"):
        import_adapter(tmp_path / "lora.bin", out, base=base)
    with pytest.raises(BackboneError, match="give it with --base"):
        import_adapter(tmp_path / "lora.bin", out, lora_alpha=8)
    with pytest.raises(BackboneError, match="neither a folder"):
        import_adapter(tmp_path / "lora.bin", out, base=str(tmp_path / "no"), lora_alpha=8)
    with pytest.raises(AdapterError, match="no file"):
        import_adapter(tmp_path / "other.bin", out, base=base, lora_alpha=8)
    with pytest.raises(AdapterError, match="adapter_config.json"):
        import_adapter(tmp_path, out, base=base, lora_alpha=8)
    folder = planted("condlora")
    with pytest.raises(AdapterError, match="give the folder that holds both"):
        import_adapter(folder / WEIGHTS, out, base=base)
    with pytest.raises(AdapterError, match="leave out --lora-alpha"):
        import_adapter(folder, out, base=base, lora_alpha=8)
    with pytest.raises(AdapterError, match="choose a new folder"):
        import_adapter(folder, folder, base=base)


def test_the_base_that_the_config_names_is_the_default(planted, base, tmp_path):
    folder = planted("condlora", base_model_name_or_path=base)
    import_adapter(folder, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert settings["base_model_name_or_path"] == base


def test_the_script_imports_and_says_what_is_wrong_in_a_sentence(
    base, tmp_path, monkeypatch, capsys
):
    script = runpy.run_path(str(ROOT / "scripts" / "import_adapter.py"))["main"]
    torch.save(loralib_tensors(), tmp_path / "lora.bin")
    words = [
        "import_adapter.py",
        str(tmp_path / "lora.bin"),
        str(tmp_path / "adapter"),
        "--base",
        base,
    ]
    monkeypatch.setattr(sys, "argv", copy.copy(words))
    with pytest.raises(SystemExit) as stopped:
        script()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: loralib's files do not say lora_alpha")
    monkeypatch.setattr(sys, "argv", [*words, "--lora-alpha", "8"])
    script()
    assert "LORA, r 4, alpha 8" in capsys.readouterr().out
    assert (tmp_path / "adapter" / WEIGHTS).is_file()
