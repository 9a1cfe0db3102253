"""The configuration: what each field does to the adapter, and what it cannot be."""

import dataclasses
import math
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn

from condlora import CondLoraConfig, export_lora
from condlora.errors import AdapterError
from condlora.tuner.layer import CondLoraLayer
from condlora.tuner.sharing import Target, layer_index, sharing_group, sharing_groups
from tests.tasks import ROOT
from tests.tuner.families import FAMILIES, adapted, logits, perturb


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, CondLoraLayer)}


def test_fields_that_loraconfig_has_too_have_its_names_and_defaults():
    theirs = {f.name: f for f in dataclasses.fields(LoraConfig)}
    for ours in dataclasses.fields(CondLoraConfig):
        if ours.name in (
            "form", "method", "options", "sharing", "layers_per_map", "unshared_modules", "init_weights",
        ):  # fmt: skip
            assert ours.name not in theirs
        elif ours.default is not dataclasses.MISSING:
            assert ours.default == theirs[ours.name].default, ours.name
        else:
            assert ours.default_factory() == theirs[ours.name].default_factory()


def test_defaults_are_the_papers():
    config = CondLoraConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 8, 0.0)
    assert config.sharing == "path"


def test_a_form_left_out_is_the_papers_on_square_weights_and_is_saved(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*square weights only")
        model = adapted("bert", None)
    model.save_pretrained(tmp_path)
    assert CondLoraConfig.from_pretrained(tmp_path).form == "code"


def test_a_form_left_out_is_consistent_where_a_weight_is_not_square(tmp_path):
    with pytest.warns(UserWarning, match='k_proj is 8 x 16.* form="consistent" is used') as caught:
        model = adapted("llama", None, target_modules=["q_proj", "k_proj"])
    assert sum("is used for all" in str(w.message) for w in caught) == 1
    model.save_pretrained(tmp_path)
    assert CondLoraConfig.from_pretrained(tmp_path).form == "consistent"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "k_proj is 8 x 16")
        PeftModel.from_pretrained(FAMILIES["llama"].build(), tmp_path)


@pytest.mark.parametrize("method", ["tied_lora", "dylora"])
def test_methods_without_a_form_are_saved_as_before(method):
    model = adapted("llama", None, method=method, target_modules=["k_proj"])
    assert model.peft_config["default"].form == "code"
    with pytest.raises(AdapterError, match="leave form out"):
        CondLoraConfig(method=method, form="consistent")


@pytest.mark.parametrize(
    ("path", "group", "index"),
    [
        ("bert.encoder.layer.7.attention.self.query", "bert.encoder.layer.attention.self.query", 7),
        ("encoder.block.3.layer.1.DenseReluDense.wi", "encoder.block.layer.1.DenseReluDense.wi", 3),
        ("model.layers.2.mlp.experts.5.w1", "model.layers.mlp.experts.5.w1", 2),
        ("head", "head", None),
    ],
)
def test_sharing_group_is_the_path_without_the_layer_index(path, group, index):
    assert sharing_group(path) == group
    assert layer_index(path) == index


def test_dense_layers_of_different_shapes_do_not_collide():
    """The authors key by the last path component, which mixes three shapes of `dense` in BERT."""
    model = adapted("bert", "consistent", target_modules=["dense"])
    shapes = {group: tuple(a.shape) for group, (a, _) in model.base_model.maps().items()}
    assert len(shapes) == 4  # attention output, intermediate, output, pooler
    assert set(shapes.values()) == {(4, 16), (4, 24)}


def test_sharing_by_shape_gives_all_modules_of_one_shape_one_pair():
    model = adapted("bert", "consistent", sharing="shape", target_modules="all-linear")
    assert set(model.base_model.maps()) == {"16x16", "24x16", "16x24"}
    pointers = {layer.theta("default")[0].data_ptr() for layer in layers(model).values()}
    assert len(pointers) == 3 < len(layers(model))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": ["query"]}, ["0.query", "1.query", "2.query"]),
        ({"target_modules": r".*\.[12]\.attention\.self\.value"}, ["1.value", "2.value"]),
        (
            {"target_modules": ["query", "value"], "exclude_modules": ["value"]},
            ["0.query", "1.query", "2.query"],
        ),
        ({"target_modules": ["query"], "layers_to_transform": 1}, ["1.query"]),
        (
            {"target_modules": ["query"], "layers_to_transform": [0, 2], "layers_pattern": "layer"},
            ["0.query", "2.query"],
        ),
    ],
    ids=["names", "regex", "excluded", "one layer", "layers of a pattern"],
)
def test_targets(settings, expected):
    model = adapted("bert", **settings)
    found = [f"{layer_index(n.split('bert.', 1)[1])}.{n.rsplit('.', 1)[1]}" for n in layers(model)]
    assert found == expected


