"""LoRA on chosen attention weights: configs with equal numbers of parameters, and the table of their runs."""

import pytest
from omegaconf import OmegaConf

from analysis.present.which_weights import section, table
from analysis.study.paper import published
from analysis.study.selection import open_study
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import compose_cells
from condlora.models.adapters import load_factors, load_run
from condlora.runs.record import run_folder
from condlora.training import run as finetune
from scripts import method_table
from tests.analysis.planted import ranked_cell
from tests.tasks import ROOT

CHOICES = ["q", "k", "v", "o", "qk", "qv", "qkvo"]


def test_scores_stand_in_the_papers_order_with_its_numbers_in_columns_of_their_own():
    cells = [ranked_cell("rte", "lora_on_qv", seed, 4, 0.7 + seed / 100) for seed in (0, 1)]
    cells += [ranked_cell("sst2", "lora_on_q", 0, 8, 0.9), ranked_cell("rte", "lora", 0, 8, 0.1)]
    found = table(cells)
    header = "weights, r, parameters, SST-2, RTE"
    assert found.header == [*header.split(", "), "Hu et al., WikiSQL", "Hu et al., MultiNLI"]
    rows = {row[0]: row[1:] for row in found.rows}
    assert list(rows) == ["Wq", "Wk", "Wv", "Wo", "Wq, Wk", "Wq, Wv", "Wq, Wk, Wv, Wo"]
    assert rows["Wq"] == ["8", "2,304", "90.0 ± – (1)", "–", "70.4", "91.0"]
    assert rows["Wq, Wv"] == ["4", "1,152", "–", "70.5 ± 0.7 (2)", "73.7", "91.3"]
    assert rows["Wq, Wk, Wv, Wo"] == ["2", "–", "–", "–", "73.7", "91.7"]
    assert found.notes[-1].startswith("Not run on every task: Wq; Wk; ")
    assert "GPT-3 175B" in found.notes[1]


def test_without_such_runs_there_is_no_section_and_the_command_says_what_to_train():
    cells = [ranked_cell("rte", "lora", 0, 8)]
    assert not section(cells).shown
    with pytest.raises(NoFinishedRuns, match="train with profile=which_weights first"):
        table(cells)


def test_every_choice_has_the_papers_rank_and_the_same_number_of_parameters():
    words = ("backbone=roberta-base", "task=rte", "adapter=lora_on")
    cells = compose_cells((*words, f"adapter.weights={','.join(CHOICES)}"))
    counts = method_table.parameters([cfg.adapter for cfg in cells])
    assert counts == {f"lora_on_{name}": 12 * 8 * (768 + 768) for name in CHOICES}
    ranks = {cfg.adapter.weights: cfg.adapter.config.r for cfg in cells}
    assert ranks == published("which_weights")["ranks"]


@pytest.mark.slow
def test_the_profile_has_every_choice_at_three_seeds_on_three_tasks():
    cells = compose_cells(("profile=which_weights",))
    assert len(cells) == len({run_folder(cfg) for cfg in cells}) == 7 * 3 * 3
    rates = {(cfg.task.name, cfg.protocol.learning_rate) for cfg in cells}
    assert rates == {("sst2", 2e-3), ("stsb", 8e-3), ("mrpc", 1e-3)}  # LoRA's in minilm_glue


def test_the_table_of_tiny_runs(tiny_cells, tmp_path):
    cells = tiny_cells(
        "task=rte", "adapter=lora_on", "adapter.weights=k,qkvo", "protocol.max_steps=2",
        "protocol.evaluate_every=2", "protocol.learning_rate=1e-3",
    )  # fmt: skip
    for cfg in cells:
        finetune.run(cfg)
    settings = OmegaConf.load(ROOT / "configs/analysis/settings.yaml")
    settings.merge_with(
        {"runs": f"{tmp_path}/runs", "results": f"{tmp_path}/results", "profile": "adhoc"}
    )
    rows = {row[0]: row for row in table(open_study(settings).done).rows}
    assert rows["Wk"][2] == rows["Wq, Wk, Wv, Wo"][2] == f"{3 * 8 * (16 + 16):,}"
    assert rows["Wk"][3].endswith("(1)") and rows["Wq"][3] == "–"
    adapted, _ = load_run(run_folder(cells[1]))
    names = {n.split(".lora_A")[0] for n, _ in adapted.named_parameters() if "lora_A" in n}
    ends = ("self.query", "self.key", "self.value", "attention.output.dense")
    assert len(names) == 3 * 4 and all(name.endswith(ends) for name in names)
    assert not load_factors(run_folder(cells[0]))  # it has no query and value to analyse
    assert set(load_factors(run_folder(cells[1]))) == {"query", "value"}
