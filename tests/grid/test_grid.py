"""The grid: its cells, their states, and what `make list` and a second `make reproduce-glue` conclude."""

import shutil
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

from condlora.commands.explain import explain
from condlora.errors import (
    ConfigError,
    DataError,
    DeviceError,
    IncompleteGrid,
    NetworkError,
    NoFinishedRuns,
)
from condlora.grid import cells as grid
from condlora.grid import listing, preflight, watch
from condlora.grid.composition import composing
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import run_folder, write_record
from condlora.training import run as finetune
from tests.tasks import FEW_ROWS

GRID = ("task=rte,stsb", "adapter=lora,condlora")


def states(cells):
    return {(c.task.name, c.adapter.name): grid.inspect(c).state for c in cells}


@pytest.fixture
def finished(finished_cells):
    return finished_cells(*GRID)


def test_states_after_a_deleted_folder_a_truncated_record_and_a_changed_value(finished, tiny_cells):
    """The right cells are to be run again, and no others."""
    assert set(states(finished).values()) == {"done"}
    shutil.rmtree(run_folder(finished[0]))
    path = run_folder(finished[1]) / "record.json"
    path.write_text(path.read_text()[:200])
    (run_folder(finished[2]) / "predictions_test.parquet").unlink()
    assert states(finished) == {
        ("rte", "lora"): "missing",
        ("rte", "condlora"): "damaged",
        ("stsb", "lora"): "damaged",
        ("stsb", "condlora"): "done",
    }
    # A value that only STS-B reads: RTE's cells would not be touched by it.
    changed = tiny_cells(*GRID, "protocol.regression_targets=raw")
    assert states(changed)["stsb", "condlora"] == "stale"


def test_entry_of_a_table_is_part_of_its_own_cells_only(tiny_cells):
    def hashes(*overrides):
        cells = tiny_cells(*GRID, "protocol=authors", *overrides)
        return {(c.task.name, c.adapter.name): recipe_hash(recipe(c)) for c in cells}

    before = hashes()
    after = hashes("protocol.tables.learning_rate.lora.rte=1e-4")
    assert {cell for cell in before if before[cell] != after[cell]} == {("rte", "lora")}


def test_failed_and_running_cells_are_told_apart(tiny_cells):
    (cfg,) = tiny_cells("task=rte", "protocol.learning_rate=1e30", "protocol.max_grad_norm=1e30")
    with pytest.raises(Exception, match="not finite|is nan|is inf"):
        finetune.run(cfg)
    cell = grid.inspect(cfg)
    assert cell.state == "failed"
    assert "lower protocol.learning_rate" in cell.reason
    write_record(run_folder(cfg), cell.record | {"status": "running"})
    assert grid.inspect(cfg).state == "running"


def test_table_shows_states_reasons_counts_and_time_left(finished):
    shutil.rmtree(run_folder(finished[0]))
    text = listing.table([grid.inspect(cfg) for cfg in finished])
    assert "3 done, 1 missing of 4" in text
    assert "time left: about" in text


def test_time_left_is_unknown_before_the_first_run(tiny_cells):
    cells = [grid.inspect(cfg) for cfg in tiny_cells(*GRID)]
    assert listing.seconds_left(cells) is None
    assert "time left: unknown" in listing.table(cells)


def test_time_left_uses_the_nearest_finished_runs():
    def cell(task, adapter, state, seconds=None):
        record = None if seconds is None else {"total_seconds": seconds}
        return grid.Cell("p", task, adapter, 0, Path(task, adapter), state, None, record)

    done = [cell("rte", "lora", "done", 10.0), cell("cola", "lora", "done", 30.0)]
    left = [cell("rte", "lora", "missing"), cell("rte", "x", "stale"), cell("sst2", "x", "failed")]
    assert listing.seconds_left(done + left) == 10.0 + 10.0 + 20.0


def test_adhoc_runs_of_an_older_recipe_are_stale(tiny_cells, tmp_path):
    for overrides in (["seed=0"], ["seed=1", "protocol.learning_rate=1e-3"]):
        (cfg,) = tiny_cells("task=rte", *overrides)
        record = finetune.run(cfg)
    write_record(run_folder(cfg), record | {"finished_at": "2999-01-01T00:00:00+00:00"})
    cells = {c.seed: c.state for c in listing.survey("adhoc", tmp_path / "runs")}
    assert cells == {0: "stale", 1: "done"}
    assert listing.newest_profile(tmp_path / "runs") == "adhoc"


