"""The parts of benchmarks/scaling.py at toy size; the times themselves are not tested."""

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import scaling
from tests.tasks import ROOT


@pytest.fixture
def cfg():
    cfg = OmegaConf.load(ROOT / "configs/benchmark.yaml")
    base = {"layers": 1, "width": 16, "rank": 2, "tokens": 8, "batch": 2, "fleet": 1}
    steps = {"tokens": [8, 32], "fleet": [1, 2]}
    changes = {"runs": [1, 3], "base": base, "repeats": 1}
    cfg.scaling = OmegaConf.merge(cfg.scaling, changes)
    cfg.scaling.steps = steps
    return cfg


def test_exponents_are_those_of_powers():
    x = pd.Series([1, 2, 4, 8])
    assert scaling.exponent(x, 3.0 * x**2) == 2
    assert scaling.exponent(x, pd.Series([5.0] * 4)) == 0
    assert pd.isna(scaling.exponent(x[:1], x[:1]))


def test_live_memory_is_of_what_is_made_and_not_yet_freed():
    held = torch.zeros(1000)
    with scaling.Live() as live:
        held.add_(1)  # not made here
        first = torch.ones(1000)
        view = first[:10]
        second = first + 1
        assert live.held == 8000
        del second
        assert live.held == 4000
        torch.ones(500)
    assert live.peak == 8000 and len(view) == 10


@pytest.mark.slow
def test_every_series_has_its_exponents_and_a_figure(cfg, tmp_path):
    found = scaling.scaling(cfg)
    assert set(found["series"]) == {"runs", "tokens", "fleet"}
    grid = found[found["series"] == "runs"].set_index(["name", "x"])
    assert {name for name, _ in grid.index} == {
        "checks before a launch", "configs of a launch", "list", "checksums and scores", "companions",
    }  # fmt: skip
    steps = found[found["series"] != "runs"]
    assert set(steps["name"]) == {"lora", "condlora"} and len(steps) == 8
    assert (steps["memory_mib_exponent"] > 0).all()
    assert found["seconds_exponent"].notna().all()
    (figure,) = scaling.draw(found, tmp_path)
    assert figure.stat().st_size > 1000
