"""scripts/gpu_check.py on a machine without a GPU: its timed parts at toy size, and what a part's end does to the others."""

import sys

import pandas as pd
import pytest
from omegaconf import OmegaConf

from benchmarks import gpu_check, gpu_parts
from condlora.errors import ConfigError, DeviceError
from tests.tasks import ROOT


@pytest.fixture
def cfg(tmp_path):
    cfg = OmegaConf.load(ROOT / "configs/gpu_check.yaml")
    return OmegaConf.merge(cfg, {"device": "cpu", "size": "toy", "results": str(tmp_path)})


def wanted(cfg, **changes):
    return OmegaConf.merge(OmegaConf.create(gpu_check.part_settings(cfg)), changes)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["roberta-base", "mpnet"])
def test_each_model_is_timed_padded_packed_and_in_fleets(cfg, model):
    rows = pd.DataFrame(gpu_parts.measured(model, wanted(cfg)))
    assert set(rows.columns) == set(gpu_parts.COLUMNS)
    found = set(zip(rows["method"], rows["variant"], strict=True))
    variants = ("longest", "packed", "fleet_2")
    assert found == {(method, name) for method in ("lora", "condlora") for name in variants}
    assert (rows["runs"] == rows["variant"].map({"fleet_2": 2}).fillna(1)).all()
    assert set(rows["model"]) == {model}
    numbers = rows[["examples_per_second", "tokens_per_second", "matrix_rate"]]
    assert (numbers > 0).all(axis=None)


@pytest.mark.slow
def test_compiled_steps_see_only_the_lengths_of_their_buckets(cfg, monkeypatch):
    lengths = []

    def watched(self, progress, original=gpu_parts.Bucketed.next):
        batch = original(self, progress)
        lengths.append(batch["input_ids"].shape[1])
        assert batch["attention_mask"].shape == batch["input_ids"].shape
        return batch

    monkeypatch.setattr(gpu_parts.Bucketed, "next", watched)
    rows = pd.DataFrame(gpu_parts.measured("compiled", wanted(cfg, methods=["condlora"])))
    assert list(rows["variant"]) == ["compiled", "buckets"]
    assert set(lengths) <= {16, 32, 64} and len(lengths) > 3
    assert (rows["first_step_seconds"] > 0).all()


def test_buckets_are_powers_of_two_from_sixteen_on():
    assert [gpu_parts.bucket(n) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]
    assert gpu_parts.buckets([4, 20, 30, 70]) == [16, 32, 128]


def parts_of(monkeypatch, programs):
    """Parts that are these programs in place of the real ones."""

    def command(part, program=programs):
        return [sys.executable, "-c", program[part]]

    original = gpu_check.run_part
    monkeypatch.setattr(
        gpu_check, "run_part", lambda part, _, limit: original(part, command(part), limit)
    )


def test_a_part_that_fails_or_takes_too_long_leaves_the_others(cfg, monkeypatch, tmp_path, capfd):
    programs = {
        "tests": "raise SystemExit(3)",
        "roberta-base": "import time; time.sleep(60)",
        "compiled": "print('compiled was run')",
    }
    parts_of(monkeypatch, programs)
    cfg.parts = {"tests": 30, "roberta-base": 1, "compiled": 30, "mpnet": 0}
    with pytest.raises(gpu_check.CheckFailed, match=r"^2 of 3 parts did not pass") as failed:
        gpu_check.check(cfg)
    assert failed.value.exit_status == 1
    assert "compiled was run" in capfd.readouterr().out
    found = pd.read_csv(tmp_path / "benchmark/cpu-toy_parts.csv").set_index("part")["result"]
    assert found.to_dict() == {"tests": "failed", "roberta-base": "stopped", "compiled": "done"}


def test_no_part_runs_longer_than_what_is_left_of_the_check(cfg, monkeypatch, tmp_path):
    parts_of(monkeypatch, {"tests": "import time; time.sleep(60)", "compiled": ""})
    cfg.seconds, cfg.parts = 1, {"tests": 200, "compiled": 30}
    (first, second) = gpu_check.run_parts(cfg, tmp_path)
    assert first.result == second.result == "stopped"
    assert first.seconds < 10 and second.seconds == 0


def test_tests_that_were_all_skipped_have_not_passed(tmp_path):
    report = tmp_path / "tests.xml"
    for skipped, expected in ((4, "failed"), (1, "done")):
        report.write_text(f'<testsuites><testsuite tests="4" skipped="{skipped}" failures="0" errors="0"/></testsuites>')  # fmt: skip
        found = gpu_check.counted(gpu_check.Outcome("tests", "done", 1.0), report)
        assert found.result == expected
        assert found.detail == f"{4 - skipped} passed, 0 failed, {skipped} skipped"


def test_rows_become_tables_with_the_goals_and_the_papers_hours(cfg, tmp_path, capsys):
    row = {
        "model": "roberta-base", "task": "cola", "examples_per_second": 100.0, "of_matrix_rate": 0.3,
        "peak_memory_mib": 1.0, "first_step_seconds": 1.0, "device": "NVIDIA H200", "precision": "bf16", "matrix_rate": 8e14,
    }  # fmt: skip
    rows = pd.DataFrame(
        [row | {"method": m, "variant": v} for m in ("lora", "condlora") for v in ("packed", "fleet_4")]
        + [row | {"method": "lora", "variant": "longest"}]  # the part was ended before CondLoRA's
    )  # fmt: skip
    rows.index = [0, 1, 2, 0, 1]  # as of tables that were put together
    gpu_check.report(cfg, rows, tmp_path / "hours.csv")
    said = capsys.readouterr().out
    assert "800 TFLOP/s" in said and "goal 15000" in said and "best 0.3" in said
    hours = pd.read_csv(tmp_path / "hours.csv").iloc[0]
    assert hours["profile"] == "paper" and hours["hours_packed"] == hours["hours_fleet_4"] > 0
    assert pd.isna(hours["hours_longest"])
    assert gpu_check.file_name("NVIDIA H100 80GB HBM3", "full") == "nvidia-h100-80gb-hbm3"


def test_a_machine_without_a_gpu_or_packages_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_check, "has_cuda", lambda: False)
    with pytest.raises(DeviceError, match="no CUDA device is available"):
        gpu_check.require_machine([])
    gpu_check.require_machine(["device=cpu"])
    monkeypatch.setitem(gpu_check.NEEDED, "no_such_module", "no-such-package")
    with pytest.raises(ConfigError, match=r"not installed: no-such-package\. Run make install"):
        gpu_check.require_machine(["device=cpu"])


@pytest.mark.slow
def test_the_whole_check_runs_at_toy_size(cfg, monkeypatch):
    """Without one of the models, which is measured above, and with one test of tests/gpu: `make test-slow` runs all."""

    def one_test(*arguments, original=gpu_check.test_command):
        return [*original(*arguments), "-k", "test_packed_batches_give_what_padded_ones_do"]

    monkeypatch.setattr(gpu_check, "test_command", one_test)
    cfg.parts = {part: 900 * (part != "roberta-base") for part in cfg.parts}
    cfg.seconds = 3600
    gpu_check.check(cfg)
