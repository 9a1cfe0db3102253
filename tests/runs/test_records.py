"""What a run's recipe holds: all that can change its result, and not where its data lie."""

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from condlora.errors import ConfigError, UndefinedScore
from condlora.glue.sources import load_text
from condlora.grid import cells as grid
from condlora.runs.recipe import RECIPE_GROUPS, recipe, recipe_hash
from condlora.runs.record import read_record, run_folder
from condlora.training import run as finetune
from condlora.training.data import prepare
from tests.tasks import load_task


@pytest.fixture
def download(tmp_path):
    """A GLUE download folder with a small RTE."""
    task = load_task("rte")
    text = load_text(OmegaConf.create({"source": "synthetic", "seed": 0}), task)
    folder = tmp_path / "here" / "RTE"
    folder.mkdir(parents=True)
    for split, name in (("train", "train.tsv"), ("validation", "dev.tsv")):
        rows = [
            f"{row['idx']}\t{row['sentence1']}\t{row['sentence2']}\t{task.labels[row['label']]}"
            for row in text[split].select(range(100))
        ]
        text_of_file = "\n".join(["index\tsentence1\tsentence2\tlabel", *rows, ""])
        (folder / name).write_text(text_of_file)
    return folder.parent


def test_moved_data_folder_makes_no_run_stale_and_stands_in_no_record(
    tiny_cells, download, tmp_path, monkeypatch
):
    (before,) = tiny_cells("task=rte", "data=directory", f"data.root={download}")
    record = finetune.run(before)
    moved = download.rename(tmp_path / "there")
    monkeypatch.setenv("GLUE_DATA", str(moved))
    (after,) = tiny_cells("task=rte", "data=directory")
    assert after.data.root == str(moved)
    assert grid.inspect(after).state == "done"
    assert finetune.run(after) == record
    assert str(tmp_path) not in (run_folder(before) / "record.json").read_text()


def test_recipe_needs_no_data_folder(tiny_cells, monkeypatch):
    monkeypatch.delenv("GLUE_DATA", raising=False)
    (cfg,) = tiny_cells("task=rte", "data=directory")
    assert recipe(cfg)["data"] == {"source": "directory"}


def test_moved_backbone_folder_changes_no_recipe(tiny_cells):
    def digest(path):
        words = ("backbone=folder", "backbone.name=mpnet", f"backbone.path={path}")
        (cfg,) = tiny_cells("task=rte", "adapter=lora", *words)
        return recipe_hash(recipe(cfg))

    assert digest("/here") == digest("/there")


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "a/b", "..", ".hidden", ""])
def test_names_lead_out_of_no_folder(tiny_cells, name):
    (cfg,) = tiny_cells("task=rte", f"adapter.name='{name}'")
    with pytest.raises(ConfigError, match=r"adapter.name=.* is no folder's name"):
        run_folder(cfg)


def test_recipe_holds_everything_else(tiny_cells):
    (cfg,) = tiny_cells("task=rte")
    whole = OmegaConf.to_container(cfg, resolve=True)
    whole["protocol"].pop("tables")
    assert recipe(cfg) == {group: whole[group] for group in RECIPE_GROUPS}


def test_validation_limit_is_recorded_and_keeps_the_first_of_the_held_out_tenth(tiny_cells):
    (whole,), (limited,) = (
        tiny_cells("task=rte", *words) for words in ((), ("+protocol.validation_limit=30",))
    )
    data, fewer = prepare(whole), prepare(limited)
    assert fewer.description["counts"]["validation"] == 30
    assert fewer.validation.lengths == data.validation.lengths[:30]
    kept = fewer.validation.tokens["input_ids"]
    assert torch.equal(kept, data.validation.tokens["input_ids"][: len(kept)])
    for split in ("train", "test"):
        own, other = (getattr(d, split).tokens["input_ids"] for d in (fewer, data))
        assert torch.equal(own, other)
    assert recipe(limited)["protocol"]["validation_limit"] == 30


def test_scores_on_further_test_rows_are_recorded_apart(tiny_cells):
    (cfg,) = tiny_cells("task=rte", "+protocol.test_rows_from_train=40")
    record = finetune.run(cfg)
    parts, test = record["data"]["test_parts"], record["test"]
    assert parts["held_out"] == 40
    assert record["data"]["counts"]["test"] == sum(parts.values())
    of_parts = {part: test[f"accuracy_{part}"] * rows for part, rows in parts.items()}
    assert sum(of_parts.values()) == pytest.approx(test["accuracy"] * sum(parts.values()))
    table = pd.read_parquet(run_folder(cfg) / "predictions_test.parquet")
    assert table["part"].value_counts().to_dict() == parts


@pytest.mark.parametrize(
    ("setting", "status"), [((), "failed"), (("+protocol.undefined_score=0",), "done")]
)
def test_a_run_that_predicts_one_class_fails_or_counts_as_the_protocol_says(
    tiny_cells, setting, status
):
    """CoLA's Matthews correlation has no value for it."""
    (cfg,) = tiny_cells("task=cola", "protocol.learning_rate=0", *setting)
    outcome = finetune.run_together([cfg])[0]
    record = read_record(run_folder(cfg))
    assert record["status"] == status
    if status == "failed":
        assert isinstance(outcome, UndefinedScore)
    else:
        assert record["test"]["matthews_correlation"] == 0
        assert record["test"]["accuracy"] > 0
