"""What a run's recipe holds: all that can change its result, and not where its data lie."""

import pytest
import torch
from omegaconf import OmegaConf

from condlora.errors import ConfigError
from condlora.glue.sources import load_text
from condlora.grid import cells as grid
from condlora.runs.recipe import RECIPE_GROUPS, recipe, recipe_hash
from condlora.runs.record import run_folder
from condlora.training import run as finetune
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
    data, fewer = finetune.prepare(whole), finetune.prepare(limited)
    assert fewer.description["counts"]["validation"] == 30
    assert fewer.validation.lengths == data.validation.lengths[:30]
    kept = fewer.validation.tokens["input_ids"]
    assert torch.equal(kept, data.validation.tokens["input_ids"][: len(kept)])
    for split in ("train", "test"):
        own, other = (getattr(d, split).tokens["input_ids"] for d in (fewer, data))
        assert torch.equal(own, other)
    assert recipe(limited)["protocol"]["validation_limit"] == 30
