"""The search of a profile: all studies, in this process or in several."""

from __future__ import annotations

import functools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pandas as pd
import torch
from omegaconf import DictConfig

from condlora.grid.workers import call_in_worker, leave_with_parent
from condlora.search.files import choose, write_rates, write_table
from condlora.search.studies import plan_studies, run_study


def search(cfg: DictConfig) -> pd.DataFrame:
    """Do the trials that are missing, write all to `<results>/<profile>/search.csv` and return those of this search.

    One row a trial, see `condlora.search.trials.row`, and `chosen`: the rate with the study's best score, the lower one
    of equals. The file keeps the studies that are not part of this search. Where it does not exist yet, these are taken
    from `<results>/reference/<profile>/search.csv`. The chosen rates of all its studies go to the profile's file of
    rates, see `condlora.search.files.write_rates`.

    Raises:
        ConfigError: the protocol validates on the test set, the file of rates cannot be written, or the profile that
            `around` names has no rate for a study.
        UserError: a run failed for another reason than its rate; a diverged or undefined trial is recorded and not chosen.
    """
    studies = plan_studies(cfg)
    if cfg.jobs == 1:
        tables = [run_study(plan) for plan in studies]
    else:  # a new process for each study, which frees the memory that the study before it used
        spawn, jobs = get_context("spawn"), min(cfg.jobs, len(studies))
        with ProcessPoolExecutor(
            jobs,
            mp_context=spawn,
            initializer=begin_worker,
            initargs=(jobs,),
            max_tasks_per_child=1,
        ) as pool:
            tables = list(pool.map(functools.partial(call_in_worker, run_study), studies))
    table = pd.concat([choose(table) for table in tables], ignore_index=True)
    written = write_table(cfg, table)
    if cfg.profile != "adhoc":  # which reads none
        write_rates(cfg, written)
    return table


def begin_worker(jobs: int) -> None:
    """Share the cores among `jobs` processes: with all cores in each process, a trial took four times as long."""
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    leave_with_parent()
