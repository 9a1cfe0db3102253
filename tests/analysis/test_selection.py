"""Which runs are read, and in which order."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from analysis.study import grids, paper, selection
from condlora.errors import NoFinishedRuns, UserError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "analysis" / "settings.yaml"


@pytest.fixture
def config(tmp_path):
    cfg = OmegaConf.load(CONFIG)
    cfg.runs, cfg.results = str(tmp_path / "runs"), str(tmp_path / "results")
    cfg.records = str(tmp_path / "reference")
    return cfg


def test_newest_profile_is_the_default(config, monkeypatch, grid):
    monkeypatch.setattr(selection, "newest_profile", lambda runs: "minilm_glue")
    monkeypatch.setattr(grids, "survey", lambda profile, runs: grid)
    study = selection.open_study(config)
    assert study.profile == "minilm_glue" and study.folder == Path(config.results) / "minilm_glue"
    assert any(line.startswith("CoLA has no runs here") for line in study.left_out)
    config.profile = "embedded"
    study = selection.open_study(config)
    assert study.profile == "embedded" and study.left_out == ()


def test_a_profile_without_a_finished_run_is_an_error_with_a_next_step(
    config, monkeypatch, cell, spoil
):
    cells = [spoil(cell("rte", "lora", 0), "failed", "no")]
    monkeypatch.setattr(grids, "survey", lambda profile, runs: cells)
    config.profile = "embedded"
    with pytest.raises(NoFinishedRuns, match="'embedded' has no finished run"):
        selection.open_study(config)


def test_a_damaged_run_is_left_out_by_name(config, monkeypatch, cell, spoil, capsys):
    reason = "seed-7/record.json is the record of another run (seed 0)"
    cells = [cell("rte", "lora", 0), spoil(cell("rte", "lora", 7), "damaged", reason)]
    monkeypatch.setattr(grids, "survey", lambda profile, runs: cells)
    config.profile = "embedded"
    assert [c.seed for c in selection.open_study(config).done] == [0]
    assert capsys.readouterr().err == f"warning: a run is left out: {reason}\n"


def test_runs_are_read_before_every_method_has_a_learning_rate(config):
    config.profile = "parity"  # its rates are searched method by method
    with pytest.raises(NoFinishedRuns, match="'parity' has no finished run"):
        selection.open_study(config)


def test_finished_runs_come_in_the_papers_order(cell, spoil):
    cells = [cell("stsb", "lora", 0), cell("mnli", "vera", 0), cell("mnli", "condlora", 1)]
    cells += [cell("mnli", "condlora", 0), cell("mnli", "lora", 0), cell("own_task", "lora", 0)]
    cells += [spoil(cell("mnli", "lora", 3), state) for state in ("failed", "stale", "running")]
    cells += [spoil(cell("mnli", "lora", 4), state) for state in ("damaged", "missing")]
    found = [(c.task, c.adapter, c.seed) for c in selection.finished(cells)]
    assert found == [
        ("mnli", "lora", 0),
        ("mnli", "condlora", 0),
        ("mnli", "condlora", 1),
        ("mnli", "vera", 0),
        ("stsb", "lora", 0),
        ("own_task", "lora", 0),
    ]


def test_baselines_start_from_their_seed_each_time(settings):
    first, second = settings.generator(), settings.generator()
    assert first.initial_seed() == second.initial_seed() == 0
    assert settings.counts(4) == (4, 4)


def test_runs_on_other_data_are_refused_by_default_and_of_other_versions_joined(
    config, monkeypatch, grid
):
    monkeypatch.setattr(grids, "survey", lambda profile, runs: grid)
    config.profile = "embedded"
    grid[0].record["environment"]["versions"]["torch"] = "2.11.0"
    assert selection.open_study(config).done
    grid[0].record["data"]["split_sha256"]["test"] = "f" * 64
    with pytest.raises(UserError, match="differ in data"):
        selection.open_study(config)
    config.may_differ = ["versions", "data"]
    assert selection.open_study(config).done


@pytest.mark.parametrize(
    ("name", "is_paper"),
    [
        ("roberta-base", True),
        ("/models/roberta-base", True),
        ("distilroberta-base", False),
        ("xlm-roberta-base", False),
        ("roberta-large", False),
    ],
)
def test_no_other_model_passes_for_the_papers(name, is_paper):
    assert paper.is_paper_backbone({"backbone": {"name": name}}) is is_paper
