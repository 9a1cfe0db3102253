"""The other families of backbones, tiny and random: from training to the analysis, as RoBERTa goes."""

import copy
import json

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedTokenizerFast

from condlora.errors import AdapterError, BackboneError
from condlora.models.adapters import load_factors, load_run
from condlora.models.backbones import fresh_model, load_backbone
from condlora.runs.record import run_folder
from condlora.training import run as finetune
from tests.faults.harness import KILLED, fault, in_child, kill, left_behind
from tests.tasks import ROOT, slow


def architecture(model_type, modules=None, **settings):
    """Overrides that make the tiny backbone one of another family."""
    words = [f"backbone.architecture.model_type={model_type}"]
    settings["initializer_range"] = 0.3  # weights that leave the adapter something to change
    words += [f"+backbone.architecture.{name}={value}" for name, value in settings.items()]
    if modules is not None:
        words += ["~backbone.modules", f"+backbone.modules={modules}"]
    return tuple(words)


FAMILIES = {
    "roberta": architecture("roberta"),  # and DistilRoBERTa and RoBERTa-large
    "deberta": architecture(
        "deberta-v2", "{query: query_proj, value: value_proj}", relative_attention="true",
        pos_att_type="[p2c,c2p]", position_buckets=16, share_att_key="true", norm_rel_ebd="layer_norm",
        position_biased_input="false",
    ),
    "modernbert": architecture("modernbert", "{qkv: Wqkv}", pad_token_id=0),
    "gpt2": architecture("gpt2", "{qkv: c_attn}"),
    "llama": architecture("llama", "{query: q_proj, value: v_proj}", num_key_value_heads=1),
}  # fmt: skip
HEADS = {
    "roberta": ("classifier",),
    "deberta": ("pooler", "classifier"),
    "modernbert": ("head", "classifier"),  # nothing of a random model is pretrained
    "gpt2": ("score",),
    "llama": ("score",),
}
SQUARE = ("roberta", "deberta")
METHODS = {"lora": ("adapter=lora",), "condlora": ("adapter=condlora",)}
RUN = (
    "task=mrpc",
    "protocol.max_length=32",
    "protocol.learning_rate=1e-2",
    "protocol.precision=no",
    "runtime.checkpoint_steps=2",
    "runtime.checkpoint_minutes=null",
)


@pytest.fixture
def cell(tiny_cells, tmp_path):
    """A function (family, method, name) -> config of the run kept under that name."""

    def compose(family, method, name="runs", *overrides):
        form = ("adapter.config.form=consistent",) * (method == "condlora" and family not in SQUARE)
        words = (*RUN, *FAMILIES[family], *METHODS[method], *form, *overrides)
        return tiny_cells(*words, f"runs={tmp_path}/{name}")[0]

    return compose


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("roberta", "condlora"),
        ("gpt2", "lora"),
        pytest.param("gpt2", "condlora", marks=pytest.mark.slow),
        pytest.param("roberta", "lora", marks=pytest.mark.slow),
        *(
            pytest.param(family, method, marks=pytest.mark.slow)
            for family in ("deberta", "modernbert", "llama")
            for method in METHODS
        ),
    ],
)
def test_a_run_trains_resumes_to_the_same_bits_and_gives_its_factors(cell, family, method):
    cfg = cell(family, method)
    record = finetune.run(cfg)  # scores what it saved again, and fails where that differs
    assert record["backbone"]["head"] == list(HEADS[family])
    folder = run_folder(cfg)

    killed = cell(family, method, "killed")

    def doomed():
        with fault(kill, 4, instants=((finetune.Run, "finish_step"),)):
            finetune.run(killed)

    assert in_child(doomed) == KILLED
    finetune.run(killed)
    assert left_behind(run_folder(killed)) == left_behind(folder)

    saved = set(load_file(folder / "adapter/adapter_model.safetensors"))
    of_head = {k for k in saved if k.removeprefix("base_model.model.").startswith(HEADS[family])}
    assert of_head
    assert all("lora_" in key for key in saved - of_head)  # condlora_ too: nothing of the encoder

    factors = load_factors(folder)
    merged = load_run(folder)[0].merge_and_unload()
    assert set(factors) == set(cfg.backbone.modules)
    for kind, f in factors.items():
        modules = [
            m for path, m in merged.named_modules() if path.endswith(cfg.backbone.modules[kind])
        ]
        assert f.layers == [0, 1, 2]
        for layer, module in enumerate(modules):
            weight = module.weight.T if family == "gpt2" else module.weight
            change = f.scaling * f.B[layer] @ f.A[layer]
            assert change.abs().max() > 1e-4  # it was trained
            torch.testing.assert_close(f.W[layer] + change, weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(SQUARE)))
def test_codes_form_on_weights_that_are_not_square_is_refused_with_what_to_set(cell, family):
    cfg = cell(family, "condlora", "runs", "adapter.config.form=code")
    with pytest.raises(AdapterError, match='square weights only: set form="consistent"'):
        finetune.run(cfg)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_drawn_anew_from_the_seed_and_nothing_else_changes(cell, family):
    backbone = load_backbone(cell(family, "lora").backbone, num_labels=2)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(fresh_model(backbone).state_dict())
    for name, tensor in drawn[0].items():
        assert torch.equal(tensor, drawn[1][name])
        is_drawn = name.startswith(HEADS[family]) and tensor.ndim == 2
        assert torch.equal(tensor, drawn[2][name]) != is_drawn, name


