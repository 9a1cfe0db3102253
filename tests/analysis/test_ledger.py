"""The ledger of other papers' claims: every kind of test decides as its text says, and nothing is decided without runs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.maths.amplification import Amplification
from analysis.maths.lora_subspace import RANKS, TASKS, Comparison, LoraSubspace
from analysis.present import ledger as page
from analysis.stats import ledger
from analysis.stats.ledger import NO_RUNS, NOT_KNOWN, Evidence, entries
from analysis.stats.rules import FAILS, HOLDS, NOT_RESOLVED, NOT_TESTED, load_rules
from analysis.study.names import label
from analysis.study.paper import published
from condlora.paths import CONFIGS


@pytest.fixture
def thresholds():
    return load_rules()[0]


def scored(gaps, tasks=("sst2", "cola"), seeds=5):
    """LoRA at 80 points and the other methods `gaps` above, with noise of a few tenths."""
    rows = []
    for t, task in enumerate(tasks):
        for seed in range(seeds):
            rows.append((task, "lora", seed, 80.0 + seed))
            for method, gap in gaps.items():
                noise = 0.3 * np.sin(5 * seed + 3 * t)
                rows.append((task, method, seed, 80.0 + seed + gap + noise))
    return pd.DataFrame(rows, columns=["task", "adapter", "seed", "score_points"])


def decided(evidence, thresholds):
    return {entry.key: entry for entry in entries(evidence, thresholds)}


FLAT = {"sst2": 0.0, "cola": 0.1}


@pytest.mark.parametrize(
    ("method", "key", "verdicts"),
    [  # at −3, −0.9, 0 and +3 points
        ("dora", "dora", [FAILS, FAILS, NOT_RESOLVED, HOLDS]),
        ("vera", "vera", [FAILS, NOT_RESOLVED, HOLDS, FAILS]),
        ("lora_xs", "lora_xs", [FAILS, NOT_RESOLVED, HOLDS, HOLDS]),
    ],
)
def test_a_claim_about_scores_is_decided_by_its_test(method, key, verdicts, thresholds):
    found = []
    for gap in (-3, -0.9, 0, 3):
        evidence = Evidence(scored({method: gap}), FLAT)
        found.append(decided(evidence, thresholds)[key].verdict)
    assert found == verdicts


def test_scores_are_not_judged_while_lora_improves(thresholds):
    evidence = Evidence(scored({"dora": 3}), {"sst2": 0.0, "cola": 2.0})
    entry = decided(evidence, thresholds)["dora"]
    assert (entry.verdict, entry.reason) == (NOT_TESTED, "LoRA still improving")
    assert entry.part.estimate == pytest.approx(3, abs=0.2)  # the numbers are shown all the same
    entry = decided(replace(evidence, gains={"sst2": 0.0}), thresholds)["dora"]
    assert (entry.verdict, entry.reason) == (NOT_TESTED, NOT_KNOWN)


def test_full_fine_tuning_is_compared_in_the_direction_of_the_claim(thresholds):
    for gap, verdict in ((-5, HOLDS), (5, FAILS)):
        found = decided(Evidence(scored({"full": gap}), FLAT), thresholds)
        assert found["lora_and_full"].verdict == verdict


def test_nothing_is_tested_without_runs(thresholds):
    found = entries(Evidence(scored({}), FLAT), thresholds)
    assert {(entry.verdict, entry.reason) for entry in found} == {(NOT_TESTED, NO_RUNS)}
    section = page.section(Evidence(scored({}), FLAT), thresholds)
    assert section.text[0].startswith(f"0 of {len(found)} claims")
    assert {row[2] for row in section.shown[0].rows} == {f"{NOT_TESTED}: {NO_RUNS}"}


def test_one_rank_is_compared_with_the_highest(thresholds):
    runs = [
        {"task": task, "method": "lora", "r": r, "seed": seed, "score_points": 80 + seed + gap}
        for task in ("sst2", "cola")
        for seed in range(4)
        for r, gap in ((1, -4 + 0.1 * seed), (8, 20), (64, 0))
    ]
    entry = decided(Evidence(scored({}), FLAT, pd.DataFrame(runs)), thresholds)["rank_one"]
    assert (entry.verdict, entry.part.limit) == (FAILS, -1)
    assert entry.part.estimate == pytest.approx(-3.85)


def amplified(**columns):
    """Three LoRA runs of two layers, the second layer's values twice the first's, and CondLoRA with others."""
    rows = [
        {"method": method, "r": 8, "module": "query", "task": "rte", "seed": seed, "layer": layer}
        | {name: x * (1 + 0.01 * seed) * layer * factor for name, x in columns.items()}
        for method, factor in (("lora", 1), ("condlora", -9))
        for seed in range(3)
        for layer in (1, 2)
    ]
    return Amplification(pd.DataFrame(rows), {}, 8)


def test_amplification_is_of_loras_runs_over_their_layers(thresholds):
    columns = {"within_delta_W": 0.5, "within_random": 0.4, "within_W": 3.0}
    evidence = Evidence(scored({}), FLAT, amplification=amplified(amplification=0.8, **columns))
    found = decided(evidence, thresholds)
    assert found["amplification"].verdict == HOLDS  # mean over layers: 1.2
    assert found["amplification"].part.estimate == pytest.approx(1.5 * 0.808)
    assert found["not_top_of_w"].verdict == HOLDS
    assert found["correlated_with_w"].part.estimate == pytest.approx(1.5 * 0.101)
    small = replace(evidence, amplification=amplified(amplification=0.3, **columns))
    assert decided(small, thresholds)["amplification"].verdict == FAILS


def comparison(compared, matrix, value, counts, pairs):
    phi = np.full((len(pairs), 2, *counts), value) + 0.01 * np.arange(len(pairs))[:, None, None, None]  # fmt: skip
    return Comparison(compared, "lora", "value", matrix, phi, phi[:1], pairs, [1, 2])


def test_subspaces_of_ranks_and_tasks(thresholds):
    seeds = [("rte and cola", n, n) for n in (0, 0, 0, 1, 1, 1)]
    runs = [("rte", n, n) for n in range(3)]
    found = LoraSubspace(
        [
            comparison(RANKS, "A", 0.7, (8, 64), runs),
            comparison(TASKS, "A", 0.6, (8, 8), seeds),
            comparison(TASKS, "delta_W", 0.2, (8, 8), seeds),
        ],
        [],
    )
    verdicts = decided(Evidence(scored({}), FLAT, subspaces=found), thresholds)
    assert verdicts["top_direction"].verdict == HOLDS
    assert verdicts["top_direction"].part.estimate == pytest.approx(0.71)
    across = verdicts["a_across_tasks"].part
    assert (across.n, across.estimate) == (2, pytest.approx(0.4))  # two seeds, not six pairs


def test_directions_are_those_of_query_modules(thresholds):
    rows = [
        (method, module, seed, (0.5 if method == "lora" else -0.4) * (1 if module == "query" else -1) + 0.05 * seed)
        for method in ("lora", "full")
        for module in ("query", "value")
        for seed in range(4)
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "module", "seed", "correlation"])
    found = decided(Evidence(scored({}), FLAT, directions=frame), thresholds)
    assert found["lora_magnitude_and_direction"].verdict == HOLDS
    assert found["full_magnitude_and_direction"].verdict == HOLDS


def test_the_file_names_methods_measures_and_tests_that_exist(thresholds):
    content = published("ledger")
    for key, claim in content["claims"].items():
        assert claim["test"] in content["tests"], key
        assert ("compare" in claim) != ("measure" in claim), key
        for method in claim.get("compare", []):
            assert (CONFIGS / "adapter" / f"{method}.yaml").is_file() and label(method), key
        if "measure" in claim:
            assert claim["measure"] in {*ledger.MEASURES, "rank_one"}, key
    measures = {c["measure"] for c in content["claims"].values() if "measure" in c}
    assert measures == {*ledger.MEASURES, "rank_one"}