def test_rank_and_alpha_patterns_set_a_sharing_groups_rank_and_scaling():
    model = adapted("bert", rank_pattern={"query": 2}, alpha_pattern={"self.value": 12})
    for name, layer in layers(model).items():
        A, B = layer.materialise()
        expected = (2, 8 / 2) if name.endswith("query") else (4, 12 / 4)
        assert (A.shape[0], layer.scaling["default"]) == expected and B.shape[1] == expected[0]


def test_patterns_name_shapes_where_modules_share_by_shape():
    model = adapted(
        "bert",
        "consistent",
        sharing="shape",
        target_modules="all-linear",
        rank_pattern={"16x16": 2},
    )
    ranks = {group: a.shape[0] for group, (a, _) in model.base_model.maps().items()}
    assert ranks == {"16x16": 2, "24x16": 4, "16x24": 4}
    with pytest.raises(AdapterError, match="here 16x16: query is none of them"):
        adapted("bert", sharing="shape", rank_pattern={"query": 2})


@pytest.mark.parametrize(
    ("k", "blocks"), [(None, [3]), (1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (9, [3])]
)
def test_blocks_of_neighbouring_layers_share_a_pair(k, blocks):
    model = adapted("bert", target_modules=["query"], layers_per_map=k)
    pairs = [layer.theta("default")[0].data_ptr() for layer in layers(model).values()]
    assert [pairs.count(pair) for pair in dict.fromkeys(pairs)] == blocks
    assert len(model.base_model.maps()) == len(blocks)


def test_blocks_count_layers_by_their_index_in_the_model():
    """Layers 1 and 2 of four are of two blocks, also where no other layer is adapted."""
    settings = {"target_modules": ["query"], "layers_to_transform": [1, 2], "layers_per_map": 2}
    assert len(adapted("bert", **settings).base_model.maps()) == 2


def test_patterns_name_whole_groups_and_shapes_where_blocks_share():
    model = adapted("bert", layers_per_map=1, rank_pattern={"query": 2})
    ranks = {
        name.rpartition(".self.")[2]: a.shape[0] for name, (a, _) in model.base_model.maps().items()
    }
    assert ranks == {f"{m}.block-{i}": r for m, r in (("query", 2), ("value", 4)) for i in range(3)}
    settings = {"sharing": "shape", "target_modules": "all-linear", "layers_per_map": 2}
    model = adapted("bert", "consistent", rank_pattern={"16x24": 2}, **settings)
    ranks = {group: a.shape[0] for group, (a, _) in model.base_model.maps().items()}
    blocks = {
        f"{s}.block-{i}": 2 if s == "16x24" else 4
        for s in ("16x16", "24x16", "16x24")
        for i in range(2)
    }
    assert ranks == blocks | {"16x16": 4}  # the pooler is in no layer
    with pytest.raises(AdapterError, match="here 16x16: query is none of them"):
        adapted("bert", sharing="shape", layers_per_map=1, rank_pattern={"query": 2})


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "2"])
def test_layers_per_map_that_is_no_positive_whole_number_is_refused(k):
    with pytest.raises(AdapterError, match="layers_per_map is .*: give a positive whole number"):
        CondLoraConfig(layers_per_map=k)


def test_layers_per_map_stands_in_the_file_only_where_it_is_used(tmp_path):
    assert "layers_per_map" not in CondLoraConfig().to_dict()
    adapted("bert", layers_per_map=2).save_pretrained(tmp_path)
    assert CondLoraConfig.from_pretrained(tmp_path).layers_per_map == 2


