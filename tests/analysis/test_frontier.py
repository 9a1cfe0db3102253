"""The frontier of score against cost: who is on it, what is drawn, and who is left out."""

import numpy as np
import pandas as pd
import pytest

from analysis.present import frontier as present_frontier
from analysis.stats import frontier as stats_frontier
from condlora.errors import NoFinishedRuns

METHODS = {"lora": (1000, 80.0), "condlora": (100, 78.0), "vera": (50, 79.0), "bitfit": (2000, 80.0)}  # fmt: skip


@pytest.fixture
def cells(cell):
    """Two tasks, three seeds; each method's score rises by a point a seed, on STS-B ten points above RTE."""
    found = []
    for method, (parameters, points) in METHODS.items():
        counts = {"adapter": parameters, "trainable": parameters + 9, "head": 9, "backbone": 10}
        for task, more in (("rte", -5), ("stsb", 5)):
            found += [
                cell(task, method, seed, (points + more + seed - 1) / 100, parameters=counts)
                for seed in range(3)
            ]
    return found


def test_a_method_is_on_the_frontier_where_none_beats_it():
    rng = np.random.default_rng(0)
    for _ in range(200):
        costs, scores = rng.integers(0, 6, 8), rng.integers(0, 6, 8)
        expected = [
            not any(
                (costs[o] <= costs[m] and scores[o] > scores[m])
                or (costs[o] < costs[m] and scores[o] >= scores[m])
                for o in range(8)
            )
            for m in range(8)
        ]
        assert stats_frontier.pareto(costs, scores).tolist() == expected


def test_rows_are_means_over_tasks_with_intervals_over_seeds(cells):
    found, _ = stats_frontier.frontier(cells, 0.95)
    assert found.method.tolist() == ["vera", "condlora", "lora", "bitfit"]  # by parameters
    assert found.on_frontier.tolist() == [True, False, True, False]
    row = found.set_index("method").loc["condlora"]
    # A deviation of 1 on each of two tasks: 1 / sqrt 2 of their mean, with 4 degrees of freedom. Paired by the number of
    # the seed the interval would be that of 77, 78, 79: 2 degrees of freedom and sqrt 2 times the error.
    assert (row.score, row.sd, row.n) == (pytest.approx(78), pytest.approx(0.5**0.5), 3)
    half = 2.776445 * (1 / 6) ** 0.5
    assert (row.low, row.high) == pytest.approx((78 - half, 78 + half), rel=1e-6)
    assert row.minus_lora == pytest.approx(-2) and np.isnan(
        row.minus_lora_low
    )  # the same for each seed
    assert found.set_index("method").loc["vera"].minus_condlora == pytest.approx(1)
    assert np.isnan(row.minus_condlora)
    assert (row.parameters, row.time, row.memory_mib) == (100, 1, 800)


def test_a_method_without_all_runs_is_left_out_and_named(cells):
    found, notes = stats_frontier.frontier(cells[:-1], 0.95)
    assert "bitfit" not in set(found.method)
    assert any("Not drawn, as runs are missing: BitFit" in note for note in notes)


def test_a_seed_that_lacks_a_task_counts_for_nobody(cells, tmp_path):
    ragged = [c for c in cells if (c.task, c.adapter, c.seed) != ("stsb", "lora", 1)]
    found, notes = stats_frontier.frontier(ragged, 0.95)
    assert set(found.n) == {2} and len(found) == len(METHODS)
    assert found.set_index("method").loc["lora"].score == pytest.approx(80)
    assert any("with 2 seeds per task" in note for note in notes)
    none = [c for c in cells if (c.task == "rte") == (c.seed == 0)]
    with pytest.raises(NoFinishedRuns, match="No seed has a finished run of every task"):
        stats_frontier.frontier(none, 0.95)
    assert present_frontier.section(none, 0.95, tmp_path).shown == []


def test_time_is_that_of_the_same_task_and_seed_over_loras(cells):
    for one in cells:
        one.record["train_examples_per_second"] = 100.0 if one.adapter == "lora" else 50.0
        one.record["train_examples_per_second"] *= 3 if one.task == "rte" else 1
    found, _ = stats_frontier.frontier(cells, 0.95)
    assert found.set_index("method").time.to_dict() == {"vera": 2, "condlora": 2, "lora": 1, "bitfit": 2}  # fmt: skip


def test_figure_is_byte_equal_on_repeat_and_bears_a_method_without_parameters(cells, tmp_path):
    for one in cells:
        if one.adapter == "bitfit":
            one.record["parameters"]["adapter"] = 0
    found, _ = stats_frontier.frontier(cells, 0.95)
    first = present_frontier.draw(found, tmp_path / "first")
    present_frontier.draw(found, tmp_path / "second")
    for path in first.parent.iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    assert len(first.with_suffix(".csv").read_text().splitlines()) == 1 + len(METHODS)


def test_marks_stand_where_they_belong_and_beside_it_only_where_they_would_lie_on_a_better_one():
    shown = pd.DataFrame(
        {"parameters": [0, 10, 10, 10, 10, 1000], "score": [0.0, 70.0, 99.0, 98.9, 98.8, 100.0]}
    )
    places = present_frontier.side_by_side(shown)
    assert places[[0, 1, 2, 5]].tolist() == [0, 10, 10, 1000]
    assert 8 < places[4] < 10 < places[3] < 12


def test_section_needs_three_methods(cells, tmp_path):
    assert [type(i).__name__ for i in present_frontier.section(cells, 0.95, tmp_path).shown] == ["Picture", "Table"]  # fmt: skip
    two = [one for one in cells if one.adapter in ("lora", "condlora")]
    assert present_frontier.section(two, 0.95, tmp_path).shown == []
