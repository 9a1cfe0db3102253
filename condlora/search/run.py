"""The search of a profile: all studies, shared with whatever other workers run the same search."""

from __future__ import annotations

import functools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from omegaconf import DictConfig

from condlora.errors import ConfigError
from condlora.grid.preflight import check_launcher
from condlora.grid.workers import call_in_worker, leave_with_parent
from condlora.runs.lease import alone
from condlora.search.files import choose, write_rates, write_table
from condlora.search.studies import (
    Plan,
    free_trials,
    plan_studies,
    standing,
    storage_of,
    work_on,
)
from condlora.training.bars import say
from condlora.training.distributed import processes

POLL = 2.0  # seconds between two looks at the trials of other workers


def search(cfg: DictConfig) -> pd.DataFrame:
    """Do the trials that are missing, write all to `<results>/<profile>/search.csv` and return those of this search.

    One row a trial, see `condlora.search.trials.row`, and `chosen`: the rate with the study's best score, the lower one
    of equals. The file keeps the studies that are not part of this search. Where it does not exist yet, these are taken
    from `<results>/reference/<profile>/search.csv`. The chosen rates of all its studies go to the profile's file of
    rates, see `condlora.search.files.write_rates`.

    Raises:
        ConfigError: the protocol validates on the test set, the file of rates cannot be written, the profile that
            `around` names has no rate for a study, or a launcher started several processes for one run.
        UserError: a run failed for another reason than its rate; a diverged or undefined trial is recorded and not chosen.
    """
    if processes() > 1:
        raise ConfigError(
            "torchrun and accelerate launch start several processes for one run, and trials of a search are done by one "
            "each: start the same search command as often as there are workers, or set jobs."
        )
    check_launcher(os.environ)
    tables = complete(plan_studies(cfg), cfg.jobs)
    table = pd.concat([choose(table) for table in tables], ignore_index=True)
    folder = Path(cfg.results) / cfg.profile
    with alone(folder / ".claims" / "search.json"):  # another search may be adding its studies
        written = write_table(cfg, table)
        if cfg.profile != "adhoc":  # which reads none
            write_rates(cfg, written)
    return table


def complete(studies: list[Plan], jobs: int) -> list[pd.DataFrame]:
    """Do what no other worker does until all studies are complete; their tables."""
    tables: dict[int, pd.DataFrame] = {}
    is_waiting = False
    while True:
        workable = []
        for number, plan in enumerate(studies):
            if number not in tables:
                table, missing = standing(plan, storage_of(plan).known())
                if not missing:
                    tables[number] = table
                elif free_trials(plan, missing):
                    workable.append(plan)
        if len(tables) == len(studies):
            return [tables[number] for number in range(len(studies))]
        if workable:
            work_on_all(workable, jobs)
            continue
        if not is_waiting:
            say(f"waiting for {len(studies) - len(tables)} studies, on which other workers are")
            is_waiting = True
        time.sleep(POLL)


def work_on_all(studies: list[Plan], jobs: int) -> None:
    """Work on each study, in this process or in `jobs` at a time."""
    if jobs == 1:
        for plan in studies:
            work_on(plan)
        return
    jobs = min(jobs, len(studies))
    # A new process for each study frees the memory that the study before it used.
    with ProcessPoolExecutor(
        jobs,
        mp_context=get_context("spawn"),
        initializer=begin_worker,
        initargs=(jobs,),
        max_tasks_per_child=1,
    ) as pool:
        list(pool.map(functools.partial(call_in_worker, work_on), studies))


def begin_worker(jobs: int) -> None:
    """Share the cores among `jobs` processes: with all cores in each process, a trial took four times as long."""
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    leave_with_parent()
