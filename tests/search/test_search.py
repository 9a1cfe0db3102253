"""The search for a learning rate: what it reads, what it chooses, and that it survives a kill."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from omegaconf import OmegaConf

from condlora.errors import ConfigError, DivergedError
from condlora.grid.cells import compose_cells
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import run_folder
from condlora.search import files
from condlora.search.rules import next_rate
from condlora.search.run import search
from condlora.search.studies import plan_studies
from tests.search.conftest import RATES, TINY, settings
from tests.tasks import ROOT, slow


def test_trials_are_the_same_rates_for_both_methods_and_real_runs(tmp_path):
    table = search(settings(tmp_path, "adapter=lora,condlora", rates=RATES[:2]))
    for _, rows in table.groupby("adapter"):
        assert tuple(rows["learning_rate"]) == RATES[:2]
        assert rows["chosen"].sum() == 1
        assert rows["chosen"].idxmax() == rows["validation_score"].idxmax()
    written = pd.read_csv(tmp_path / "results/adhoc/search.csv")
    assert len(written) == 4
    assert str(tmp_path) not in (tmp_path / "results/adhoc/search.csv").read_text()
    records = [json.loads(p.read_text()) for p in (tmp_path / "runs/search").rglob("record.json")]
    by_trial = {(r["adapter"], r["recipe"]["protocol"]["learning_rate"]): r for r in records}
    for trial in written.itertuples():
        record = by_trial[trial.adapter, trial.learning_rate]
        assert trial.validation_score == record["validation"]["accuracy"]
        assert trial.recipe_hash == record["recipe_hash"]
        assert (trial.seed, trial.steps, trial.metric) == (100, 4, "accuracy")


def test_recipe_of_the_chosen_trial_is_that_of_the_profiles_cell(tmp_path):
    """So a table's run can be traced to the trial that chose its rate."""
    (plan,) = plan_studies(settings(tmp_path))
    trial = plan.trial(2e-3)
    overrides = ("adapter=lora", "protocol.learning_rate=2e-3", f"runs={tmp_path}/runs", "seed=100")
    (cell,) = compose_cells((*TINY, *overrides))
    assert recipe_hash(recipe(trial)) == recipe_hash(recipe(cell))
    assert run_folder(trial) != run_folder(cell)


def test_only_validation_chooses(tmp_path, stand_in):
    """The test score rises with the rate; validation prefers the lowest, by its best evaluation."""
    stand_in(lambda rate: [0.5, 0.9 - 100 * rate, 0.1], test=0.99)
    table = search(settings(tmp_path))
    assert set(table[table["chosen"]]["learning_rate"]) == {min(RATES)}
    assert table["validation_score"].tolist() == [0.9 - 100 * rate for rate in RATES]


def test_undefined_test_score_does_not_cost_a_trial(tmp_path, stand_in):
    stand_in(lambda rate: [0.1, rate], test=None)
    table = search(settings(tmp_path))
    assert set(table["state"]) == {"complete"}


def test_equal_scores_give_the_lower_rate(tmp_path, stand_in):
    stand_in(lambda rate: [0.7])
    table = search(settings(tmp_path, rates=(4e-3, 1e-3)))
    assert set(table[table["chosen"]]["learning_rate"]) == {1e-3}


def test_failed_trials_lose_and_say_why(tmp_path, stand_in):
    outcome = {1e-3: DivergedError("The loss is nan"), 2e-3: [0.3], 4e-3: [float("nan")] * 2}
    stand_in(outcome.get, test=None)
    table = search(settings(tmp_path))
    assert table["state"].tolist() == ["fail", "complete", "fail"]
    assert table["reason"].tolist()[0] == "The loss is nan"
    assert table["chosen"].tolist() == [False, True, False]


def test_no_rate_is_chosen_where_all_trials_fail(tmp_path, stand_in):
    stand_in(lambda rate: DivergedError("The loss is nan"))
    assert not search(settings(tmp_path))["chosen"].any()