def test_no_finished_runs(tmp_path):
    with pytest.raises(NoFinishedRuns, match="PROFILE=embedded"):
        listing.newest_profile(tmp_path)
    with pytest.raises(NoFinishedRuns, match=r"scripts/train.py first"):
        listing.survey("adhoc", tmp_path)


def test_unfinished_grid_fails_the_command(finished):
    overrides = (*GRID, "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded")
    overrides += ("protocol.max_steps=6", "protocol.evaluate_every=3", "runtime.threads=1")
    overrides += (f"runs={run_folder(finished[0]).parents[3]}",)
    watch.require_done(list(overrides))
    shutil.rmtree(run_folder(finished[3]))
    with pytest.raises(IncompleteGrid, match=r"1 of 4 runs are not done \(stsb condlora seed 0\)"):
        watch.require_done(list(overrides))


@pytest.mark.parametrize(
    ("cuda", "hub", "missing"),
    [
        (False, False, "a CUDA GPU and the Hugging Face hub"),
        (True, False, "the Hugging Face hub"),
        (False, True, "a CUDA GPU,"),
    ],
)
def test_paper_profile_says_what_is_missing_and_names_the_embedded_one(
    monkeypatch, cuda, hub, missing
):
    monkeypatch.setattr(preflight, "has_cuda", lambda: cuda)
    monkeypatch.setattr(preflight, "_is_available", lambda *_: hub)
    with pytest.raises((DeviceError, NetworkError)) as caught:
        preflight.preflight(["profile=paper"])
    assert missing in str(caught.value)
    assert "use PROFILE=embedded" in str(caught.value)


def test_embedded_profile_needs_neither_gpu_nor_hub(monkeypatch):
    monkeypatch.setattr(preflight, "has_cuda", lambda: False)
    monkeypatch.setattr(preflight, "_is_available", lambda *_: pytest.fail("asked the hub"))
    preflight.preflight(["profile=embedded"])


def test_profile_on_real_text_says_how_to_name_the_folder(monkeypatch):
    monkeypatch.delenv("GLUE_DATA", raising=False)
    with pytest.raises(DataError, match="or set GLUE_DATA="):
        preflight.preflight(["profile=minilm_glue"])


def test_missing_table_entry_is_an_error_before_anything_runs(monkeypatch):
    monkeypatch.setattr(preflight, "_is_available", lambda *_: True)
    with pytest.raises(
        ConfigError,
        match=r"no learning_rate for adapter 'condlora' on task 'mnli': set protocol.learning_rate=",
    ):
        preflight.preflight(
            ["task=mnli", "protocol=authors", "~protocol.tables.learning_rate.condlora.mnli"]
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=wnli"], "There is no task 'wnli': choose one of cola, custom, mnli"),
        (["adapter=none_such"], "There is no adapter 'none_such'"),
        (["profile=papr"], "There is no profile 'papr': choose one of adhoc, embedded"),
        (["protocol.rate=1"], "Unknown setting"),
        (["backbone=minilm", "data=directory"], "data.root is not set: add data.root="),
    ],
)
def test_wrong_words_on_the_command_line(monkeypatch, overrides, message):
    monkeypatch.delenv("GLUE_DATA", raising=False)
    with pytest.raises(Exception) as caught:
        preflight.preflight(
            ["backbone=minilm", "data=synthetic", *overrides][2 * ("data=directory" in overrides) :]
        )
    assert message in explain(caught.value)


def test_cells_are_what_hydra_composes_for_each_seed():
    words = ("profile=kinship", "task=stsb", "adapter=vera,lora", "protocol.max_steps=3")
    cells = grid.compose_cells((*words, "seed=4,7"))
    with composing():
        expected = [
            compose("train", [words[0], words[1], f"adapter={adapter}", words[3], f"seed={seed}"])
            for adapter in ("vera", "lora")
            for seed in (4, 7)
        ]
    resolved = [OmegaConf.to_container(cfg, resolve=True) for cfg in cells]
    assert resolved == [OmegaConf.to_container(cfg, resolve=True) for cfg in expected]
    assert [cfg.seed for cfg in cells] == [4, 7, 4, 7]
    cells[0].protocol.max_steps = 9  # each is its own
    assert cells[1].protocol.max_steps == 3
    assert [cfg.seed for cfg in grid.compose_cells((*words, "seed=4", "++seed=5"))] == [5, 5]