@pytest.mark.parametrize("settings", [{}, {"sharing": "shape"}, {"layers_per_map": 3}])
def test_an_unshared_module_has_a_pair_of_its_own_and_is_merged_exported_and_loaded(
    settings, tmp_path
):
    own = "bert.encoder.layer.0.attention.self.query"
    model = perturb(adapted("bert", target_modules=["query"], unshared_modules=[own], **settings))
    pairs = [layer.theta("default")[0].data_ptr() for layer in layers(model).values()]
    assert pairs[0] != pairs[1] == pairs[2]
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path / "adapter").eval()
    assert loaded.peft_config["default"].unshared_modules == [own]
    assert torch.equal(logits(loaded), expected)
    export_lora(model, tmp_path / "lora")
    exported = PeftModel.from_pretrained(FAMILIES["bert"].build(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(exported), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


def test_unshared_modules_are_paths_of_targets_and_in_the_file_only_where_they_are_used():
    assert "unshared_modules" not in CondLoraConfig().to_dict()
    with pytest.raises(AdapterError, match=r"unshared_modules is 'query': give a list"):
        CondLoraConfig(unshared_modules="query")
    with pytest.raises(AdapterError, match=r"names query, .* such as bert\.encoder\.layer\.0\."):
        adapted("bert", unshared_modules=["query"])


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_for_one_layer_is_refused_since_layers_share_their_maps(pattern):
    with pytest.raises(AdapterError, match="whole sharing groups"):
        adapted("bert", **{pattern: {r"layer\.1\.attention\.self\.query": 2}})


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_scaling(use_rslora, scaling):
    model = adapted("bert", use_rslora=use_rslora)
    assert {layer.scaling["default"] for layer in layers(model).values()} == {scaling}


def test_fan_in_fan_out_says_what_the_model_has():
    assert adapted("gpt2").peft_config["default"].fan_in_fan_out
    assert not adapted("bert", fan_in_fan_out=True).peft_config["default"].fan_in_fan_out


def test_parameter_counts_of_table_4():
    """294,912 for LoRA and 24,576 for CondLoRA on a RoBERTa-base-shaped model, classifier aside."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(vocab_size=50)  # 12 layers of 768 are the defaults
    counts = {}
    for method in (LoraConfig, CondLoraConfig):
        with torch.device("meta"):
            model = RobertaModel(config)
            model = get_peft_model(model, method(r=8, target_modules=["query", "value"]))
        counts[method.__name__] = model.get_nb_trainable_parameters()[0]
    assert counts == {"LoraConfig": 294_912, "CondLoraConfig": 24_576}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["intermediate.dense"], "form": "code"}, 'set form="consistent"'),
        (
            {"target_modules": ["word_embeddings"]},
            "Embedding, and CondLoRA adapts nn.Linear, .*Conv1D",
        ),
        ({"target_modules": ["LayerNorm"]}, "LayerNorm, and CondLoRA adapts nn.Linear"),
        ({"target_modules": ["typo"]}, "typo.* not found in the base model"),
        ({"r": 17}, "choose r of at most 16"),
        ({"r": 0}, "positive"),
        ({"r": 2.5}, "positive whole"),
        ({"rank_pattern": {"query": 0}}, "rank query is 0"),
        ({"form": "other"}, "choose one of code, literal, consistent"),
        ({"sharing": "layer"}, "choose one of path, shape"),
        ({"bias": "lora_only"}, "choose one of none, all, condlora_only"),
        ({"lora_dropout": 1.0}, "from 0 up to 1"),
        ({"target_modules": ".*query", "layers_to_transform": [1]}, "as a list of names"),
        ({"layers_pattern": "layer"}, "set layers_to_transform too"),
        ({"r": True}, "rank r is True"),
        ({"lora_alpha": "16"}, "alpha lora_alpha is '16': give a number"),
        ({"lora_alpha": None}, "alpha lora_alpha is None"),
        ({"lora_alpha": math.nan}, "alpha lora_alpha is nan"),
        ({"alpha_pattern": {"query": "4"}}, "alpha query is '4'"),
        ({"lora_dropout": "0.1"}, "lora_dropout is '0.1': give a number"),
        ({"use_rslora": "no"}, "use_rslora is 'no': give True or False"),
        ({"rank_pattern": ["query"]}, "rank_pattern is .*: give module names and values"),
        ({"modules_to_save": "classifier"}, "give a list of names"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(
            FAMILIES["bert"].build(), CondLoraConfig(**({"target_modules": ["query"]} | settings))
        )


@pytest.mark.parametrize("module", [nn.Conv1d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Embedding(4, 4)])
def test_convolutions_and_embeddings_are_refused_by_name(module):
    with pytest.raises(
        AdapterError, match=f"a {type(module).__name__}, and CondLoRA adapts nn.Linear"
    ):
        get_peft_model(nn.ModuleDict({"one": module}), CondLoraConfig(r=2, target_modules=["one"]))


def groups(paths_and_shapes, **settings):
    targets = [Target(path, shape) for path, shape in paths_and_shapes]
    return sharing_groups(targets, CondLoraConfig(**settings))


def test_blocks_of_a_stage_share_where_stages_have_different_shapes():
    """As in Swin and ConvNext, whose first number is the stage and whose second is the layer."""
    paths = {
        f"layers.{stage}.blocks.{block}.query": stage for stage in range(2) for block in range(3)
    }
    found = groups((path, (8 << stage, 8 << stage)) for path, stage in paths.items())
    assert found == {path: f"layers.{stage}.blocks.query" for path, stage in paths.items()}


def test_modules_without_a_partner_of_their_shape_share_with_none():
    paths = [("merger.mlp.0", (8, 8)), ("merger.mlp.2", (4, 8))]
    assert groups(paths) == {"merger.mlp.0": "merger.mlp.0", "merger.mlp.2": "merger.mlp.2"}
    assert groups(paths, sharing="shape") == {"merger.mlp.0": "8x8", "merger.mlp.2": "4x8"}


@pytest.mark.parametrize("container", [nn.Sequential, lambda *a: nn.ModuleList(a)])
def test_steps_of_a_sequential_do_not_share_and_members_of_a_list_do(container):
    base = nn.ModuleDict({"mlp": container(nn.Linear(8, 8), nn.Linear(8, 8))})
    model = get_peft_model(base, CondLoraConfig(r=2, target_modules=["0", "1"]))
    expected = {"mlp.0", "mlp.1"} if container is nn.Sequential else {"mlp"}
    assert set(model.base_model.maps()) == expected


def test_blocks_that_each_end_in_a_sequential_share_across_blocks():
    block = lambda: nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))})  # noqa: E731
    base = nn.ModuleDict({"blocks": nn.ModuleList([block(), block()])})
    model = get_peft_model(
        base, CondLoraConfig(r=2, target_modules=["0", "1"], exclude_modules=r"blocks\.\d")
    )
    assert set(model.base_model.maps()) == {"blocks.mlp.0", "blocks.mlp.1"}


class Head(nn.Module):
    """A body and a head smaller than the default rank, without a transformers config."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        for layer in self.body:
            x = x + layer(x)
        return self.head(x)


def test_all_linear_gives_small_layers_the_rank_they_can_have(tmp_path):
    with pytest.warns(UserWarning, match=r"get a lower one: 2 for head \(2 x 16\)"):
        model = get_peft_model(Head(), CondLoraConfig(target_modules="all-linear"))
    ranks = {group: a.shape[0] for group, (a, _) in model.base_model.maps().items()}
    assert ranks == {"body": 8, "head": 2}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Head(), tmp_path)
    assert loaded.peft_config["default"].rank_pattern == {"head": 2}


def test_all_linear_leaves_out_what_the_attention_of_torch_only_reads(tmp_path):
    block = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = get_peft_model(block, CondLoraConfig(target_modules="all-linear", form="consistent"))
    assert {n.rpartition(".")[2] for n in layers(model)} == {"linear1", "linear2"}
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(
        torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), tmp_path
    )


def test_named_targets_that_are_too_small_are_refused_with_two_ways_on():
    config = CondLoraConfig(target_modules=["head"], form="consistent")
    with pytest.raises(
        AdapterError, match=r"rank_pattern=\{'head': 2\}.*exclude_modules=\['head'\]"
    ):
        get_peft_model(Head(), config)


def test_the_experiment_for_pefts_method_comparison_adapts_a_llama():
    folder = ROOT / "examples/method_comparison/condlora/llama-3.2-3B-rank32"
    config = PeftConfig.from_pretrained(folder)
    assert isinstance(config, CondLoraConfig)
    llama = transformers.LlamaConfig(vocab_size=20, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = get_peft_model(transformers.LlamaForCausalLM(llama), config)
    # One pair each for q_proj (64 x 64) and v_proj (32 x 64), whatever the number of layers.
    assert model.get_nb_trainable_parameters()[0] == 32 * (64 + 64) + 32 * (32 + 64)
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
