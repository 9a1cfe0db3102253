"""`scripts/export_lora.py` on the folder of a run."""

import runpy
import sys

import pytest
from peft import PeftModel

from condlora.models.adapters import load_run
from condlora.runs.record import read_record, run_folder, write_record
from condlora.training.run import run
from tests.tasks import ROOT
from tests.tuner.test_export import assert_same, logits


def test_the_script_exports_a_finished_run_and_no_other(tiny_cells, tmp_path, monkeypatch):
    (cfg,) = tiny_cells("task=rte", "adapter=condlora")
    run(cfg)
    folder = run_folder(cfg)
    model, _ = load_run(folder)
    base = model.unload()
    script = runpy.run_path(str(ROOT / "scripts" / "export_lora.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["export_lora.py", str(folder), str(tmp_path / "lora")])
    script()
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
    assert_same(logits(loaded), logits(load_run(folder)[0]))
    write_record(folder, read_record(folder) | {"status": "running"})
    monkeypatch.setattr(sys, "argv", ["export_lora.py", str(folder), str(tmp_path / "other")])
    with pytest.raises(SystemExit) as stopped:
        script()
    assert stopped.value.code == 2
    assert not (tmp_path / "other").exists()
