"""Backbones with settings left over from another use, and tokenizers that do not fit: set right, or one sentence."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import AddedToken
from transformers import RobertaConfig, RobertaModel

from condlora.errors import BackboneError
from condlora.models.backbones import fresh_model, load_backbone
from condlora.models.packing import pack
from tests.tasks import slow

INPUTS = {
    "input_ids": torch.arange(2000, 2024).view(2, 12),
    "attention_mask": torch.ones(2, 12).long(),
}
LABELS = {1: torch.tensor([0.5, 1.0]), 2: torch.tensor([0, 1]), 3: torch.tensor([0, 2])}


@pytest.fixture
def folder(saved, tmp_path):
    """A function (**settings) -> a folder with the tiny encoder and these settings in its config.json."""

    def save(**settings):
        shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return tmp_path

    return save


def load(path, num_labels=2):
    modules = {"query": "query", "value": "value"}
    cfg = {"name": "mine", "source": "folder", "path": str(path), "modules": modules}
    return load_backbone(OmegaConf.create(cfg), num_labels=num_labels)


def outputs(backbone, num_labels, wrap=lambda model: model):
    torch.manual_seed(0)
    with torch.no_grad():
        found = wrap(fresh_model(backbone))(**INPUTS, labels=LABELS[num_labels])
    return found.loss, found.logits


@pytest.fixture(scope="module")
def expected(saved):
    """Loss and logits of the encoder without any left-over setting, by number of labels."""
    return {num_labels: outputs(load(saved, num_labels), num_labels) for num_labels in LABELS}


@pytest.mark.parametrize("num_labels", [2, *slow(1, 3)])
@pytest.mark.parametrize(
    "settings",
    [
        {"problem_type": "multi_label_classification"},
        {
            "problem_type": "regression"
        },  # with two labels it would train on a mean squared error of both
        {"problem_type": "single_label_classification"},
        {"return_dict": False},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"chunk_size_feed_forward": 5},
        {"is_decoder": True},  # the first token, which the head reads, would see itself alone
        {"attn_implementation": "flash_attention_2"},
        {"dtype": "float16"},
        {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}},
    ],
)
def test_leftover_settings_change_nothing(expected, folder, settings, num_labels):
    """Neither the logits nor the loss, packed or not."""
    backbone = load(folder(**settings), num_labels)
    for wrap in (lambda model: model, pack):
        found = outputs(backbone, num_labels, wrap)
        torch.testing.assert_close(found, expected[num_labels], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_act": "nonsense"},
        {"num_attention_heads": 3},
        {"pad_token_id": 40_000},
        {"num_hidden_layers": "three"},
        {"auto_map": {"AutoConfig": "mine.Config"}, "model_type": "mine"},
    ],
)
def test_what_cannot_be_set_right_is_one_sentence(folder, settings):
    with pytest.raises(BackboneError, match=r"could be loaded from .* check its config.json; it"):
        load(folder(**settings))


@pytest.mark.parametrize(
    "tokens",
    [["zzqx"], [AddedToken("[X]", special=True)], ["zzqx", "zzqy", "zzqz"], "pad_token"],
)
def test_tokens_without_an_embedding_are_refused(tiny, folder, tokens):
    path = folder()
    tokenizer = type(tiny.tokenizer).from_pretrained(path)
    if tokens == "pad_token":
        tokenizer.add_special_tokens({"pad_token": "[NOTHING]"})
    else:
        tokenizer.add_tokens(tokens)
    tokenizer.save_pretrained(path)
    with pytest.raises(BackboneError, match=r"no embeddings for \('.*' is number 30522 of 30522"):
        load(path)


def test_added_tokens_with_embeddings_are_taken(tiny, folder):
    path = folder()
    tokenizer = type(tiny.tokenizer).from_pretrained(path)
    tokenizer.add_tokens(["zzqx"])
    tokenizer.save_pretrained(path)
    model = fresh_model(tiny)
    model.resize_token_embeddings(len(tokenizer))
    model.bert.save_pretrained(path)
    assert load(path).tokenizer("zzqx")["input_ids"][1] == 30522


def test_a_model_of_one_token_type_is_given_none(tiny, tmp_path):
    """BERT's tokenizer numbers the second text of a pair 1."""
    config = RobertaConfig(
        vocab_size=30522, type_vocab_size=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    backbone = load(tmp_path)
    pair = backbone.tokenizer("one text", "another", return_tensors="pt")
    assert "token_type_ids" not in pair
    assert backbone.model(**pair).logits.isfinite().all()
