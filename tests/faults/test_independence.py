"""A run's bits are its recipe's and seed's alone: not its place in a grid, its companions, workers or display."""

import subprocess
import sys

import pytest

from condlora.runs.record import run_folder
from condlora.training import run as finetune
from tests.faults.harness import in_child, left_behind
from tests.tasks import FEW_ROWS, ROOT

GRID = ("task=rte,stsb", "adapter=lora,condlora", "protocol.max_steps=4", "protocol.evaluate_every=2")  # fmt: skip


@pytest.fixture
def cells_in(tiny_cells, tmp_path):
    """A function (name, *overrides) -> the grid's cells, kept under that name."""
    return lambda name, *more: tiny_cells(*GRID, *more, f"runs={tmp_path}/{name}")


@pytest.fixture
def alone(cells_in):
    """What each cell leaves when it is the only one that its process does."""
    cells = cells_in("alone")
    assert [in_child(lambda cfg=cfg: finetune.run(cfg)) for cfg in cells] == [0] * len(cells)
    return [left_behind(run_folder(cfg)) for cfg in cells]


@pytest.mark.slow
def test_neither_order_nor_companions_matter(cells_in, alone):
    for name, step in (("forwards", 1), ("backwards", -1)):
        cells = cells_in(name)
        for cfg in cells[::step]:
            finetune.run(cfg)
        assert [left_behind(run_folder(cfg)) for cfg in cells] == alone


@pytest.mark.slow
def test_neither_workers_nor_progress_bars_matter(cells_in, alone, tmp_path):
    words = [
        *GRID, "backbone=tiny", "data=synthetic", *FEW_ROWS, "protocol=embedded", "runtime.threads=1", f"runs={tmp_path}/workers",
        "runtime.progress=bars", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *words]
    subprocess.run(command, check=True, capture_output=True)
    cells = cells_in("workers", "runtime.progress=bars")
    assert [as_if_plain(left_behind(run_folder(cfg))) for cfg in cells] == alone


def as_if_plain(left):
    left["record"]["runtime"]["progress"] = "auto"
    return left