def test_search_that_was_stopped_goes_on_and_gives_the_same_trials(tmp_path, stand_in):
    stand_in(lambda rate: [1 - rate])
    whole = search(settings(tmp_path / "whole"))

    def stopped(rate):
        if rate == 2e-3:
            raise KeyboardInterrupt
        return [1 - rate]

    first = stand_in(stopped)
    with pytest.raises(KeyboardInterrupt):
        search(settings(tmp_path / "stopped"))
    second = stand_in(lambda rate: [1 - rate])
    resumed = search(settings(tmp_path / "stopped"))
    assert (first, second) == ([1e-3], [2e-3, 4e-3])
    pd.testing.assert_frame_equal(resumed, whole)


def test_trials_of_another_search_do_not_count(tmp_path, stand_in):
    done = stand_in(lambda rate: [0.5])
    for words, changed in (
        ((), {}),
        ((), {"seed": 101}),
        (("protocol.batch_size=8",), {}),
    ):
        done.clear()
        table = search(settings(tmp_path, *words, **changed))
        assert len(done) == len(table) == len(RATES)


@pytest.mark.parametrize("outcome", [[0.5], DivergedError("too high")])
def test_more_rates_do_no_trial_again_even_if_it_failed(tmp_path, stand_in, outcome):
    done = stand_in(lambda rate: outcome if rate < 5e-3 else [0.7])
    search(settings(tmp_path))
    done.clear()
    table = search(settings(tmp_path, rates=(*RATES, 8e-3)))
    assert done == [8e-3]
    assert len(table) == len(RATES) + 1
    assert table[table["chosen"]]["learning_rate"].tolist() == [8e-3]


FAILED = None


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        ({1e-3: 0.1, 4e-3: 0.2, 1.6e-2: 0.3}, 6.4e-2),  # the best is the highest: beyond it
        ({1e-3: 0.3, 4e-3: 0.2, 1.6e-2: 0.1}, 2.5e-4),
        ({1e-3: 0.1, 4e-3: 0.3, 1.6e-2: 0.2}, 8e-3),  # between the best and its better neighbour
        ({1e-3: 0.2, 4e-3: 0.3, 1.6e-2: FAILED}, 2e-3),
        ({1e-3: 0.1, 4e-3: 0.3, 8e-3: 0.2, 1.6e-2: 0.2}, 2e-3),  # of unlike gaps the wider
        ({1e-3: 0.1, 4e-3: 0.2, 8e-3: 0.3, 1.6e-2: 0.2}, 5.7e-3),
        ({1e-3: 0.3, 4e-3: 0.3, 1.6e-2: 0.3}, 2.5e-4),  # of equals the lowest is the best
        ({1e-3: FAILED, 4e-3: FAILED, 1.6e-2: FAILED}, 2.5e-4),
        ({2.5e-4: FAILED, 1e-3: FAILED, 4e-3: FAILED, 1.6e-2: FAILED}, 6.4e-2),
    ],
)
def test_further_trials_go_where_those_before_point(scores, rate):
    assert next_rate(scores) == rate


def test_every_study_has_the_same_number_of_trials(tmp_path, stand_in):
    done = stand_in(lambda rate: [rate] if rate < 1 else DivergedError("too high"))
    cfg = settings(tmp_path, "adapter=lora,condlora", rates=(1e-3, 4e-3), further=3)
    table = search(cfg)
    assert done == 2 * [1e-3, 4e-3, 1.6e-2, 6.4e-2, 2.6e-1]
    assert table.groupby("adapter").size().tolist() == [5, 5]
    assert table[table["chosen"]]["learning_rate"].tolist() == [2.6e-1] * 2
    done.clear()
    pd.testing.assert_frame_equal(search(cfg), table)
    assert not done


@pytest.mark.parametrize("before", ["adhoc", *slow("reference/adhoc")])
def test_file_keeps_the_studies_of_other_methods(tmp_path, stand_in, before):
    stand_in(lambda rate: [rate])
    search(settings(tmp_path, "adapter=lora,condlora"))
    (tmp_path / "results" / before).parent.mkdir(exist_ok=True)
    (tmp_path / "results/adhoc").rename(tmp_path / "results" / before)
    stand_in(lambda rate: [1 - rate])
    search(settings(tmp_path, "adapter=lora", "protocol.batch_size=8"))
    written = pd.read_csv(tmp_path / "results/adhoc/search.csv")
    chosen = written[written["chosen"]].set_index("adapter")["learning_rate"].to_dict()
    assert chosen == {"condlora": max(RATES), "lora": min(RATES)}
    assert len(written) == 2 * len(RATES)