def folder_backbone(path, modules):
    cfg = OmegaConf.load(ROOT / "configs/backbone/folder.yaml")
    return OmegaConf.merge(cfg, {"path": str(path), "name": "mine", "modules": modules})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "saved", ["encoder", *slow("classifier of as many", "classifier of others")]
)
def test_head_of_a_saved_model_is_what_pretraining_does_not_provide(cell, tmp_path, family, saved):
    cfg = cell(family, "lora")
    known = load_backbone(cfg.backbone, num_labels=2)
    model = known.model if saved != "encoder" else known.model.base_model
    model.save_pretrained(tmp_path)
    known.tokenizer.save_pretrained(tmp_path)
    labels = 3 if saved == "classifier of others" else 2
    loaded = load_backbone(folder_backbone(tmp_path, {}), num_labels=labels)
    # A classifier's file provides DeBERTa's pooler and the first part of ModernBERT's head, and they stay.
    assert loaded.head == (HEADS[family] if saved == "encoder" else HEADS[family][-1:])
    assert loaded.model.config.num_labels == labels
    for name, tensor in known.model.base_model.state_dict().items():
        assert torch.equal(tensor, loaded.model.base_model.state_dict()[name]), name


def test_modernberts_pretrained_part_beside_the_encoder_stays(cell, tmp_path):
    """The hub's file is a language model's: its `head` is pretrained, and only the classifier is new."""
    known = load_backbone(cell("modernbert", "lora").backbone, num_labels=2)
    torch.manual_seed(0)
    language_model = AutoModelForMaskedLM.from_config(known.model.config)
    language_model.save_pretrained(tmp_path)
    known.tokenizer.save_pretrained(tmp_path)
    loaded = load_backbone(folder_backbone(tmp_path, {}), num_labels=2)
    assert loaded.head == ("classifier",)
    assert torch.equal(fresh_model(loaded).head.dense.weight, language_model.head.dense.weight)


@pytest.mark.parametrize(
    ("lost", "head"),
    [("pooler.dense", ("bert.pooler", "classifier")), ("encoder.layer.1.output.dense", None)],
)
def test_only_a_pooler_may_lack_of_the_encoder(cell, tmp_path, tiny_cells, lost, head):
    known = load_backbone(tiny_cells("task=rte")[0].backbone, num_labels=2)
    known.model.bert.save_pretrained(tmp_path)
    known.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in weights.items() if not name.startswith(lost)}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    cfg = folder_backbone(tmp_path, {"query": "query"})
    if head is not None:
        assert load_backbone(cfg, num_labels=2).head == head
        return
    with pytest.raises(BackboneError, match=f"mine lack bert.{lost}.bias and 1 more: fetch them"):
        load_backbone(cfg, num_labels=2)


@pytest.mark.parametrize(
    ("family", "limit"),
    [("roberta", 128 - 2), ("deberta", 128), ("modernbert", 128), ("gpt2", 128), ("llama", 128)],
)
def test_longest_input_is_what_the_model_can_read(cell, family, limit):
    backbone = load_backbone(cell(family, "lora").backbone, num_labels=2)
    assert backbone.max_length == limit
    ids = torch.full((1, limit), 999)
    assert backbone.model(input_ids=ids).logits.isfinite().all()


@pytest.fixture
def decoder(cell, tmp_path):
    """A function (family) -> a folder with a decoder and a tokenizer of bytes, without padding token or template."""

    def build(family):
        cfg = OmegaConf.to_container(cell(family, "lora").backbone.architecture)
        known = load_backbone(cell(family, "lora").backbone, num_labels=2)
        config = copy.deepcopy(known.model.config)
        config.vocab_size, config.eos_token_id, config.bos_token_id = 257, 256, 256
        config.pad_token_id = None
        torch.manual_seed(cfg["hidden_size"])
        AutoModel.from_config(config).save_pretrained(tmp_path / family)
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: i for i, letter in enumerate(letters)}
        raw = Tokenizer(models.BPE(vocabulary, []))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(
            tokenizer_object=raw,
            eos_token="<|endoftext|>",
            padding_side="left",
            model_max_length=64,
        ).save_pretrained(tmp_path / family)
        return tmp_path / family

    return build


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoder_without_a_padding_token_reads_the_last_token_whatever_the_padding(decoder, family):
    backbone = load_backbone(folder_backbone(decoder(family), {}), num_labels=2)
    tokenizer = backbone.tokenizer
    assert (tokenizer.pad_token, backbone.model.config.pad_token_id) == ("<|endoftext|>", 256)
    rows = tokenizer(["short", "a much longer text"])
    batch = tokenizer.pad(rows, return_tensors="pt")
    assert batch["attention_mask"][0].tolist() == [1] * 5 + [0] * 13
    with torch.inference_mode():
        together = backbone.model(**batch).logits
        alone = backbone.model(**tokenizer("short", return_tensors="pt")).logits
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=1e-5)


def test_the_two_texts_of_a_pair_are_kept_apart(decoder):
    tokenizer = load_backbone(folder_backbone(decoder("gpt2"), {}), num_labels=2).tokenizer
    first, second = tokenizer("ab")["input_ids"], tokenizer("c")["input_ids"]
    assert tokenizer("ab", "c")["input_ids"] == [*first, 256, *second]
    cut = tokenizer("ab" * 40, "c" * 40, truncation=True, max_length=16)["input_ids"]
    assert len(cut) == 16 and cut.count(256) == 1


def test_decoder_without_padding_or_end_is_refused_in_a_sentence(decoder):
    folder = decoder("gpt2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(BackboneError, match="neither a padding nor an end-of-text token"):
        load_backbone(folder_backbone(folder, {}), num_labels=2)


SHIPPED = sorted(path.stem for path in (ROOT / "configs/backbone").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_backbones_of_the_hub_are_pinned_to_a_commit(name):
    cfg = OmegaConf.load(ROOT / f"configs/backbone/{name}.yaml")
    if cfg.source == "hub":
        assert len(cfg.revision) == 40 and int(cfg.revision, 16)
