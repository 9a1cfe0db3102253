"""What was changed or damaged after it was written is refused by name, and never becomes part of a number."""

import json
import shutil

import pytest

from analysis.study.selection import finished
from condlora.errors import RunFolderError
from condlora.grid import cells as grid
from condlora.grid import listing
from condlora.runs.record import REQUIRED_FILES, read_record, run_folder
from condlora.training import run as finetune


@pytest.fixture
def done(finished_cells):
    (cfg,) = finished_cells("task=rte")
    return cfg


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove])
def test_every_file_of_a_run_is_watched(done, tmp_path, damage):
    folder, whole = run_folder(done), tmp_path / "whole"
    shutil.copytree(folder, whole)
    for name in (*REQUIRED_FILES, "record.json"):
        damage(folder / name)
        cell = grid.state_of(grid.planned(done), verify=True)
        assert cell.state == "damaged", name
        assert name in cell.reason and "run the same training command again" in cell.reason
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    assert grid.inspect(done).state == "done"


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["test"].update(accuracy=0.999),
        lambda record: record.update(seed=7),
        lambda record: record["environment"].update(commit="0" * 40),
        lambda record: record["files"].popitem(),
        lambda record: record.pop("sha256"),
    ],
    ids=["score", "seed", "commit", "list of files", "checksum"],
)
def test_record_edited_by_hand_is_refused(done, edit):
    path = run_folder(done) / "record.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record, indent=1))
    with pytest.raises(RunFolderError, match=r"record.json was changed after it was written"):
        read_record(run_folder(done))


def test_damaged_run_reaches_no_table_and_is_healed(done):
    before = read_record(run_folder(done))
    flip(run_folder(done) / "predictions_test.parquet")
    cells = listing.survey("adhoc", run_folder(done).parents[3])
    assert [c.state for c in cells] == ["damaged"]
    assert finished(cells) == []
    assert finetune.run(done)["test"] == before["test"]
    assert grid.inspect(done).state == "done"
