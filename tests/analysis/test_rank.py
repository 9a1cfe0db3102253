"""Scores, parameters and similarities over the rank, on planted runs of several ranks."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.maths import conversion_similarity, rank_similarity
from analysis.maths.rank_similarity import CONTROL, METHODS, TRAINED
from analysis.present import rank as present_rank
from analysis.present import rank_similarity as present_rank_similarity
from analysis.stats import rank_runs
from analysis.study.rank_selection import load_ranks, method_of, scaling, shown_rank
from analysis.study.selection import Settings
from tests.analysis.conftest import FakeFactors
from tests.analysis.planted import LAYERS, WIDTH, ranked_cell, stack, weights


@pytest.fixture
def cells():
    """LoRA scores 80 + r + seed at r = 1, 2, 8, CondLoRA half a point less at r = 1 and 8."""
    return [
        ranked_cell("rte", f"lora_r{r}", seed, r, (80 + r + seed) / 100)
        for r in (8, 1, 2)
        for seed in (0, 1)
    ] + [ranked_cell("rte", f"condlora_r{r}", 0, r, (79.5 + r) / 100) for r in (1, 8)]


@pytest.fixture
def stacks(cells):
    named = {}
    for cell in cells:
        named.setdefault(cell.adapter, []).append(cell)
    return [
        stack(name, int(name.split("_r")[1]), own, seed=n)
        for n, (name, own) in enumerate(named.items())
    ]


@pytest.fixture
def result(cells, stacks, settings):
    return rank_runs.by_rank(cells, stacks, settings)


@pytest.mark.parametrize(
    ("adapter", "method"),
    [
        ("lora", "lora"),
        ("lora_r16", "lora"),
        ("condlora_r1", "condlora"),
        ("condlora-64", "condlora"),
        ("condlora_consistent", "condlora_consistent"),
        ("condlora_consistent_r8", "condlora_consistent"),
    ],
)
def test_a_method_is_known_without_the_mark_of_its_rank(adapter, method):
    assert method_of(adapter) == method


def test_scaling_is_alpha_over_the_rank():
    assert scaling(ranked_cell("rte", "lora", 0, 16)) == 0.5


def test_the_papers_rank_is_shown_and_else_the_highest(stacks):
    assert shown_rank(stacks) == 8
    assert shown_rank([s for s in stacks if s.A.shape[-2] < 8]) == 2


def test_ranks_under_one_name_are_kept_apart(monkeypatch):
    cells = [ranked_cell("rte", "lora", n, r) for n, r in enumerate((2, 4, 2))]
    ranks = {cell.folder: r for cell, r in zip(cells, (2, 4, 2), strict=True)}

    def load(folder):
        r = ranks[folder]
        A, B = torch.ones(LAYERS, r, WIDTH), torch.ones(LAYERS, WIDTH, r)
        return {"value": FakeFactors(weights(), A, B, list(range(LAYERS)))}

    monkeypatch.setattr("condlora.models.adapters.load_factors", load)
    found = load_ranks(cells)
    assert [(s.A.shape[2], [c.seed for c in s.cells]) for s in found] == [(2, [0, 2]), (4, [1])]


def test_table_pairs_scores_by_seed_and_counts_parameters(result):
    rows = {row[1]: row[2:] for row in present_rank.table(result).rows}
    assert list(rows) == ["1", "2", "8"]
    assert rows["8"][:2] == ["2,304", "768"]
    assert rows["8"][2:] == ["88.5 ± 0.7 (2)", "87.5 ± – (1)", "−0.5 ± – (1)"]
    assert rows["2"] == ["576", "–", "82.5 ± 0.7 (2)", "–", "–"]


def test_ranks_that_did_not_run_are_named(result):
    assert result.notes == ["Not run: LoRA at r = 4, 16, 64; CondLoRA at r = 2, 4, 16, 64."]


@pytest.mark.parametrize(("other", "said"), [([], "8"), ([("cond_adalora", 12)], "8, 12")])
def test_one_rank_of_each_method_is_said_and_not_drawn(cells, stacks, settings, tmp_path, other, said):  # fmt: skip
    more = [ranked_cell("rte", method, 0, r, 0.8) for method, r in other]
    found = rank_runs.by_rank(cells[:2] + more, stacks[:1], settings)
    section = present_rank.section(found, tmp_path)
    assert section.text == [
        f"Each method was run at one rank (r = {said}), so nothing can be concluded about other ranks."
    ]
    assert not section.shown and not list(tmp_path.iterdir())


def test_conversion_similarity_is_that_of_figure_1_at_each_rank(result, stacks, settings):
    for made in stacks[:3]:
        of_one = conversion_similarity.figure1([replace(made, adapter="lora")], settings)
        for matrix in ("A", "B"):
            s = result.similarity
            ours = s[
                (s.r == made.A.shape[2]) & (s.source == TRAINED) & (s.matrix == matrix)
            ].phi.mean()
            theirs = of_one.select("off_diagonal", "value", matrix, TRAINED).mean()
            assert ours == pytest.approx(theirs)


def test_the_control_shows_what_the_inverse_does_by_itself(stacks, settings):
    """Where one small singular direction is shared by all layers, Gaussian factors agree on it."""
    common = np.linalg.svd(weights()[0].numpy())
    W = torch.tensor(common[0] @ np.diag([1.0] * (WIDTH - 1) + [1e-4]) @ common[2])
    shared = [replace(s, adapter=method_of(s.adapter), W=W.expand_as(s.W)) for s in stacks]
    found, _ = rank_similarity.similarities(shared, settings)
    at_1 = found[found.r == 1]
    assert at_1[at_1.source == CONTROL].phi.min() > 0.9
    assert at_1[at_1.source == TRAINED].phi.min() > 0.9
    assert at_1[at_1.source == METHODS].phi.mean() < 0.2


def test_controls_are_drawn_at_every_rank_and_fewer_at_higher_ones(result):
    s = result.similarity[result.similarity.source == CONTROL]
    draws = s.groupby(["matrix", "r"]).phi.size()
    assert draws["A", 1] == 40 and draws["A", 2] == 20 and draws["B", 8] == 10
    assert (s.expected == s.r / WIDTH).all()


def test_methods_are_compared_where_both_ran_and_products_only_where_they_differ(
    cells, stacks, result
):
    s = result.similarity[result.similarity.source == METHODS]
    assert set(s.r) == {1, 8} and set(s.matrix) == {"A", "B"}
    part = rank_runs.by_rank(cells[:2] + cells[-1:], [stacks[0], stacks[-1]], Settings(4, 4, 0, 40))
    assert "delta_W" in set(part.similarity.matrix)


def test_weights_without_inverse_are_said(cells, stacks, settings):
    flat = [replace(s, W=0 * s.W) for s in stacks]
    found = rank_runs.by_rank(cells, flat, settings)
    assert sum("No conversion matrices for value modules" in note for note in found.notes) == 3
    assert TRAINED not in set(found.similarity.source)


def test_what_stands_out_is_counted_with_what_chance_gives(result):
    s = result.similarity.copy()
    s.loc[s.source == CONTROL, "phi"] = 0.5
    s.loc[(s.source == CONTROL) & (s.seed_or_draw == 0), "phi"] = (
        0.3  # one low draw decides nothing
    )
    s.loc[s.source == TRAINED, "phi"] = 0.4
    s.loc[(s.source == TRAINED) & (s.r == 8) & (s.matrix == "A"), "phi"] = 0.6
    (line,) = present_rank_similarity.statements(s)
    # 1 / 41 + 1 / 21 + 1 / 11 for each of A and B.
    assert line.startswith("In 1 of 6 combinations") and line.endswith("0.3 at most.")


@pytest.mark.slow
def test_figures_are_byte_equal_on_repeat_and_hold_means_and_ranges(result, tmp_path):
    paths = present_rank.draw(result, tmp_path / "first")
    assert set(paths) == {"rank", "rank_similarity"}
    present_rank.draw(result, tmp_path / "second")
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    lines = paths["rank"].with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "r,adapter_parameters,mean,lowest,highest,n,task,method"
    assert "8,2304,88.5,88,89,2,rte,lora" in lines


def test_section_shows_scores_first_and_similarities_for_who_asks(result, tmp_path):
    section = present_rank.section(result, tmp_path)
    assert [type(item).__name__ for item in section.shown] == ["Picture", "Table"]
    assert [type(item).__name__ for item in section.details] == ["Picture", "Table"]
    assert "RTE, CondLoRA, r = 8: 87.5" in section.shown[0].alt
    assert section.text[-1].startswith("Not run: ")


def test_methods_of_one_rank_are_not_drawn_beside_those_of_several(
    cells, stacks, settings, tmp_path
):
    more = [ranked_cell("rte", "dora", seed, 8, 0.8) for seed in (0, 1)]
    present_rank.draw(rank_runs.by_rank(cells + more, stacks, settings), tmp_path)
    drawn = pd.read_csv(tmp_path / "rank.csv")
    assert set(drawn.method) == {"lora", "condlora"}
