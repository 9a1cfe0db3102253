"""Finished runs without their training."""

import pytest

from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import REQUIRED_FILES, SCHEMA_VERSION, run_folder, write_record


@pytest.fixture
def finished(tiny_cells):
    """A function (*overrides) -> the config of a run whose folder is as if it had been trained."""

    def finish(*overrides):
        (cfg,) = tiny_cells("task=rte", "adapter=lora", *overrides)
        folder = run_folder(cfg)
        (folder / "adapter").mkdir(parents=True)
        for name in REQUIRED_FILES:
            (folder / name).write_text(name)
        record = {"schema_version": SCHEMA_VERSION, "status": "done", "reason": None}
        record |= {"profile": "adhoc", "task": "rte", "adapter": "lora", "seed": cfg.seed}
        record |= {"recipe": recipe(cfg), "recipe_hash": recipe_hash(recipe(cfg))}
        record |= {"finished_at": "2026-01-01T00:00:00+00:00", "total_seconds": 1.0}
        write_record(folder, record)
        return cfg

    return finish
