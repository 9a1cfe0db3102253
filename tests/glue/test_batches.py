"""Tokenising, padding and the order of examples."""

import copy

import pytest
import torch
from omegaconf import OmegaConf

from condlora.glue.batches import encode, evaluation_batches, padder, training_batches
from condlora.glue.sources import load_text
from condlora.models.backbones import load_backbone
from tests.tasks import ROOT, load_task


@pytest.fixture(scope="module")
def backbone():
    cfg = OmegaConf.load(ROOT / "configs" / "backbone" / "tiny.yaml")
    return load_backbone(cfg, num_labels=2)


@pytest.fixture(scope="module")
def encoded(backbone):
    text = load_text(OmegaConf.create({"source": "synthetic", "seed": 0}), load_task("rte"))
    return encode(
        text["train"].select(range(40)), load_task("rte"), backbone.tokenizer, max_length=128
    )


def collate(backbone, padding="longest"):
    return padder(backbone.tokenizer, padding=padding, max_length=128)


def test_pairs_are_cut_at_the_maximum_length_and_counted(backbone):
    text = load_text(OmegaConf.create({"source": "synthetic", "seed": 0}), load_task("rte"))
    split, task = text["train"].select(range(40)), load_task("rte")
    whole = encode(split, task, backbone.tokenizer, max_length=128)
    cut = encode(split, task, backbone.tokenizer, max_length=16)
    assert whole.truncated == 0
    assert cut.truncated == sum(n > 16 for n in whole.lengths) > 0
    assert cut.lengths == [min(n, 16) for n in whole.lengths]


def test_each_epoch_sees_every_example_once_in_another_order(backbone, encoded):
    batches = training_batches(encoded, collate(backbone), batch_size=16, seed=5)
    orders = []
    for epoch in (0, 1, 0):
        batches.sampler.set_epoch(epoch)
        orders.append(list(batches.sampler))
    assert sorted(orders[0]) == list(range(40))
    assert orders[0] == orders[2] != orders[1]
    other = training_batches(encoded, collate(backbone), batch_size=16, seed=6)
    assert list(other.sampler) != orders[0]


def test_drawing_batches_leaves_the_dropout_stream_alone(backbone, encoded):
    torch.manual_seed(3)
    untouched = torch.get_rng_state()
    list(training_batches(encoded, collate(backbone), batch_size=16, seed=5))
    list(evaluation_batches(encoded, collate(backbone), batch_size=16)[0])
    assert torch.equal(torch.get_rng_state(), untouched)


def test_padding_to_the_longest_or_to_the_maximum_gives_equal_logits(backbone, encoded):
    logits = {}
    for padding in ("longest", "max_length"):
        batches, order = evaluation_batches(encoded, collate(backbone, padding), batch_size=8)
        with torch.no_grad():
            outputs = [
                backbone.model(**{k: v for k, v in b.items() if k != "labels"}).logits
                for b in batches
            ]
        logits[padding] = torch.empty(40, 2).index_copy_(0, order, torch.cat(outputs))
    assert torch.allclose(logits["longest"], logits["max_length"], atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_batches_are_what_the_tokenizer_would_pad(backbone, encoded, padding, side):
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.padding_side, tokenizer._pad_token_type_id = side, 3
    tokenizer.pad_token = "[MASK]"
    pad = padder(tokenizer, padding=padding, max_length=128)
    some = [7, 0, 31, 39]
    batch = pad(encoded, some)
    rows = [{k: v.tolist() for k, v in encoded[i].items() if k != "labels"} for i in some]
    expected = tokenizer.pad(rows, padding=padding, max_length=128, return_tensors="pt")
    assert set(batch) == {*expected, "labels"} and "token_type_ids" in batch
    for name, values in expected.items():
        assert batch[name].dtype == values.dtype and torch.equal(batch[name], values)
    assert torch.equal(batch["labels"], encoded.labels[some])


def test_an_example_is_what_the_tokenizer_made_of_its_text(backbone, encoded):
    text = load_text(OmegaConf.create({"source": "synthetic", "seed": 0}), load_task("rte"))
    row = text["train"][11]
    expected = backbone.tokenizer(row["sentence1"], row["sentence2"])
    example = encoded[11]
    assert {k: v.tolist() for k, v in example.items()} == {**expected, "labels": row["label"]}


def test_packed_batches_tell_how_many_tokens_each_row_has(backbone, encoded):
    loader = training_batches(encoded, collate(backbone, "packed"), batch_size=16, seed=5)
    for batch in loader:
        assert batch["lengths"] == batch["attention_mask"].sum(dim=1).tolist()
        assert batch["input_ids"].shape[1] == max(batch["lengths"])


def test_evaluation_batches_are_sorted_and_their_order_is_told(backbone, encoded):
    batches, order = evaluation_batches(encoded, collate(backbone), batch_size=16)
    labels = torch.cat([batch["labels"] for batch in batches])
    lengths = [encoded.lengths[i] for i in order]
    assert lengths == sorted(lengths)
    assert torch.equal(labels, encoded.labels[order])
