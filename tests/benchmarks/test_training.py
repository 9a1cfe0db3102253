"""The parts of benchmarks/training.py on a toy model; the times themselves are not tested."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import rates, training, workload
from condlora.errors import ConfigError
from condlora.models.backbones import load_backbone
from condlora.training.evaluation import collator
from condlora.training.setup import initialise, streams
from tests.tasks import ROOT

TINY = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture
def wanted():
    """The shipped settings, for a toy model."""
    cfg = OmegaConf.load(ROOT / "configs/benchmark.yaml").training
    changes = {
        "shapes": {"tiny": TINY}, "models": ["tiny"], "tasks": ["stsb"], "batch": 4, "batch_at_512": 2, "max_length": 32, "turns": 1,
        "precision": "no", "matrix": {"cpu": 16},
    }  # fmt: skip
    return OmegaConf.merge(cfg, changes)


@pytest.mark.parametrize("task", ["cola", "mrpc", "rte", "sst2", "stsb"])
def test_sampled_lengths_have_the_quantiles_they_were_drawn_from(wanted, task):
    wanted.max_length = 512
    lengths = workload.sample(wanted, task, 10_000)
    found = np.quantile(lengths, np.array(wanted.levels) / 100)
    np.testing.assert_allclose(found, wanted.quantiles[task], atol=1)
    few = workload.sample(wanted, task, 64)
    assert abs(few.mean() - lengths.mean()) < 1


def test_lengths_are_those_of_the_text_where_it_is_given(wanted, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "SST-2").mkdir()
    text = "sentence\tlabel\n" + "".join(f"{'word ' * n}\t1\n" for n in (3, 7, 7, 11))
    for name in ("train", "dev"):
        (tmp_path / f"SST-2/{name}.tsv").write_text(text)
    wanted.glue = wanted.tokenizer = str(tmp_path)
    assert workload.sample(wanted, "sst2", 5).tolist() == [4, 7, 7, 7, 10]
    wanted.tokenizer = None
    with pytest.raises(ConfigError, match="has no tokenizer.json: set it"):
        workload.sample(wanted, "sst2", 5)


def test_operations_of_linear_layers_are_those_that_torch_counts(wanted):
    cfg = workload.cell(wanted, "tiny", "mrpc", "lora", "longest")
    backbone = load_backbone(cfg.backbone, num_labels=2)
    backbone.model.set_attn_implementation("eager")  # whose products are bmm and so told apart
    data = workload.data_of(cfg, backbone, np.array([9, 9, 9]))
    model = initialise(cfg, backbone, streams(0, "mrpc"), data).train()
    batch = collator(cfg, data)(data.train, range(3))
    model = model.to(batch["input_ids"].device)
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    counted = counter.get_flop_counts()["Global"]
    products = {torch.ops.aten.mm, torch.ops.aten.addmm}
    expected = sum(value for name, value in counted.items() if name in products)
    assert rates.linear_flops(model, batch) == expected > 0


@pytest.mark.slow
def test_every_variant_is_measured_beside_both_trainers(wanted, monkeypatch):
    compiled, backend = [], functools.partial(torch.compile, backend="eager")

    def compile_quickly(model, **settings):
        compiled.append(settings)
        model.forward = backend(model.forward, **settings)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    wanted.compiled = True
    table = training.training(OmegaConf.create({"training": wanted}))
    found = set(zip(table["method"], table["variant"], strict=True))
    assert found == {
        *(("lora", name) for name in workload.TRAINERS),
        *(
            (method, name)
            for method in wanted.methods
            for name in (*workload.OURS, "compiled", "fleet_4")
        ),
    }
    assert compiled == [{"dynamic": True}] * len(wanted.methods)
    numbers = table.drop(columns=["model", "task", "method", "variant", "precision"])
    assert (numbers > 0).all(axis=None)
    assert (table.set_index("variant").loc[list(workload.LONG), "batch"] == 2).all()


@pytest.mark.slow
def test_growth_is_over_fleets_of_examples_of_one_length(wanted):
    wanted.methods = ["condlora"]
    cfg = OmegaConf.load(ROOT / "configs/benchmark.yaml")
    own = OmegaConf.merge(
        cfg.growth, {"tasks": ["tokens_8", "tokens_24"], "fleets": [2, 3], "batch": 2}
    )
    table = training.growth(OmegaConf.create({"training": wanted, "growth": own}))
    assert set(table["task"]) == {"tokens_8", "tokens_24"}
    tokens = table["tokens_per_second"] / table["examples_per_second"]
    assert np.allclose(tokens, table["task"].str.removeprefix("tokens_").astype(int), rtol=1e-3)
    fleets = {name for name in table["variant"] if name.startswith("fleet_")}
    assert fleets == {"fleet_2", "fleet_3"}


def test_profiles_hours_are_their_examples_over_the_rate():
    table = pd.DataFrame(
        [
            {"model": "minilm", "task": task, "method": method, "variant": variant,
             "examples_per_second": rate * {"longest": 1, "packed": 2, "fleet_8": 4}.get(variant, 0.1)}
            for method in ("lora", "condlora")
            for variant in ("trainer_512", "max_length", "longest", "packed", "fleet_8")
            for task, rate in (("mrpc", 10.0), ("sst2", 40.0))
        ]
    )  # fmt: skip
    hours = rates.projected_hours(table, ["minilm_glue", "paper"]).set_index("profile")
    assert "paper" not in hours.index  # RoBERTa was not measured
    # Steps of configs/protocol/minilm_glue.yaml, by 16, two methods and five seeds; STS-B at the mean rate of 16.
    seconds = 16 * (320 / 10 + 200 / 40 + 100 / 16) * 2 * 5
    assert hours.loc["minilm_glue", "runs"] == 30
    assert math.isclose(hours.loc["minilm_glue", "hours_longest"], seconds / 3600, abs_tol=0.01)
    assert math.isclose(hours.loc["minilm_glue", "hours_packed"], seconds / 7200, abs_tol=0.01)
    assert math.isclose(hours.loc["minilm_glue", "hours_fleet_8"], seconds / 14400, abs_tol=0.01)
    assert len(hours.columns) == 4
    measured = table[(table["task"] == "mrpc") & (table["method"] == "lora")]
    (fewer,) = rates.projected_hours(measured, ["minilm_glue"]).to_dict("records")
    seconds = 16 * (320 + 200 + 100) / 10 * 5
    assert fewer["runs"] == 15
    assert math.isclose(fewer["hours_longest"], seconds / 3600, abs_tol=0.01)
