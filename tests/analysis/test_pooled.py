"""Runs of one recipe by several versions: components of the variance, and one verdict that counts each seed once."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.present import pooled as page
from analysis.stats import pooled
from analysis.stats.rules import HOLDS, NOT_RESOLVED, NOT_TESTED, load_rules
from analysis.study import versions


def runs_of(groups, task="rte", adapter="lora"):
    """A row per run; groups: seed -> scores in points."""
    rows = [(task, adapter, seed, y) for seed, ys in groups.items() for y in ys]
    return pd.DataFrame(rows, columns=["task", "adapter", "seed", "score_points"])


def sds(groups):
    (row,) = pooled.components(runs_of(groups)).itertuples()
    return row.sd_versions, row.sd_seeds


def test_components_are_those_of_the_analysis_of_variance_by_hand():
    # within: squares 4 over 2; between: 2 (2 - 4)^2 + 2 (6 - 4)^2 = 16, k0 = 2
    assert sds({0: [1, 3], 1: [5, 7]}) == pytest.approx((math.sqrt(2), math.sqrt((16 - 2) / 2)))
    # unbalanced: mean 3, within 2 over 1; between 2 (2 - 3)^2 + (5 - 3)^2 = 6, k0 = 3 - 5 / 3
    assert sds({0: [1, 3], 1: [5]}) == pytest.approx((math.sqrt(2), math.sqrt((6 - 2) / (4 / 3))))
    assert sds({0: [1, 9], 1: [4, 6]})[1] == 0  # less between seeds than noise would give


def test_a_component_without_repetitions_is_undefined():
    noise, seeds = sds({0: [1], 1: [3]})
    assert math.isnan(noise) and seeds == pytest.approx(math.sqrt(2))
    noise, seeds = sds({0: [1, 3]})
    assert noise == pytest.approx(math.sqrt(2)) and math.isnan(seeds)


def test_planted_components_are_recovered():
    rng = np.random.default_rng(0)
    seeds = 3 * rng.standard_normal(4000)
    groups = {n: y + 0.5 * rng.standard_normal(1 + n % 3) for n, y in enumerate(seeds)}
    assert sds(groups) == pytest.approx((0.5, 3), rel=0.05)


def test_a_seed_of_several_versions_counts_once():
    """Ten copies of three pairs with a little noise are three pairs, not thirty."""
    thresholds, _ = load_rules()
    rng = np.random.default_rng(1)
    gaps = [-1.5, 0.2, 1.6]
    rows = []
    for _ in range(10):
        for seed, gap in enumerate(gaps):
            noise = 1e-3 * rng.standard_normal()
            rows += [("rte", "lora", seed, 80.0), ("rte", "condlora", seed, 80 + gap + noise)]
    runs = pd.DataFrame(rows, columns=["task", "adapter", "seed", "score_points"])
    (row,) = pooled.verdicts(runs, "condlora", {"rte": 0.0}, thresholds).itertuples()
    assert (row.seeds, row.verdict) == (3, NOT_RESOLVED)
    assert row.mean == pytest.approx(0.1, abs=1e-3) and row.low < -3 and row.high > 3


def test_the_verdict_follows_the_rule_of_equal_scores():
    thresholds, _ = load_rules()
    close = pd.concat(
        [
            runs_of({0: [80.0, 80.1], 1: [81], 2: [82]}),
            runs_of({0: [80.1], 1: [81.0, 81.1], 2: [82.1]}, adapter="condlora"),
        ]
    )

    def decided(gains):
        return pooled.verdicts(close, "condlora", gains, thresholds).verdict.tolist()

    assert decided({"rte": 0.1}) == [HOLDS]
    assert decided({"rte": 2.0}) == decided({}) == [NOT_TESTED]


@pytest.fixture
def elsewhere(cell, monkeypatch):
    """Two finished runs here, and elsewhere one of each kind of run; label -> cell."""
    here = [cell("rte", "lora", 0, sha256="a"), cell("rte", "condlora", 0, sha256="b")]
    data = here[0].record["data"]
    other_data = data | {"split_sha256": data["split_sha256"] | {"test": 64 * "1"}}
    found = {
        "another version": cell("rte", "lora", 0, 0.81, sha256="c"),
        "another seed": cell("rte", "lora", 1, 0.82, sha256="d"),
        "a copy": here[1],
        "another recipe": cell("rte", "lora", 2, sha256="e", recipe_hash="f"),
        "other data": cell("rte", "lora", 3, sha256="g", data=other_data),
        "unfinished": replace(cell("rte", "lora", 4, sha256="h"), state="failed"),
        "another task": cell("cola", "lora", 0, sha256="i"),
    }
    monkeypatch.setattr(versions, "recorded_runs", lambda folder: list(found.values()))
    return here, found


def test_runs_of_the_same_recipe_and_data_are_pooled_and_copies_are_not(elsewhere, tmp_path):
    here, found = elsewhere
    others = versions.other_versions(here, "fake", None, tmp_path, tmp_path)
    assert others == [found["another version"], found["another seed"]]


def test_the_section_says_what_is_noise_between_versions(elsewhere, tmp_path, monkeypatch):
    here, _ = elsewhere
    thresholds, _ = load_rules()
    others = versions.other_versions(here, "fake", None, tmp_path, tmp_path)
    monkeypatch.setattr(page, "reference_gains", lambda cells: {"rte": 2.0})
    section = page.section(here, others, thresholds)
    assert section.text[0].startswith("2 runs elsewhere have the recipes of runs here.")
    # 80 and 81 of seed 0, 82 of seed 1
    assert "noise: 0.71 points between versions of one seed" in section.text[0]
    assert page.section(here, [], thresholds).text == []
