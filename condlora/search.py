"""The learning rate of each task and method of a profile, chosen on validation.

A study is one task and method, a trial one rate: a run of `condlora.training.run` like any other, kept under
`<runs>/search`. Every study has the same number of trials, so all methods get the same budget: first the same few
rates, then, where the settings ask for more, each where those before it point (`next_rate`), since the best rates of
methods lie far apart. Nothing is random: a search that was killed comes to the same trials when it is started again.

What picks the rate is the run's curve, which is on the held-out part of the training set. The scores on the
test set, which each run records too, are not read, and a trial whose test score is undefined is as good as
any.

Optuna keeps the trials, each study in a file of its own (SQLite), so that studies may run side by side. A trial
is entered in one write when its run has ended: a kill leaves none half done.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context, parent_process
from pathlib import Path

import optuna
import pandas as pd
import torch
from omegaconf import DictConfig
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from condlora.errors import ConfigError, DivergedError, UndefinedScore
from condlora.files import write_atomically
from condlora.grid.cells import compose_cells
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import read_record, run_folder
from condlora.training import run as finetune
from condlora.training.bars import say
from condlora.training.device import fleet_size

STUDY = ["task", "adapter"]
GRACE = 30.0  # seconds for a run to write its checkpoint


def search(cfg: DictConfig) -> pd.DataFrame:
    """Do the trials that are missing, write them to `<results>/<profile>/search.csv` and return them.

    One row a trial, see `row`, and `chosen`: the rate with the study's best score, the lower one of equals. The
    file keeps the studies that this search has none of.

    Raises:
        ConfigError: the protocol validates on the test set.
        UserError: what any run can meet; a diverged or undefined trial is recorded and loses.
    """
    studies = plan_studies(cfg)
    if cfg.jobs == 1:
        tables = [run_study(plan) for plan in studies]
    else:  # a fresh process a study: one that has seen several tasks keeps the memory of all
        spawn, jobs = get_context("spawn"), min(cfg.jobs, len(studies))
        with ProcessPoolExecutor(
            jobs,
            mp_context=spawn,
            initializer=begin_worker,
            initargs=(jobs,),
            max_tasks_per_child=1,
        ) as pool:
            tables = list(pool.map(run_study, studies))
    table = pd.concat([choose(table) for table in tables], ignore_index=True)
    path = Path(cfg.results) / cfg.profile / "search.csv"
    written = pd.concat([studies_beside(table, path), table], ignore_index=True)
    write_atomically(path, lambda path: written.to_csv(path, index=False))
    return table


def begin_worker(jobs: int) -> None:
    """Share the cores among so many processes: with all of them in each, a trial took four times as long."""
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    leave_with_parent()


def leave_with_parent() -> None:
    """Have this process end, with a checkpoint, when the one that started it does: killed, that could not tell it."""

    def watch() -> None:
        parent_process().join()
        for _ in range(2):  # the first asks a run to end, the second ends whatever is not one
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE)

    threading.Thread(target=watch, daemon=True).start()


def studies_beside(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows of a search's file that are of other tasks and methods than a table's."""
    if not path.exists():
        return table.iloc[:0]
    before = pd.read_csv(path)
    same = pd.MultiIndex.from_frame(before[STUDY]).isin(pd.MultiIndex.from_frame(table[STUDY]))
    return before[~same]


@dataclass(frozen=True)
class Plan:
    """One study: a cell of the profile with the search's own seed, the rates to begin with, and how many more."""

    cell: DictConfig
    first: list[float]
    further: int

    def trial(self, rate: float) -> DictConfig:
        """The config of the trial of a rate."""
        cell = copy.deepcopy(self.cell)
        cell.protocol.learning_rate = rate
        return cell


def plan_studies(cfg: DictConfig) -> list[Plan]:
    """A study for each task and method of the profile.

    Raises:
        ConfigError: the protocol validates on the test set, which a search must not see.
    """
    cells = compose_cells(
        (
            f"profile={cfg.profile}",
            *cfg.overrides,
            f"seed={cfg.seed}",  # in place of the profile's
            f"runs={cfg.runs}/search/lr-${{protocol.learning_rate}}",
        )
    )
    for cell in cells:
        if cell.protocol.validation == "test":
            raise ConfigError(
                f"The protocol {cell.protocol.name!r} validates on the test set, which a search must not see: "
                "choose one with protocol.validation=tenth_of_train."
            )
    return [Plan(cell, sorted(cfg.learning_rates), cfg.further) for cell in cells]


def run_study(plan: Plan) -> pd.DataFrame:
    """Do the trials that the study's storage lacks; all of them as a table, in order of the rates.

    The first ones are trained together where `runtime.fleet` says so; each further one waits for those before it.
    """
    first = [plan.trial(rate) for rate in plan.first]
    study, known = open_study(plan.cell, [digest_of(cell) for cell in first], plan.further)
    fleet = fleet_size(plan.cell)
    while (number := len(study.trials)) < len(first) + plan.further:
        scores = {trial.params["learning_rate"]: trial.value for trial in study.trials}
        cells = first[number : number + fleet] or [plan.trial(next_rate(scores))]
        trials = {(digest_of(cell), cell.seed): cell for cell in cells}
        known |= run_trials({key: cell for key, cell in trials.items() if key not in known})
        for key in trials:
            study.add_trial(known[key])
    return pd.DataFrame([row(trial) for trial in study.trials]).sort_values("learning_rate")


