"""A search that several workers share: the table of one, no trial twice, none lost."""

import contextlib
import math
import os
import time

import pandas as pd
import pytest
import yaml

from condlora.runs.lease import Claim
from condlora.search import run as search_run
from condlora.search.files import write_table
from condlora.search.run import search
from condlora.search.studies import plan_studies, storage_of
from tests.faults.harness import KILLED, kill
from tests.search.conftest import settings

STAGES = {"extend": 1, "refine": True}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(search_run, "POLL", 0.05)


def started(works):
    """A process for each of some functions, all at the same time; their exit statuses."""
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                work()
                status = 0
            os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def curve_of(folder):
    """A stand-in's scores: it notes each trial that is done, in one file for all workers, and takes a moment."""
    folder.mkdir(exist_ok=True)

    def curve(rate):
        with (folder / "done").open("a") as file:
            file.write(f"{rate}\n")
        time.sleep(0.05)
        return [1 / (1 + abs(math.log(rate / 1.4e-3)))]

    return curve


@pytest.mark.slow
def test_workers_that_start_together_give_the_table_of_one(tmp_path, stand_in):
    def table(workers):
        folder = tmp_path / f"{workers}"
        stand_in(curve_of(folder))
        cfg = settings(folder, "adapter=lora,condlora", **STAGES)
        plan_studies(cfg)  # composed once for all workers, which are copies of this process
        assert started([lambda: search(cfg)] * workers) == [0] * workers
        found = pd.read_csv(folder / "results/adhoc/search.csv")
        assert len((folder / "done").read_text().splitlines()) == len(found)  # no trial twice
        return found

    one = table(1)
    assert set(one["stage"]) == {"first", "extended", "refined"}
    for workers in (2, 4, 8):
        pd.testing.assert_frame_equal(table(workers), one)


def test_searches_of_other_tasks_that_end_together_lose_no_row_of_the_file(tmp_path, stand_in):
    stand_in(curve_of(tmp_path))
    tables = [
        pd.DataFrame(
            {"task": [f"task{n}"], "adapter": ["lora"], "learning_rate": [n], "chosen": True}
        )
        for n in range(6)
    ]
    cfg = settings(tmp_path)

    def add(table):
        with search_run.alone(tmp_path / "results/adhoc/.claims/search.json"):
            write_table(cfg, table)

    assert started([lambda t=table: add(t) for table in tables]) == [0] * 6
    written = pd.read_csv(tmp_path / "results/adhoc/search.csv")
    assert sorted(written["task"]) == [f"task{n}" for n in range(6)]


def test_a_trial_whose_worker_was_killed_is_done_by_another(tmp_path, stand_in):
    cfg = settings(tmp_path)
    stand_in(lambda rate: kill() if rate == 2e-3 else [rate])
    assert started([lambda: search(cfg)]) == [KILLED]
    done = stand_in(lambda rate: [rate])
    table = search(cfg)
    assert done == [2e-3, 4e-3] and len(table) == 3


def test_a_worker_waits_for_a_trial_that_another_is_doing(tmp_path, stand_in, monkeypatch):
    done = stand_in(lambda rate: [rate])
    cfg = settings(tmp_path)
    (plan,) = plan_studies(cfg)
    claim = Claim(tmp_path, file=storage_of(plan).claim_file(plan.key(2e-3)))
    claim.__enter__()
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        claim.__exit__(None, None, None)

    monkeypatch.setattr(search_run.time, "sleep", sleep)
    assert len(search(cfg)) == 3
    assert slept == [search_run.POLL]
    assert done == [1e-3, 4e-3, 2e-3]


def test_the_file_of_rates_is_whole_when_workers_write_it_together(tmp_path, stand_in):
    stand_in(curve_of(tmp_path))
    cfg = settings(tmp_path, "adapter=lora,condlora")
    cfg.profile = "embedded"
    assert started([lambda: search(cfg)] * 3) == [0] * 3
    rates = yaml.safe_load((tmp_path / "rates/embedded.yaml").read_text())
    assert rates == {"lora": {"rte": 1e-3}, "condlora": {"rte": 1e-3}}
