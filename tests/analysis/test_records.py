"""Committed records in place of run folders: the same scores, curves and predictions, checked when read, runs first."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from analysis.present import report as present_report
from analysis.study import selection
from analysis.study.costs import costs
from analysis.study.examples import load_examples
from analysis.study.grids import renew_records
from analysis.study.plateau import reference_gains
from analysis.study.records import missing_adapters, read_records, with_records, write_records
from analysis.study.reference import COMMITTED
from analysis.study.run_files import RecordedCell, curve, predictions_on_test
from analysis.study.scores import scores
from analysis.study.stacks import load_stacks
from condlora.errors import NoFinishedRuns, RunFolderError
from condlora.grid.cells import planned, state_of
from condlora.runs.record import failure, write_record
from tests.analysis.test_selection import CONFIG

WORDS = ("profile.name=embedded", "task=rte,stsb", "adapter=lora,condlora")


@pytest.fixture
def grid_cells(finished_cells, monkeypatch):
    """The states on disk of a grid of finished runs, which stands for the profile embedded."""
    plan = tuple(planned(cfg) for cfg in finished_cells(*WORDS))
    monkeypatch.setattr("condlora.grid.listing.plan_cells", lambda *args, **kw: plan)
    return lambda: [state_of(cell) for cell in plan]


@pytest.fixture
def settings_of(tmp_path):
    cfg = OmegaConf.load(CONFIG)
    cfg.profile, cfg.runs = "embedded", str(tmp_path / "runs")
    cfg.results, cfg.records = str(tmp_path / "results"), str(tmp_path / "reference")
    return cfg


def remove(cells):
    for cell in cells:
        shutil.rmtree(cell.folder)


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def found_in(cells):
    """All numbers that tables, figures and tests of scores rest on."""
    examples = load_examples(cells)
    arrays = {task: [of.references, *of.predictions.values()] for task, of in examples.items()}
    curves = [curve(cell) for cell in cells]
    return scores(cells), costs(cells), reference_gains(cells), curves, arrays


def test_what_is_read_from_records_is_what_the_runs_hold(grid_cells, tmp_path):
    cells = selection.finished(grid_cells())
    assert len(cells) == 4
    own_scores, own_costs, gains, curves, arrays = found_in(cells)
    write_records(cells, tmp_path / "reference/embedded/records")
    remove(cells)
    joined, notes = with_records(grid_cells(), tmp_path / "reference")
    recorded = selection.finished(joined)
    again = found_in(recorded)
    pd.testing.assert_frame_equal(again[0], own_scores, check_exact=True)
    pd.testing.assert_frame_equal(again[1], own_costs, check_exact=True)
    assert again[2] == gains
    for ours, theirs in zip(again[3], curves, strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for task, values in arrays.items():
        for ours, theirs in zip(again[4][task], values, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    assert [cell.record for cell in recorded] == [cell.record for cell in cells]
    assert notes == [
        f"Read from the committed records in {tmp_path}/reference/embedded/records, not from run folders: 4 of 4 runs."
    ]


@pytest.mark.slow  # two whole reports
def test_a_report_without_runs_has_the_tables_and_figures_of_scores_to_the_byte(
    grid_cells, settings_of, tmp_path, monkeypatch, capsys
):
    made = selection.open_study(settings_of)
    assert capsys.readouterr().err == ""
    present_report.build(made)
    with_runs = bytes_of(made.folder)
    renew_records("embedded", Path(settings_of.runs), Path(settings_of.records))
    remove(grid_cells())
    settings_of.results = str(tmp_path / "again")
    with pytest.raises(NoFinishedRuns, match="or, to read the committed records, leave out runs="):
        selection.open_study(settings_of)  # a folder that was named, and may be mistyped
    monkeypatch.setattr(selection, "DEFAULT_RUNS", settings_of.runs)
    study = selection.open_study(settings_of)
    assert "note: Read from the committed records" in capsys.readouterr().err
    page = present_report.build(study).read_text(encoding="utf-8")
    without = bytes_of(study.folder)
    of_scores = {path for path in without if path.suffix in (".csv", ".md", ".tex", ".png", ".pdf")}
    for path in of_scores:
        # The claims about matrices were not run there.
        if path.stem not in ("claims", "claims_parts", "ledger", "report"):
            assert without[path] == with_runs.get(path), path
    assert {"table2", "table2_tests", "table4", "hyperparameters"} <= {p.stem for p in of_scores}
    assert Path("figures/table2_differences.png") in of_scores
    assert page.count(missing_adapters(study.done).replace("'", "&#39;")) == 1
    claims = {c["key"]: c for c in json.loads(with_runs[Path("claims.json")])}
    for claim in json.loads(without[Path("claims.json")]):
        if claim["place"] in ("Table 2", "Table 4"):
            assert claim == claims[claim["key"]]


def test_records_can_be_written_from_records_and_grow_by_new_runs(grid_cells, settings_of, tmp_path):  # fmt: skip
    places = Path(settings_of.runs), Path(settings_of.records)
    cells = grid_cells()
    (line,) = renew_records("embedded", *places)
    assert "4 finished runs" in line
    first = bytes_of(tmp_path / "reference")
    remove(cells[:3])
    renew_records("embedded", *places)
    assert bytes_of(tmp_path / "reference") == first
    remove(cells[3:])
    renew_records("embedded", *places)
    assert bytes_of(tmp_path / "reference") == first
    with pytest.raises(NoFinishedRuns, match="name their folder with runs="):
        renew_records("embedded", places[0], tmp_path / "nowhere")


def test_run_folders_count_before_records_and_alone(grid_cells, tmp_path):
    cells, root = grid_cells(), tmp_path / "reference"
    write_records(cells, root / "embedded/records")
    assert with_records(cells, root) == (cells, [])
    shutil.rmtree(cells[0].folder)
    mine = grid_cells()
    assert with_records(mine, root) == (mine, [])  # a report of one's own runs is of these alone
    filled, (note,) = with_records(mine, root, fill=True)
    assert [type(cell) is RecordedCell for cell in filled] == [True] + [False] * 3
    assert note.endswith("not from run folders: 1 of 4 runs.")
    record = cells[1].record | {"test": {"accuracy": 0.25}}
    changed = [cells[0], replace(cells[1], record=record), *cells[2:]]
    joined, (note,) = with_records(changed, root)
    assert joined == changed
    assert "1 differ from them in recipe or scores (RTE CondLoRA seed 0): the run folders" in note


def test_analyses_of_matrices_say_which_adapters_they_need(grid_cells, tmp_path):
    cells = grid_cells()
    write_records(cells, tmp_path / "embedded/records")
    remove(cells)
    joined, _ = with_records(grid_cells(), tmp_path)
    said = (
        "need the adapters of 4 runs (LoRA, CondLoRA; RTE, STS-B; seed 0), which the committed records do not hold: "
        "make reproduce-glue PROFILE=embedded trains them."
    )
    with pytest.raises(NoFinishedRuns) as raised:
        load_stacks(selection.finished(joined))
    assert str(raised.value).endswith(said)
    assert missing_adapters(cells) == ""


def test_a_record_of_another_recipe_is_stale_and_a_diverged_run_is_kept(grid_cells, tmp_path):
    cells = grid_cells()
    shutil.rmtree(cells[0].folder / "adapter")
    fields = failure(RuntimeError("no")) | {"error": "DivergedError"}
    write_record(cells[0].folder, cells[0].record | fields)
    write_records(grid_cells(), tmp_path / "embedded/records")
    remove(cells)
    missing = grid_cells()
    missing[1] = replace(missing[1], recipe_hash="another")
    joined, _ = with_records(missing, tmp_path)
    assert [cell.state for cell in joined] == ["failed", "stale"] + ["done"] * 2
    assert joined[0].record["error"] == "DivergedError"


def test_records_that_were_changed_are_refused(grid_cells, tmp_path):
    cells, folder = grid_cells(), tmp_path / "embedded/records"
    write_records(cells, folder)
    remove(cells)
    joined, _ = with_records(grid_cells(), tmp_path)
    path = folder / "runs.parquet"
    good, rows = path.read_bytes(), pq.read_table(path).to_pylist()

    def refused_with(changes, message):
        pq.write_table(pa.Table.from_pylist([rows[0] | changes, *rows[1:]]), path)
        with pytest.raises(RunFolderError, match=message):
            read_records(folder)

    record = json.loads(rows[0]["record"])
    better = json.dumps(record | {"test": {"accuracy": 1.0}})
    refused_with({"record": better}, "Row 1 of .* was changed after it was written: run git")
    refused_with({"curve": rows[1]["curve"]}, "Row 1 of .* has another curve than its record")
    path.write_bytes(good[:-9])
    with pytest.raises(RunFolderError, match="missing or damaged"):
        read_records(folder)
    predictions = folder / "predictions/rte.parquet"
    content = bytearray(predictions.read_bytes())
    content[len(content) // 4] ^= 255
    predictions.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"rte.parquet is damaged .*: run git checkout"):
        for cell in joined:
            if cell.task == "rte":
                predictions_on_test(cell)


def test_the_committed_records_hold_the_scores_of_the_committed_tables():
    folders = [path for path in COMMITTED.glob("*/records") if (path.parent / "tables").is_dir()]
    assert folders
    for folder in folders:
        found = {
            key: 100 * record["test"][record["headline"]]
            for key, (record, _) in read_records(folder).items()
            if record["status"] == "done"
        }
        theirs = pd.read_csv(folder.parent / "tables/table2.csv")
        theirs = theirs.set_index(["task", "adapter", "seed"]).score_points
        assert found == pytest.approx(theirs.to_dict(), rel=1e-8)
