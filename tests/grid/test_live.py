"""Watching a grid: what is shown of running, failed and finished runs, read from their folders alone."""

import io
import json
import os
import sys
from dataclasses import replace
from datetime import datetime

import pytest
from rich.console import Console

from condlora.commands import list as list_command
from condlora.grid import live
from condlora.grid.cells import Planned, state_of
from condlora.runs.lease import Claim

STARTED = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def write(tmp_path):
    """Writes a run folder with a record and, where rows are given, a curve that was last written 100 s after its start."""

    def written(seed, status, rows=None, **changes):
        folder = tmp_path / "runs/p/rte/lora" / f"seed-{seed}"
        folder.mkdir(parents=True)
        record = {
            "schema_version": 2, "status": status, "reason": None, "profile": "p", "task": "rte", "adapter": "lora",
            "seed": seed, "recipe_hash": "h", "headline": "accuracy", "started_at": STARTED, "effective_batch": 32,
            "recipe": {"protocol": {"max_steps": None, "epochs": 2}}, "data": {"counts": {"train": 330}},
        } | changes  # fmt: skip
        (folder / "record.json").write_text(json.dumps(record))
        if rows:
            curve = folder / "curve.csv"
            curve.write_text("\n".join(["step,epoch,train_loss,accuracy", *rows, ""]))
            os.utime(curve, (0, datetime.fromisoformat(STARTED).timestamp() + 100))
        return Planned("p", "rte", "lora", seed, folder, "h")

    return written


@pytest.fixture
def cells(write, tmp_path):
    """Done in 10 minutes, running with an evaluation, killed before one, failed, and not begun."""
    return [
        write(0, "done", total_seconds=600.0, files={}),
        write(1, "running", ["5,0,0.9,", "11,1,0.61234,0.75"]),
        write(2, "running"),
        write(3, "failed", reason="the loss is not finite [red]"),
        Planned("p", "rte", "lora", 4, tmp_path / "runs/p/rte/lora/seed-4", "h"),
    ]


@pytest.fixture
def done_as_it_says(monkeypatch):
    """The records of these tests name no files, which a finished run must."""
    monkeypatch.setattr("condlora.grid.cells.read_cell_record", lambda folder, verify: json.loads((folder / "record.json").read_text()))  # fmt: skip


def output(cells, **settings):
    console = Console(record=True, file=io.StringIO(), width=150, **settings)
    live.watch(cells, console, wait=lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    return console.export_text()


def test_text_names_counts_running_failed_and_time_left(cells, done_as_it_says):
    with Claim(cells[1].folder):
        lines = output(cells, force_terminal=False).splitlines()
    assert lines[0] == "1 done, 2 running, 1 failed, 1 missing of 5"
    assert lines[1].startswith(
        "rte lora seed 1: step 11 of 22 loss 0.612 accuracy 0.750 0.11 steps/s"
    )
    assert f"process {os.getpid()}" in lines[1]
    assert lines[2].startswith("rte lora seed 2: step 0 of 22 no process")
    assert "rte lora seed 3: failed: the loss is not finite [red]" in lines
    # Half of one run, and three whole ones, at ten minutes each.
    assert lines[-1] == "time left: about 35 min"


def test_time_is_shared_by_the_runs_that_launchers_do_now(cells, done_as_it_says):
    with Claim(cells[1].folder), Claim(cells[2].folder):
        assert live.look(cells).time_left == "time left: about 18 min with 2 runs at a time"


def test_speed_of_a_resumed_run_counts_the_steps_since_then(write, done_as_it_says):
    cell = state_of(write(1, "running", ["11,1,0.6,0.75"], resumed_at_steps=[4, 6]))
    assert live.progress_of(cell).per_second == pytest.approx(5 / 100)


def test_a_terminal_shows_the_same_until_it_is_left(cells, done_as_it_says):
    with pytest.raises(KeyboardInterrupt):
        output(cells, force_terminal=True)
    console = Console(record=True, file=io.StringIO(), width=150)
    console.print(live.render(live.look(cells)))
    shown = console.export_text()
    for part in ("1 done, 2 running", "rte lora seed 1", "step 11 of 22", "accuracy 0.750", "the loss is not finite [red]", "about 35 min"):  # fmt: skip
        assert part in shown


def test_it_ends_when_the_grid_is_over_and_reads_no_finished_run_again(
    cells, done_as_it_says, monkeypatch
):
    read = []
    state_of = live.state_of
    monkeypatch.setattr(live, "state_of", lambda cell: read.append(cell.seed) or state_of(cell))
    (first, failed) = cells[0], cells[3]
    view = live.look([first, failed])
    assert view.over and read == [0, 3]
    assert not replace(view, cells=live.look(cells).cells).over
    read.clear()
    live.look([first, failed], view)
    assert read == [3]


def test_the_command_takes_watch_as_an_option_of_its_own(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(live, "watch", lambda cells, console: asked.append(len(cells)))
    monkeypatch.setattr(sys, "argv", ["list.py", "profile=embedded", "--watch"])
    list_command.main()
    assert asked == [32]
