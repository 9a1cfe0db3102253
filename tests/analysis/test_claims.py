"""Each claim in a world where it holds, in one where it does not, and where it was not run."""

from dataclasses import replace

import pytest
import torch

from analysis import claims
from analysis.claims import FAILS, HOLDS, NOT_RUN
from analysis.selection import TASKS, Settings, Study


@pytest.fixture
def world(tmp_path, monkeypatch, settings):
    """world(cells, load): the verdicts and evidence of all claims, by key."""

    def evaluate(cells, load, settings=settings):
        monkeypatch.setattr("condlora.backbone.load_factors", load)
        study = Study("fake", cells, tmp_path, settings)
        return {claim.key: claim for claim in claims.evaluate(claims.collect(study))}

    return evaluate


@pytest.fixture
def alike(load, weights):
    """Matrices of two methods that agree, with conversion matrices alike in the deep layers."""

    def load_factors(folder):
        found = load("any")
        for factors in found.values():
            factors.A[3:] = factors.A[3] @ torch.linalg.inv(weights[3]).mT @ weights[3:].mT
            factors.B[3:] = weights[3:] @ torch.linalg.inv(weights[3]) @ factors.B[3]
        return found

    return load_factors


def test_independent_matrices_are_not_more_alike_than_random(world, grid, load):
    found = world(grid, load)
    for module in ("query", "value"):
        for key in ("conversion_above_gaussian", "conversion_above_control", "deep_above_shallow"):
            assert found[f"{key}_{module}"].verdict == FAILS, key
        assert found[f"adapters_above_random_{module}"].verdict == FAILS
    assert found["conversion_above_gaussian_value"].n == 16


def test_matrices_made_alike_are_found_alike(world, grid, alike):
    found = world(grid, alike)
    for module in ("query", "value"):
        for key in ("conversion_above_gaussian", "conversion_above_control", "deep_above_shallow"):
            assert found[f"{key}_{module}"].verdict == HOLDS, key
        assert found[f"adapters_above_random_{module}"].verdict == HOLDS


def test_likeness_from_the_inverse_alone_does_not_pass_the_control(world, grid, load, weights):
    """W0 with shared small directions: above the paper's baseline, and not above the control."""
    U, _, Vh = torch.linalg.svd(weights)
    scale = torch.cat([torch.ones(28), torch.full((4,), 1e-2)])
    shared = U * scale @ Vh[:1]

    def on_shared(folder):
        found = load(folder)
        for factors in found.values():
            factors.W = shared
        return found

    found = world(grid, on_shared)
    assert found["conversion_above_gaussian_value"].verdict == HOLDS
    assert found["conversion_above_control_value"].verdict == FAILS


def test_matrices_that_are_undefined_decide_nothing(world, grid, load):
    def untrained(folder):
        found = load(folder)
        for factors in found.values():
            factors.B *= 0
        return found

    found = world(grid, untrained)
    assert found["conversion_above_gaussian_value"].verdict in (FAILS, NOT_RUN)
    assert "B: –" in found["conversion_above_gaussian_value"].evidence
    assert found["left_space_of_product"].verdict == NOT_RUN


def shifted(cell, points, only=tuple(TASKS)):
    return [
        cell(task, adapter, seed, 0.8 - points / 100 * (adapter == "condlora" and task in only))
        for task in TASKS
        for adapter in ("lora", "condlora")
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(("points", "verdict"), [(0.9, HOLDS), (1.1, FAILS), (-1.1, FAILS)])
def test_scores_within_a_point(world, cell, load, points, verdict):
    found = world(shifted(cell, points), load)
    assert found["average_within_margin"].verdict == verdict
    assert found["tasks_within_margin"].verdict == verdict


def test_one_task_outside_the_margin_is_named(world, cell, load):
    found = world(shifted(cell, 2, only=("cola",)), load)
    assert found["average_within_margin"].verdict == HOLDS
    assert found["tasks_within_margin"].verdict == FAILS
    assert "outside: CoLA −2.0" in found["tasks_within_margin"].evidence


def test_seven_good_tasks_of_eight_are_not_all_tasks(world, cell, spoil, load):
    cells = [
        spoil(c, "failed", "no") if c.task == "rte" and c.adapter == "condlora" else c
        for c in shifted(cell, 0.1)
    ]
    found = world(cells, load)
    assert found["average_within_margin"].verdict == NOT_RUN
    assert found["tasks_within_margin"].verdict == NOT_RUN
    assert "no pair of runs: RTE" in found["tasks_within_margin"].evidence


def test_closeness_without_any_learning_is_said(world, cell, load):
    cells = [
        replace(c, record=c.record | {"data": c.record["data"] | {"majority_score": 0.81}})
        if c.task == "rte"
        else c
        for c in shifted(cell, 0.1)
    ]
    evidence = world(cells, load)["average_within_margin"].evidence
    assert evidence.endswith("LoRA is not above the commonest class in RTE")
    assert "commonest" not in world(shifted(cell, 0.1), load)["average_within_margin"].evidence


@pytest.mark.parametrize("count", [511, 513])
def test_parameters_are_exactly_a_share_of_the_layers(world, grid, load, count):
    assert world(grid, load)["parameters_one_over_layers"].verdict == HOLDS
    changed = grid[-1].record["parameters"] | {"adapter": count}
    grid[-1] = replace(grid[-1], record=grid[-1].record | {"parameters": changed})
    assert grid[-1].adapter == "condlora"
    assert world(grid, load)["parameters_one_over_layers"].verdict == FAILS


@pytest.mark.parametrize(("speed", "verdict"), [(101.0, HOLDS), (99.0, FAILS)])
def test_speed(world, cell, load, speed, verdict):
    cells = [cell("rte", "lora", 0), cell("rte", "condlora", 0, train_examples_per_second=speed)]
    assert world(cells, load)["speed_not_lower"].verdict == verdict


def test_product_has_the_left_space_of_b(world, grid, load, monkeypatch):
    assert world(grid, load)["left_space_of_product"].verdict == HOLDS
    monkeypatch.setattr("analysis.adapter_similarity.largest_difference", lambda *_: 0.01)
    assert world(grid, load)["left_space_of_product"].verdict == FAILS


def test_fewer_vectors_than_the_rank_leave_the_product_check_undecided(world, grid, load):
    settings = Settings(i=2, j=2, baseline_seed=0, baseline_draws=5)
    assert world(grid, load, settings)["left_space_of_product"].verdict == NOT_RUN


def test_the_papers_own_print_is_checked(monkeypatch):
    assert claims.printed_averages().verdict == FAILS
    assert claims.printed_rows_of_table3().verdict == FAILS
    assert "layers 6, 11, 12" in claims.printed_rows_of_table3().evidence
    consistent = {
        "printed_average": {"lora": 84.22},
        "mean_of_row": {"lora": 84.225},
        "phi": {"B": [0.1], "delta_W": [0.1]},
    }
    monkeypatch.setattr(claims, "published", lambda name: consistent)
    assert claims.printed_averages().verdict == HOLDS
    assert claims.printed_rows_of_table3().verdict == HOLDS


def test_without_pairs_nothing_is_decided(world, cell, load):
    found = world([cell("rte", "condlora", 0)], load)
    decided = {key for key, claim in found.items() if claim.verdict != NOT_RUN}
    assert decided == {"printed_averages", "printed_rows_of_table3"}


def test_every_claim_states_its_rule_and_place(world, grid, load):
    for claim in world(grid, load).values():
        assert claim.rule.endswith(".") and claim.place and claim.evidence
        assert not claim.statement.endswith(".")
