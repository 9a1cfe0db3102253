"""What several test modules need: the checkout, the shipped tasks, and the mark for slow parameters."""

import copy
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from condlora.glue.tasks import Task, task_from_config
from condlora.grid.cells import compose_cells

ROOT = Path(__file__).resolve().parents[1]
GLUE_TASKS = sorted(
    path.stem for path in (ROOT / "configs" / "task").glob("*.yaml") if path.stem != "custom"
)


def slow(*values: object) -> list:
    """These values of a parametrised test run in `make test-all` alone."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


FEW_ROWS = ("+data.train_rows=400", "+data.test_rows=100")  # of synthetic data


def compose_tiny(*overrides: str) -> list[DictConfig]:
    """Configs of the shipped train.yaml with a toy backbone, few rows and a few steps; name `runs=`."""
    shrunk = (
        "backbone=tiny",
        "data=synthetic",
        "protocol=embedded",
        "protocol.max_steps=6",
        "protocol.evaluate_every=3",
        "runtime.threads=1",
    )
    chosen = {o.split("=")[0] for o in overrides}
    if "data" not in chosen:
        shrunk += FEW_ROWS
    words = (*(o for o in shrunk if o.split("=")[0] not in chosen), *overrides)
    return copy.deepcopy(list(compose_cells(words)))


def load_task(name: str) -> Task:
    return task_from_config(OmegaConf.load(ROOT / "configs" / "task" / f"{name}.yaml"))
