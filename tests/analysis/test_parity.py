"""The parity rules applied to planted scores: each verdict, the gap over steps, the dial, and what counts."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.present import parity as page
from analysis.present.report import build
from analysis.present.typeset import Picture
from analysis.stats import parity
from analysis.study.grids import has_parts
from analysis.study.parity import Grids, load_grids, progress, rule_commits, scores
from analysis.study.plateau import RULES
from condlora.errors import DivergedError
from condlora.runs.record import failure

TASKS = ("sst2", "stsb", "cola")
BUDGETS = {"300": 300, "1200": 1200, "4800": 4800}


@pytest.fixture
def rules():
    return yaml.safe_load(RULES.read_text(encoding="utf-8"))


@pytest.fixture
def grids(cell, rules):
    """grids(score): all runs of the curve and the dial; score(adapter, task, steps, seed) is a fraction."""

    def build(score, adapters=("lora", "condlora"), dial=()):
        parts = {
            part: [
                cell(task, adapter, seed, score(adapter, task, steps, seed))
                for task in TASKS
                for adapter in adapters
                for seed in rules["seeds"][steps]
            ]
            for part, steps in BUDGETS.items()
        }
        parts["dial"] = [
            cell(task, f"{adapter}_k{k}", seed, score(f"{adapter}_k{k}", task, 4800, seed))
            for task in TASKS
            for adapter in dial
            for k in (1, 2, 3)
            for seed in rules["seeds"]["dial"]
        ]
        planned = {part: len(cells) for part, cells in parts.items()}
        return Grids(parts, planned, BUDGETS | {"dial": 4800}, rules)

    return build


def noise(seed, adapter):
    """A few tenths of a point, another for each seed and method."""
    return 1e-3 * math.sin(7 * seed + 3 * len(adapter))


def flat(gap):
    """LoRA at 80 points at every number of steps, CondLoRA `gap` points above."""

    def score(adapter, task, steps, seed):
        return 0.8 + noise(seed, adapter) + (0.01 * gap if adapter == "condlora" else 0)

    return score


@pytest.mark.parametrize(("gap", "verdict"), [(0, "holds"), (-3, "fails"), (-1, "inconclusive")])
def test_verdict_follows_the_interval_and_the_margin(grids, rules, gap, verdict):
    found = parity.primary(scores(grids(flat(gap))), rules)
    assert (found.verdict, found.steps) == (verdict, 4800)
    assert found.contrast.mean.mean == pytest.approx(gap, abs=0.2)


def test_no_verdict_while_lora_still_improves_on_one_task(grids, rules):
    def score(adapter, task, steps, seed):
        rising = 0.01 * math.log2(steps / 300) if task == "cola" else 0
        return 0.7 + rising + noise(seed, adapter)

    found = parity.primary(scores(grids(score)), rules)
    assert found.verdict == rules["plateau"]["otherwise"]
    # A factor of four between budgets is two doublings: the gain of one is half the difference.
    assert found.gains == pytest.approx({"sst2": 0, "stsb": 0, "cola": 1.0}, abs=1e-9)
    assert found.contrast.mean is not None


def test_the_last_budget_is_the_largest_at_which_both_have_all_runs(grids, rules):
    made = grids(flat(0))
    made.parts["4800"].pop()
    assert parity.primary(scores(made), rules).steps == 1200
    for cells in made.parts.values():
        cells[:] = [c for c in cells if c.task != "cola"]
    found = parity.primary(scores(made), rules)
    assert (found.verdict, found.steps, found.contrast) == ("not run", None, None)
    assert parity.gap_curve(scores(made), rules)[300].mean is None


def test_gap_is_paired_by_seed_and_its_mean_is_over_tasks(grids, rules):
    def score(adapter, task, steps, seed):
        own = {"sst2": 0.01, "stsb": 0.02, "cola": 0.06}[task]
        return 0.5 + 0.05 * seed - (own if adapter == "condlora" else 0)

    gap = parity.gap_curve(scores(grids(score)), rules)[300]
    assert np.allclose(gap.by_task["cola"], -6) and gap.mean.mean == pytest.approx(-3)


def test_slope_is_that_of_the_gap_over_doublings(grids, rules):
    def score(adapter, task, steps, seed):
        lag = 0.005 * math.log2(steps / 300) if adapter == "condlora" else 0
        return 0.8 - lag + noise(seed, adapter)

    found = parity.slope(scores(grids(score)), rules)
    assert found.mean.mean == pytest.approx(-0.5)
    assert set(found.by_task) == set(TASKS)


def test_diverged_run_counts_as_the_constant_prediction_and_other_failures_do_not(
    grids, cell, spoil, rules
):
    made = grids(flat(0))
    diverged = failure(DivergedError("The loss is nan"))
    broken = failure(RuntimeError("disk"))
    for task, change in (("sst2", diverged), ("cola", diverged), ("stsb", broken)):
        record = cell(task, "condlora", 0, 0.8, **change)
        cells = made.parts["300"]
        at = next(
            i for i, c in enumerate(cells) if (c.task, c.adapter, c.seed) == (task, "condlora", 0)
        )
        cells[at] = spoil(record, "failed", change["reason"])
    table = scores(made).query("part == '300' and adapter == 'condlora' and seed == 0")
    assert dict(zip(table.task, table.points, strict=True)) == {"sst2": 50.0, "cola": 0.0}
    counted = progress(made).set_index("part")
    assert counted.done["300"] == counted.planned["300"] - 1 and not counted.complete["300"]


def test_dial_compares_at_the_same_number_of_layers(grids, rules):
    def score(adapter, task, steps, seed):
        name, _, k = adapter.partition("_k")
        k = int(k or 6)
        return 0.8 + noise(seed, "x") - 0.002 * k - (0.01 if name == "share_lora_ab" else 0)

    runs = scores(
        grids(score, ("lora", "condlora", "share_lora_ab"), ("condlora", "share_lora_ab"))
    )
    turned = parity.dial(runs, rules)
    assert set(turned.layers_per_map) == {1, 2, 3, 6}
    assert set(turned.seed) == set(rules["seeds"]["dial"])
    found = {key: one.mean.mean for key, one in parity.dial_contrasts(turned, rules).items()}
    assert found == pytest.approx(
        {("sharing", k): 0.2 * (6 - k) for k in (1, 2, 3)}
        | {("conditioning", k): 1.0 for k in (1, 2, 3, 6)}
    )
    assert parity.others(runs, rules)["share_lora_ab"].mean.mean == pytest.approx(-1.0)


def test_page_states_the_verdict_with_its_rule_and_draws_gap_and_dial(grids, tmp_path):
    adapters = ("lora", "condlora", "share_lora_ab")
    found = page.section(grids(flat(-3), adapters, ("condlora", "share_lora_ab")), tmp_path)
    assert "fails" in found.text[0] and "parity_rules.yaml" in found.text[0]
    if commits := rule_commits():
        assert all(commit in found.text[1] for commit, _ in commits)
    assert [x.path.name for x in found.shown if isinstance(x, Picture)] == [
        "parity_gap.png",
        "parity_dial.png",
    ]
    curve = pd.read_csv(tmp_path / "parity_gap.csv").query("panel == 'gap' and task == 'mean'")
    assert curve.steps.tolist() == [300, 1200, 4800] and (curve.points + 3).abs().max() < 0.2


@pytest.mark.slow  # composes the cells of seven grids
def test_grids_of_the_profile_are_read_before_any_run_is_there(tmp_path):
    assert has_parts("parity") and not has_parts("embedded")
    made = load_grids(
        "parity", tmp_path, [], tmp_path / "reference"
    )  # nor before rates have been searched
    found = progress(made)
    assert set(found.part) == {"300", "1200", "4800", "9600", "dial", "paper_size", "appendix"}
    assert (found.done == 0).all() and not found.complete.any() and found.planned.sum() > 250
    assert "not run" in page.section(made, tmp_path / "figures").text[0]


@pytest.mark.slow  # a whole report
def test_report_of_the_experiment_begins_with_it(study, grids):
    study = replace(study, cells=study.cells[:4])  # of one task
    adapters = ("lora", "condlora", "share_lora_ab")
    made = grids(flat(0), adapters, ("condlora", "share_lora_ab"))
    html = build(study, grids=made).read_text(encoding="utf-8")
    markdown = (study.folder / "report.md").read_text(encoding="utf-8")
    for text, panels in ((html, 'class="panels"'), (markdown, "| | | | |")):
        lead = text.index("Does CondLoRA end where LoRA ends?")
        assert lead < text.index("Primary endpoint") < text.index(panels)
    assert (study.folder / "tables" / "parity_curve.csv").is_file()
