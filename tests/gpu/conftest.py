"""Every test here runs on a CPU, among the slow tests, and on a GPU (`make gpu-check`): the same bodies at the same size."""

import functools
import os

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.tasks import slow

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'?!-"


@pytest.fixture(params=[*slow("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A function (dropout) -> overrides that name a tiny BERT with random weights; its tokenizer comes with no package."""

    @functools.cache
    def save(dropout):
        folder = tmp_path_factory.mktemp("backbone")
        torch.manual_seed(0)
        shape = BertConfig(
            vocab_size=len(vocabulary()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=128, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        BertModel(shape).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return "backbone=folder", f"backbone.path={folder}", "protocol.max_length=64"

    return save


def vocabulary():
    pieces = [*SPECIAL, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    return {piece: number for number, piece in enumerate(pieces)}


def tokenizer():
    """Splits words into characters."""
    words = Tokenizer(models.WordPiece(vocabulary(), unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    named = dict(zip(names, SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=128, **named)