def test_protocol_that_validates_on_the_test_set_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="which a search must not see"):
        search(settings(tmp_path, "protocol.validation=test"))


def test_search_seed_is_in_no_profile():
    seed = OmegaConf.load(ROOT / "configs/search/settings.yaml").seed
    for path in (ROOT / "configs/profile").glob("*.yaml"):
        params = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params", default={})
        assert str(seed) not in str(params.get("seed", "")).split(",")


SEARCHES = sorted(ROOT.glob("results/reference/*/search.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.parent.name)
def test_profile_trains_with_the_rates_that_its_search_chose(path: Path):
    table = pd.read_csv(path)
    # One budget, or one rule for what is added to equal beginnings.
    first = table[table["stage"] == "first"] if "stage" in table else table
    assert first.groupby(["task", "adapter"]).size().nunique() == 1
    table = table.drop_duplicates(["task", "adapter", "learning_rate"])
    chosen = table[table["chosen"]].set_index(["task", "adapter"])["learning_rate"]
    cells = compose_cells((f"profile={path.parent.name}",))
    rates = {(c.task.name, c.adapter.name): c.protocol.learning_rate for c in cells}
    assert rates == {cell: chosen[cell] for cell in rates}


@pytest.mark.slow
def test_first_trials_are_trained_together_where_asked(tmp_path):
    words = ("runtime.fleet=2", "adapter=lora,condlora")
    table = search(settings(tmp_path, *words, rates=RATES, further=1))
    records = [json.loads(p.read_text()) for p in (tmp_path / "runs/search").rglob("record.json")]
    found = {(r["adapter"], r["recipe"]["protocol"]["learning_rate"]): r["fleet"] for r in records}
    assert [found["lora", rate] for rate in RATES] == [2, 2, 1]
    assert len(table) == len(records) == 8


@pytest.mark.slow
def test_workers_leave_with_a_search_that_is_killed_and_keep_a_checkpoint(tmp_path):
    """Else they would go on alone, each to the end of its study."""
    overrides = ["backbone=tiny", "task=rte", "adapter=lora,condlora", "protocol.max_steps=100000"]
    words = [
        "profile=embedded", f"overrides={json.dumps(overrides)}", "learning_rates=[1e-3]", "jobs=2",
        f"runs={tmp_path}/runs", f"results={tmp_path}/results", f"rates={tmp_path}/rates",
    ]  # fmt: skip
    command = [sys.executable, ROOT / "scripts/search_learning_rate.py", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"OMP_NUM_THREADS": "6"}
    threads = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    of_all = int(subprocess.run(threads, env=environment, capture_output=True, check=True).stdout)
    parent = subprocess.Popen(command, **quiet, env=environment)

    def curves():  # of runs that have made their first evaluation
        return list(tmp_path.glob("runs/search/*/*/*/*/*/curve.csv"))

    try:
        deadline = time.monotonic() + 300
        while len(curves()) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        workers = psutil.Process(parent.pid).children(recursive=True)
    finally:
        parent.kill()
    _, left = psutil.wait_procs(workers, timeout=60)
    for worker in left:
        worker.kill()
    assert not left and len(curves()) == 2
    for curve in curves():
        record = json.loads((curve.parent / "record.json").read_text())
        assert record["status"] == "interrupted"
        assert record["environment"]["threads"] == max(1, of_all // 2)
        assert list(curve.parent.glob("checkpoints/*"))


# Several seeds, rates beyond the edge, rates beside the best


def test_a_rates_score_is_the_mean_over_its_seeds_and_a_failed_seed_fails_it(tmp_path, stand_in):
    outcomes = iter([[0.9], [0.1], [0.6], [0.6], [0.99], DivergedError("The loss is nan")])
    stand_in(lambda rate: next(outcomes))
    table = search(settings(tmp_path, repeats=2))
    assert list(zip(table["learning_rate"], table["seed"], strict=True)) == [
        (rate, seed) for rate in RATES for seed in (100, 101)
    ]
    assert set(table[table["chosen"]]["learning_rate"]) == {2e-3}
    assert search(settings(tmp_path, repeats=2)).equals(table)  # and trains nothing again


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (2e-3, []),
        (1e-3, [5e-4]),  # the lowest of the first ones
        # At the edge until a better neighbour is found, and no further than three rates.
        pytest.param(2e-4, [5e-4, 2.5e-4, 1.25e-4], marks=pytest.mark.slow),
        (1e-6, [5e-4, 2.5e-4, 1.25e-4]),
        pytest.param(1, [8e-3, 1.6e-2, 3.2e-2], marks=pytest.mark.slow),
    ],
)
def test_rates_are_added_while_the_best_is_at_an_edge(tmp_path, stand_in, best, tried):
    done = stand_in(lambda rate: [1 / (1 + abs(math.log(rate / best)))])
    search(settings(tmp_path, extend=3))
    assert done == [*RATES, *tried]


def test_the_best_rate_is_refined_by_the_root_of_two(tmp_path, stand_in):
    done = stand_in(lambda rate: [1 / (1 + abs(math.log(rate / 1.4e-3)))])
    table = search(settings(tmp_path, extend=3, refine=True, repeats=2))
    assert done[::2] == done[1::2] == [*RATES, 5e-4, 7.07e-4, 1.41e-3]
    assert set(table[table["chosen"]]["learning_rate"]) == {1.41e-3}
    assert table.groupby("stage").size().to_dict() == {"extended": 2, "first": 6, "refined": 4}


def test_a_search_begins_around_the_rate_of_another_profiles_search(tmp_path, stand_in):
    done = stand_in(lambda rate: [rate if rate < 5e-3 else 0])
    rates = tmp_path / "rates"
    rates.mkdir()
    (rates / "parity_300.yaml").write_text("lora: {rte: 2.0e-3}")
    search(settings(tmp_path, around="parity_300", extend=3))
    assert done == [1e-3, 2e-3, 4e-3, 8e-3]
    with pytest.raises(
        ConfigError, match="no learning rate for condlora on rte: search the profile"
    ):
        search(settings(tmp_path, "adapter=condlora", around="parity_300"))


def test_where_every_trial_fails_no_rate_is_added(tmp_path, stand_in):
    done = stand_in(lambda rate: DivergedError("The loss is nan"))
    assert not search(settings(tmp_path, extend=3, refine=True))["chosen"].any()
    assert done == list(RATES)


def test_the_chosen_rates_are_a_file_that_a_profile_reads(tmp_path, stand_in):
    stand_in(lambda rate: [rate])
    cfg = settings(tmp_path, "adapter=lora,condlora")
    cfg.profile = "embedded"
    search(cfg)
    text = (tmp_path / "rates/embedded.yaml").read_text()
    assert yaml.safe_load(text) == {name: {"rte": max(RATES)} for name in ("lora", "condlora")}
    assert text.startswith("# @package protocol.tables.learning_rate\n")
    assert str(tmp_path) not in text
    (command,) = re.findall(r"^#   (python .*)$", text, re.MULTILINE)
    assert {"profile=embedded", "further=0", "learning_rates=[0.001, 0.002, 0.004]"} < set(
        shlex.split(command)
    )


def test_a_folder_of_rates_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "rates").write_text("a file")
    table = pd.DataFrame(columns=["task", "adapter", "learning_rate", "chosen"]).astype(
        {"chosen": bool}
    )
    cfg = settings(tmp_path)
    cfg.profile = "embedded"
    with pytest.raises(ConfigError, match="could not be written to .*: set rates=FOLDER"):
        files.write_rates(cfg, table)


def test_an_installed_package_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "IS_CHECKOUT", False)
    cfg = settings(tmp_path)
    cfg.rates = None
    with pytest.raises(ConfigError, match="installed package: set rates=FOLDER"):
        files.write_rates(cfg, pd.DataFrame())
