"""Tables 2, 3 and 4 on small grids whose thresholds are worked by hand."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.maths import adapter_similarity
from analysis.present import adapter_similarity as present_adapter_similarity
from analysis.present import efficiency as present_efficiency
from analysis.present import equivalence as present_equivalence
from analysis.present import glue_scores as present_glue_scores
from analysis.present import typeset
from analysis.stats import equivalence as stats_equivalence
from analysis.stats import formatting
from analysis.stats.rules import load_rules
from analysis.study import costs, examples
from analysis.study import scores as records
from analysis.study.examples import Examples
from analysis.study.names import TASKS
from analysis.study.paper import published
from analysis.study.selection import Settings, finished
from analysis.study.stacks import load_stacks
from condlora.errors import UserError


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (-1.25, 1, "−1.2"),
        (-0.04, 1, "0.0"),
        (1234.5, 1, "1,234.5"),
        (None, 1, "–"),
        (math.nan, 2, "–"),
    ],
)
def test_numbers_as_text(value, digits, text):
    assert formatting.number(value, digits) == text


def test_intervals_and_p_values_as_text():
    assert formatting.interval(-0.5, 1.25, 1) == "[−0.5, 1.2]"
    assert formatting.interval(math.nan, 1.0, 1) == "–"
    assert [formatting.p_value(p) for p in (0.0004, 0.05, math.nan)] == ["< 0.001", "0.050", "–"]


def row(table, name):
    return next(dict(zip(table.header, r, strict=True)) for r in table.rows if r[0] == name)


def test_failed_and_stale_runs_are_not_averaged(cell, spoil):
    cells = [
        cell("rte", "lora", 0, 0.50),
        cell("rte", "lora", 1, 0.60),
        spoil(cell("rte", "lora", 2, 0.99), "failed", "out of memory"),
        spoil(cell("rte", "lora", 3, 0.99), "stale", "made by another recipe"),
        spoil(cell("rte", "lora", 4, 0.99), "running"),
        cell("rte", "condlora", 1, 0.57),
    ]
    runs = records.scores(finished(cells))
    table = present_glue_scores.table2(runs)
    assert row(table, "LoRA")["RTE"] == "55.0 ± 7.1 (2)"
    assert row(table, "CondLoRA")["RTE"] == "57.0 ± – (1)"
    # Paired by seed: 57 less seed 1's 60, not less the mean 55.
    assert row(table, "CondLoRA − LoRA")["RTE"] == "−3.0 ± – (1)"
    assert row(table, "Majority class")["RTE"] == "50.0"
    assert row(table, "LoRA")["MNLI"] == "–"
    assert row(table, "LoRA")["Avg."] == "–"


def test_ranks_stand_in_their_order_and_without_lora_nothing_is_compared_with_it(cell):
    ranks = [
        cell("rte", f"{method}_r{r}", 0, 0.5) for method in ("lora", "condlora") for r in (16, 2)
    ]
    names = [r[0] for r in present_glue_scores.table2(records.scores(finished(ranks))).rows]
    assert names[:4] == ["CondLoRA, r = 2", "CondLoRA, r = 16", "LoRA, r = 2", "LoRA, r = 16"]
    assert not any(name.endswith("− LoRA") for name in names if not name.startswith("Paper"))


def test_the_resolution_of_the_test_set_stands_beside_the_scores(cell):
    counts = {"counts": {"train": 9, "validation": 9, "test": 277}, "majority_score": 0.5}
    table = present_glue_scores.table2(
        records.scores([cell("rte", "lora", 0, 0.6, data=counts), cell("stsb", "lora", 0)])
    )
    assert row(table, "Test examples, n")["RTE"] == "277"
    assert row(table, "Test examples, n")["STS-B"] == "1,000"
    # 100 / 277; a correlation has no such step, and no run of MNLI is there.
    worth = row(table, "One test example")
    assert (worth["RTE"], worth["STS-B"], worth["MNLI"]) == ("0.36", "–", "–")


def test_average_is_the_mean_of_the_means_of_all_eight_tasks(cell):
    cells = [cell(task, "lora", 0, 0.1 * n) for n, task in enumerate(TASKS)]
    cells += [cell(task, "lora", 1, 0.9) for task in list(TASKS)[1:]]
    table = present_glue_scores.table2(records.scores(finished(cells)))
    # MNLI has one run, 0; the other tasks have 10 n and 90.
    mean = sum((10 * n + 90) / 2 for n in range(1, 8)) / 8
    assert row(table, "LoRA")["Avg."] == f"{mean:.2f} ± – (1)"
    assert row(table, "Ours − paper: LoRA")["Avg."] == formatting.number(mean - 84.225, 2)
    some = present_glue_scores.table2(records.scores(finished(cells[1:])))
    assert row(some, "LoRA")["Avg."] == "–"  # MNLI has no run


def test_the_papers_scores_stand_as_printed_beside_their_mean(grid):
    table = present_glue_scores.table2(records.scores(finished(grid)))
    paper = row(table, "Paper: CondLoRA")
    assert [paper[name] for name in TASKS.values()] == [
        "86.5",
        "93.8",
        "86.6",
        "61.1",
        "91.8",
        "90.1",
        "74.2",
        "90.3",
    ]
    assert (paper["Avg."], paper["Avg. as printed"]) == ("84.300", "83.42")
    assert row(table, "Paper: CondLoRA − LoRA")["STS-B"] == "1.0"
    assert table.header[1:9] == ["MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B"]


def test_published_means_are_the_means_of_the_published_rows():
    paper = published("table2")
    for adapter, scores in paper["scores"].items():
        assert list(scores) == paper["tasks"] == list(TASKS)
        assert paper["mean_of_row"][adapter] == pytest.approx(np.mean(list(scores.values())))
    assert all(len(row) == 12 for row in published("table3")["phi"].values())


def test_scores_csv_keeps_every_run_and_mnli_apart(grid, tmp_path):
    table = present_glue_scores.table2(records.scores(finished(grid)))
    csv = typeset.write(table, tmp_path)[0].read_text()
    assert csv.splitlines()[0].startswith("task,adapter,seed,headline,score_points,majority_points")
    assert "test_accuracy_matched,test_accuracy_mismatched" in csv.splitlines()[0]
    assert len(csv.splitlines()) == 1 + 32


def test_differences_by_hand(cell):
    """CondLoRA less LoRA on RTE: −2, −3 and −4 points; on STS-B −1 and 1; no pair on MNLI."""
    cells = [cell("mnli", "lora", 0), cell("stsb", "lora", 0, 0.8), cell("stsb", "lora", 1, 0.8)]
    cells += [cell("stsb", "condlora", 0, 0.79), cell("stsb", "condlora", 1, 0.81)]
    for seed, points in enumerate((2, 3, 4)):
        cells += [cell("rte", "lora", seed, 0.8), cell("rte", "condlora", seed, 0.8 - points / 100)]
    right = np.arange(10)
    rte = {("lora", seed): right for seed in range(3)}
    # Each CondLoRA run has one of ten examples wrong: −10 points by these predictions.
    rte |= {("condlora", seed): np.where(right == seed, -1, right) for seed in range(3)}
    score = np.linspace(0, 5, 10)
    stsb = {(adapter, s): score for adapter in ("lora", "condlora") for s in (0, 1)}
    examples = {
        "rte": Examples("accuracy", right, rte),
        "stsb": Examples("pearson", score, stsb),
    }
    thresholds, _ = load_rules()
    found = stats_equivalence.compare(records.scores(finished(cells)), examples, thresholds, seed=0)
    assert found.task.tolist() == ["rte", "stsb"]
    first, second = found.itertuples()
    assert (first.n, first.mean, first.sd) == (3, pytest.approx(-3), pytest.approx(1))
    # mean −3, standard error 1 / sqrt 3, Student's quantile 4.30265
    assert first.t_low == pytest.approx(-3 - 4.302653 / math.sqrt(3), rel=1e-6)
    assert (first.seeds_low, first.seeds_high) == (pytest.approx(-4), pytest.approx(-2))
    assert first.examples_low < -10 < first.examples_high <= 0
    # Holm over the two tasks: the smaller of two p is doubled.
    assert first.p_outside_holm == pytest.approx(2 * first.p_outside)
    assert second.p_outside_holm == second.p_outside == 1
    assert second.mean == pytest.approx(0) and second.p_difference == pytest.approx(1)
    assert second.examples_low == second.examples_high == 0  # the same predictions
    table = present_equivalence.table(found, thresholds)
    assert row(table, "RTE")["mean ± sd (seeds)"] == "−3.0 ± 1.0 (3)"


def test_a_tasks_intervals_do_not_depend_on_other_tasks(cell, examples):
    thresholds, _ = load_rules()
    grid = [
        cell(task, adapter, seed, 0.8 - 0.003 * seed**2 * (adapter == "condlora"))
        for task in ("mnli", "rte")
        for adapter in ("lora", "condlora")
        for seed in range(12)  # few would give the same percentiles by any draw
    ]

    def differences(cells):
        runs = records.scores(cells)
        return stats_equivalence.compare(runs, examples(cells), thresholds, seed=3)

    rte = [c for c in grid if c.task == "rte"]
    alone, among = differences(rte), differences(grid)
    among = among[among.task == "rte"].reset_index(drop=True)
    same = [name for name in among if name.startswith(("seeds_l", "seeds_h", "examples", "t_"))]
    assert alone[same].equals(among[same])
    assert (alone.examples_low < alone.examples_high).all()
    assert (alone.seeds_low < alone.seeds_high).all()


def test_predictions_on_other_examples_are_not_paired(cell, tmp_path):
    cells = []
    for adapter, labels in (("lora", [0, 1, 1]), ("condlora", [0, 1, 1]), ("condlora", [1, 1, 0])):
        folder = tmp_path / f"{len(cells)}"
        folder.mkdir()
        table = pd.DataFrame({"part": "validation", "label": labels, "prediction": [0, 1, 0]})
        table.to_parquet(folder / "predictions_test.parquet")
        cells.append(replace(cell("rte", adapter, len(cells)), folder=folder))
    found = examples.load_examples(cells[:2])
    assert list(found["rte"].predictions) == [("lora", 0), ("condlora", 1)]
    assert found["rte"].predictions["lora", 0].tolist() == [0, 1, 0]
    assert found["rte"].metric == "accuracy"
    with pytest.raises(UserError, match="tested on other examples"):
        examples.load_examples(cells)


def test_seconds_and_memory_of_a_run_in_a_fleet_are_not_its_own_and_its_speed_is(cell):
    alone = cell("rte", "lora", 0, train_examples_per_second=100.0, train_seconds=2.0)
    together = cell("rte", "condlora", 0, train_examples_per_second=90.0, fleet=4)
    runs = costs.costs(finished([alone, together]))
    table = present_efficiency.table4(runs)
    columns = ("train examples/s", "peak memory, MiB", "training, s", "whole run, s")
    assert {row(table, "CondLoRA")[name] for name in columns} == {"–"}
    assert "0.900" in row(table, "CondLoRA")["ratio to LoRA, same task and seed"]
    assert row(table, "CondLoRA")["adapter parameters"] == "512"
    assert row(table, "LoRA")["train examples/s"] == "100.0"


def test_speed_is_paired_and_parameters_are_counted(cell, spoil):
    cells = [
        cell("rte", "lora", 0, train_examples_per_second=100.0, train_seconds=2.0),
        cell(
            "rte",
            "condlora",
            0,
            train_examples_per_second=110.0,
            train_seconds=2.0,
            merged_speed_over_backbone=0.99,
        ),
        cell("sst2", "lora", 0, train_examples_per_second=400.0, train_seconds=1.0),
        cell("sst2", "condlora", 0, train_examples_per_second=360.0, train_seconds=1.0),
        cell("mnli", "lora", 0, train_examples_per_second=9.0),  # no partner: in no comparison
        spoil(cell("mnli", "condlora", 0, train_examples_per_second=900.0), "failed", "no"),
    ]
    runs = costs.costs(finished(cells))
    found = costs.ratios(runs, "train_examples_per_second")
    assert sorted(found.ratio) == pytest.approx([0.9, 1.1])
    assert costs.overall_speed(runs) == pytest.approx({"lora": 200.0, "condlora": 580 / 3})
    ours = row(present_efficiency.table4(runs), "CondLoRA")
    assert ours["adapter parameters"] == "512"
    assert ours["ratio to LoRA"] == "0.1667"
    assert ours["ratio to LoRA, same task and seed"] == "1.000 ± 0.141 (2)"
    assert ours["merged, speed over the backbone's"] == "0.990 ± – (1)"
    assert row(present_efficiency.table4(runs), "LoRA")["merged, speed over the backbone's"] == "–"
    assert row(present_efficiency.table4(runs), "LoRA")["adapter parameters"] == "3,072"
    assert row(present_efficiency.table4(runs), "Paper: CondLoRA")["ratio to LoRA"] == "0.0833"
    elsewhere = runs.conditions.mask(
        (runs.task == "rte") & (runs.adapter == "lora"), "another machine"
    )
    found = costs.speed_ratios(runs.assign(conditions=elsewhere), "train_examples_per_second")
    assert found.ratio.tolist() == pytest.approx([0.9])  # rte's two are not comparable
    by_task = {tuple(r[:2]): r[3] for r in present_efficiency.table_by_task(runs).rows}
    assert by_task["MNLI", "LoRA"] == "–"
    assert by_task["RTE", "CondLoRA"] == "1.100 ± – (1)"


def test_table3_compares_runs_of_the_same_task_and_seed(cell, load, settings):
    def same_matrices(folder):
        # CondLoRA's run of a task and seed gets the matrices of LoRA's run of that task and seed.
        return load(str(folder).replace("condlora", "lora"))

    cells = [cell("rte", "lora", 0), cell("rte", "condlora", 0)]
    cells += [cell("mnli", "condlora", 1), cell("mnli", "lora", 1), cell("mnli", "lora", 0)]
    result = adapter_similarity.compare(load_stacks(cells, same_matrices), settings)
    assert np.allclose(result.values.phi, 1)
    assert result.values[["task", "seed"]].drop_duplicates().to_numpy().tolist() == [
        ["rte", 0],
        ["mnli", 1],
    ]
    assert result.counts == {"query": (4, 4, 4), "value": (4, 4, 4)}
    assert result.expected["value", "A"] == 4 / 32
    assert result.random_means("value", "A").mean() == pytest.approx(4 / 32, abs=0.01)
    table = present_adapter_similarity.table3(result)
    ours = row(table, "value, ΔW")
    assert ours["1"] == "1.000 ± 0.000" and ours["7"] == "–" and ours["n"] == "2"
    assert row(table, "Paper: value, ΔW")["12"] == "0.12"


def test_table3_of_one_method_alone_is_empty(cell, load, settings):
    result = adapter_similarity.compare(load_stacks([cell("rte", "lora", 0)], load), settings)
    assert result.values.empty and not result.counts


def test_runs_on_other_weights_are_not_mixed(cell, load):
    def other_weights(folder):
        found = load(folder)
        if "mnli" in str(folder):
            found["value"].W = found["value"].W + 1
        return found

    with pytest.raises(UserError, match=r"mnli.* other frozen weights"):
        load_stacks([cell("rte", "lora", 0), cell("mnli", "lora", 0)], other_weights)


def test_more_vectors_than_the_rank_are_refused(cell, load):
    settings = Settings(i=5, j=None, baseline_seed=0, baseline_draws=2)
    with pytest.raises(UserError, match="i = 5 and j = 4"):
        adapter_similarity.compare(
            load_stacks([cell("rte", "lora", 0), cell("rte", "condlora", 0)], load), settings
        )


def test_tables_escape_what_their_formats_would_take_as_markup(tmp_path):
    table = typeset.Table("t", "100 % of a_b", ["x|y", "n"], [["<b> & _c_", "−1"]], pd.DataFrame())
    assert r"\<b> &amp; \_c\_" in typeset.markdown(table).replace("&lt;", r"\<")
    assert r"x\|y" in typeset.markdown(table)
    assert r"$<$b$>$ \& \_c\_ & $-$1 \\" in typeset.tex(table)


def test_stacks_keep_the_order_of_their_cells(cell, load):
    cells = [cell("rte", "lora", 1), cell("rte", "lora", 0)]
    stack = next(s for s in load_stacks(cells, load) if s.module == "value")
    assert [c.seed for c in stack.cells] == [1, 0]
    assert torch.equal(stack.A[0], load(cells[0].folder)["value"].A)


def test_a_users_own_task_stands_beside_glues_and_is_averaged_with_none(cell):
    glue = [cell(task, a, 0) for task in TASKS for a in ("lora", "condlora")]
    own = [cell("mine", "lora", 0, score=0.1), cell("mine", "condlora", 0, score=0.3)]
    of_glue, both = (
        present_glue_scores.table2(records.scores(finished(cells))) for cells in (glue, glue + own)
    )
    place = both.header.index("mine")
    assert both.header[:place] + both.header[place + 1 :] == of_glue.header
    for row, alone in zip(both.rows, of_glue.rows, strict=True):
        assert row[:place] + row[place + 1 :] == alone
    assert [row[place] for row in both.rows[:3]] == ["10.0 ± – (1)", "30.0 ± – (1)", "20.0 ± – (1)"]
    assert any("in no average: mine" in note for note in both.notes)