def digest_of(cell: DictConfig) -> str:
    """The hash of a trial's recipe."""
    return recipe_hash(recipe(cell))


def next_rate(scores: dict[float, float | None]) -> float:
    """The rate to try after these, of two digits; a score is None where the trial failed.

    Beyond the best, as far as its neighbour is, where it is the lowest or highest yet; else in the middle, by ratio, of the
    wider gap beside it, or of the one on the side of the better score. Where all failed: below them, then above.
    """
    rates = sorted(scores)
    value = {rate: -math.inf if scores[rate] is None else scores[rate] for rate in rates}
    best = max(rates, key=lambda rate: (value[rate], -rate))
    at = rates.index(best)  # of all that failed the lowest
    if value[best] == -math.inf and len(rates) % 2 == 0:
        at = len(rates) - 1
    if at == 0:
        found = rates[0] ** 2 / rates[1]
    elif at == len(rates) - 1:
        found = rates[-1] ** 2 / rates[-2]
    else:
        beside = max(
            (rates[at - 1], rates[at + 1]),
            key=lambda rate: (round(abs(math.log(rate / best)), 1), value[rate]),
        )
        found = math.sqrt(best * beside)
    return float(f"{found:.2g}")


Known = dict[tuple[str, int], FrozenTrial]


def open_study(cell: DictConfig, digests: list[str], further: int) -> tuple[optuna.Study, Known]:
    """The study that begins with these recipes and this seed, and the trials of all studies by recipe and seed.

    Other rates or another protocol make another study, to which the trials that they share are copied.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(cell.runs).parent
    folder.mkdir(parents=True, exist_ok=True)
    name = recipe_hash({"seed": cell.seed, "trials": digests, "further": further})
    file = f"{cell.profile.name}-{cell.task.name}-{cell.adapter.name}.db"
    storage = f"sqlite:///{folder / file}"
    study = optuna.create_study(
        study_name=name, storage=storage, direction="maximize", load_if_exists=True
    )
    known = {
        (trial.user_attrs["recipe_hash"], trial.user_attrs["seed"]): trial
        for other in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=other, storage=storage).trials
    }
    return study, known


def run_trials(trials: dict[tuple[str, int], DictConfig]) -> Known:
    """Fine-tune each with its rate: a complete trial with its validation score, or a failed one with the reason."""
    with contextlib.redirect_stdout(io.StringIO()):  # a run's last line is its test score
        outcomes = finetune.run_together(list(trials.values()))
    return {
        key: ended_trial(cell, key[0], outcome)
        for (key, cell), outcome in zip(trials.items(), outcomes, strict=True)
    }


def ended_trial(cell: DictConfig, digest: str, outcome: dict | Exception) -> FrozenTrial:
    """The trial of a run, from its record and curve.

    Raises:
        UserError: the run ended for another reason than its rate.
    """
    rate, name = cell.protocol.learning_rate, f"{cell.task.name} {cell.adapter.name}"
    value, reason = None, None
    try:
        value = validation_score(cell, outcome)
        say(f"{name} {rate:g}: validation {cell.task.headline} {value:.3f}")
    except (DivergedError, UndefinedScore) as error:
        reason = str(error)
        say(f"{name} {rate:g}: {reason}")
    record = read_record(run_folder(cell))
    started, finished = (
        datetime.fromisoformat(record[key]) for key in ("started_at", "finished_at")
    )
    return create_trial(
        state=TrialState.FAIL if value is None else TrialState.COMPLETE,
        value=value,
        params={"learning_rate": rate},
        distributions={"learning_rate": FloatDistribution(rate, rate, log=True)},
        user_attrs={
            "task": cell.task.name,
            "adapter": cell.adapter.name,
            "metric": cell.task.headline,
            "steps": record.get("steps"),
            "seed": cell.seed,
            "seconds": (finished - started).total_seconds(),
            "recipe_hash": digest,
            "reason": reason,
        },
    )


def validation_score(cell: DictConfig, outcome: dict | Exception) -> float:
    """The headline metric on validation of the checkpoint that the run keeps, from the run's curve.

    Raises:
        DivergedError: the loss was not finite.
        UndefinedScore: the metric had no value on validation.
    """
    if isinstance(outcome, Exception) and not isinstance(outcome, UndefinedScore):
        raise outcome
    # One that is undefined may be so on validation or on the test set alone: the curve tells.
    curve = pd.read_csv(run_folder(cell) / "curve.csv")[cell.task.headline]
    value = curve.max() if cell.protocol.select == "best" else curve.iloc[-1]
    if math.isnan(value):
        raise outcome
    return float(value)


def row(trial: FrozenTrial) -> dict:
    """A trial as a line of the table; scores are fractions, times seconds of wall clock."""
    facts = trial.user_attrs
    return {
        "task": facts["task"],
        "adapter": facts["adapter"],
        "learning_rate": trial.params["learning_rate"],
        "state": trial.state.name.lower(),
        "metric": facts["metric"],
        "validation_score": trial.value,
        **{key: facts[key] for key in ("steps", "seed", "seconds", "recipe_hash", "reason")},
    }


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """One study's table with the column `chosen`; none is where every trial failed."""
    scores = table["validation_score"].astype(float)
    best = table[scores == scores.max()]["learning_rate"].min()
    return table.assign(chosen=table["learning_rate"] == best)
