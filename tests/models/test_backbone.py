"""Where the encoder comes from, and what is said when it does not come."""

import copy
import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig

from condlora.errors import BackboneError, ConfigError, NetworkError
from condlora.models import backbones as module
from condlora.models.adapters import add_adapter, save_adapter
from condlora.models.backbones import fresh_model, load_backbone
from condlora.runs.recipe import recipe, recipe_hash
from tests.tasks import ROOT


def shipped(name, **changes):
    cfg = OmegaConf.load(ROOT / "configs" / "backbone" / f"{name}.yaml")
    return OmegaConf.merge(cfg, {"name": name} | changes)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of such a folder."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def test_folder_gives_the_same_encoder_and_a_head_to_train(tiny, folder):
    loaded = load_backbone(shipped("folder", path=str(folder)), num_labels=3)
    assert loaded.head == ("classifier",)
    assert loaded.model.config.num_labels == 3
    assert loaded.description["weights_sha256"] == tiny.description["weights_sha256"]
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_weights_hash_follows_the_weights(tiny):
    changed = copy.deepcopy(tiny.model)
    with torch.no_grad():
        changed.bert.encoder.layer[0].attention.self.query.weight[0, 0] += 1e-3
    assert module._weights_sha256(changed, tiny.head) != tiny.description["weights_sha256"]
    with torch.no_grad():
        tiny_head = copy.deepcopy(tiny.model)
        tiny_head.classifier.weight += 1
    assert module._weights_sha256(tiny_head, tiny.head) == tiny.description["weights_sha256"]


def test_head_is_drawn_anew_from_the_seed_and_nothing_else_changes(tiny):
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = fresh_model(tiny)
        heads.append(model.classifier.weight)
        assert torch.equal(
            model.bert.embeddings.word_embeddings.weight,
            tiny.model.bert.embeddings.word_embeddings.weight,
        )
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"path": "nowhere"}, BackboneError, "holds no config.json: set backbone.path"),
        (
            {"source": "cloud", "path": "x"},
            ConfigError,
            "choose hub, package, fetched, folder or random",
        ),
        (
            {"source": "package", "package": "no_such_package", "folder": "m", "path": "x"},
            BackboneError,
            "package no_such_package is not installed",
        ),
    ],
)
def test_missing_weights_are_said(changes, error, message):
    with pytest.raises(error, match=message):
        load_backbone(shipped("folder", **changes), num_labels=2)


def test_truncated_weights_are_said(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot be read|could be loaded"):
        load_backbone(shipped("folder", path=str(folder)), num_labels=2)


def test_pickled_weights_are_refused(folder, tiny):
    torch.save(tiny.model.bert.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="model.safetensors"):
        load_backbone(shipped("folder", path=str(folder)), num_labels=2)


def test_hub_is_asked_for_the_pinned_revision_and_offline_is_said(monkeypatch):
    asked = {}

    def offline(place, **settings):
        asked.update(settings, place=place)
        raise OSError("We couldn't connect")

    def config(place, *, revision, trust_remote_code):
        assert (place, revision) == (cfg.model, cfg.revision) and trust_remote_code is False
        return RobertaConfig()

    monkeypatch.setattr(module.AutoModelForSequenceClassification, "from_pretrained", offline)
    monkeypatch.setattr(module.AutoConfig, "from_pretrained", config)
    cfg = shipped("roberta-base")
    with pytest.raises(NetworkError, match="go online once, or use backbone=minilm"):
        load_backbone(cfg, num_labels=2)
    assert (asked["place"], asked["revision"]) == (cfg.model, cfg.revision)
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is False


def test_adapter_setting_that_peft_does_not_know_is_said(tiny):
    cfg = OmegaConf.load(ROOT / "configs" / "adapter" / "lora.yaml")
    known = {"r": 4, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["query"]}
    cfg = OmegaConf.merge(cfg, {"config": known | {"rnak": 3}})
    with pytest.raises(ConfigError, match="rnak"):
        add_adapter(fresh_model(tiny), cfg, tiny.head)


def test_saved_config_is_the_same_text_in_every_process(tmp_path, tiny_bert):
    """PEFT keeps target_modules as a set of strings, whose order Python draws anew for each process."""
    names = [f"{part}.{kind}" for part in ("self", "x") for kind in ("query", "key", "value", "z")]
    model = get_peft_model(tiny_bert(), LoraConfig(target_modules=names))
    save_adapter(model, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert saved == sorted(names)


def test_recipe_follows_the_content_of_a_backbones_folder(folder, tiny_cells):
    def digest():
        (cfg,) = tiny_cells("task=rte", "backbone=folder", f"backbone.path={folder}")
        return recipe_hash(recipe(cfg))

    before = digest()
    assert digest() == before
    path = folder / "model.safetensors"
    save_file({name: t + 1 for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    assert digest() != before


def digest_of(tiny_cells, path, *more):
    (cfg,) = tiny_cells("task=rte", "backbone=folder", f"backbone.path='{path}'", *more)
    return recipe_hash(recipe(cfg))


@pytest.mark.parametrize("way", ["{}/", "{}/.", "{}/../{name}", "relative", "link", "copy", "{}//"])
def test_one_folder_has_one_recipe_however_its_path_is_written(
    folder, tiny_cells, tmp_path_factory, monkeypatch, way
):
    expected = digest_of(tiny_cells, folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "m"
    path = way.format(folder, name=folder.name)
    if way == "relative":
        monkeypatch.chdir(folder.parent)
        path = folder.name
    elif way == "link":
        path = elsewhere
        elsewhere.symlink_to(folder)
    elif way == "copy":
        path = shutil.copytree(folder, elsewhere)
    assert digest_of(tiny_cells, path) == expected


@pytest.mark.parametrize("name", [".DS_Store", ".cache/huggingface/model.metadata", ".git/HEAD"])
def test_hidden_files_in_a_folder_change_no_recipe(folder, tiny_cells, name):
    expected = digest_of(tiny_cells, folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    assert digest_of(tiny_cells, folder) == expected


def test_a_folders_own_name_is_part_of_the_recipe_and_its_path_is_not(folder, tiny_cells):
    named = digest_of(tiny_cells, folder, "backbone.name=mine")
    assert named != digest_of(tiny_cells, folder)
    assert named == digest_of(tiny_cells, f"{folder}/", "backbone.name=mine")


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_a_record_names_a_folder_by_its_last_part(tiny, tmp_path, ending):
    """So that a run that was interrupted goes on, and RoBERTa-base is recognised, whatever the path."""
    tiny.model.bert.save_pretrained(tmp_path / "roberta-base")
    tiny.tokenizer.save_pretrained(tmp_path / "roberta-base")
    cfg = OmegaConf.load(ROOT / "configs/backbone/folder.yaml")
    cfg = OmegaConf.create({"backbone": cfg})
    cfg.backbone.path = f"{tmp_path}/roberta-base{ending}"
    assert load_backbone(cfg.backbone, num_labels=2).description["name"] == "roberta-base"


def test_a_folder_that_changed_is_loaded_anew_in_the_same_process(folder):
    def loaded():
        return load_backbone(shipped("folder", path=str(folder)), num_labels=2)

    before = loaded()
    assert loaded() is before
    path = folder / "model.safetensors"
    save_file({name: t + 1 for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    assert loaded().description["weights_sha256"] != before.description["weights_sha256"]
