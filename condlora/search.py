"""The learning rate of each task and method of a profile, chosen on validation.

A study is one task and method, a trial one rate: a run of `condlora.finetune` like any other, kept under
`<runs>/search`. The rates are a fixed grid. With a handful of trials that covers a range evenly, both methods
get the same rates and so the same budget, and no trial depends on another: a search that was killed comes to
the same trials when it is started again.

What picks the rate is the run's curve, which is on the held-out part of the training set. The scores on the
test set, which each run records too, are not read, and a trial whose test score is undefined is as good as
any.

Optuna keeps the trials, each study in a file of its own (SQLite), so that studies may run side by side. A trial
is entered in one write when its run has ended: a kill leaves none half done.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

import optuna
import pandas as pd
from omegaconf import DictConfig
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from condlora import finetune
from condlora.errors import ConfigError, DivergedError, UndefinedScore
from condlora.files import write_atomically
from condlora.grid import compose_cells
from condlora.progress import say
from condlora.records import read_record, recipe, recipe_hash, run_folder


def search(cfg: DictConfig) -> pd.DataFrame:
    """Do the trials that are missing, write all to `<results>/<profile>/search.csv` and return them.

    One row a trial, see `row`, and `chosen`: the rate with the study's best score, the lower one of equals.

    Raises:
        ConfigError: the protocol validates on the test set.
        UserError: what any run can meet; a diverged or undefined trial is recorded and loses.
    """
    studies = compose_studies(cfg)
    if cfg.jobs == 1:
        tables = [run_study(trials) for trials in studies]
    else:  # a fresh process a study: one that has seen several tasks keeps the memory of all
        spawn = get_context("spawn")
        with ProcessPoolExecutor(cfg.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
            tables = list(pool.map(run_study, studies))
    table = pd.concat([choose(table) for table in tables], ignore_index=True)
    path = Path(cfg.results) / cfg.profile / "search.csv"
    write_atomically(path, lambda path: table.to_csv(path, index=False))
    return table


def compose_studies(cfg: DictConfig) -> list[list[DictConfig]]:
    """The trials' configs, a list a study: a cell of the profile with each rate and the search's own seed.

    Raises:
        ConfigError: the protocol validates on the test set, which a search must not see.
    """
    rates = ",".join(f"{rate:g}" for rate in sorted(cfg.learning_rates))
    cells = compose_cells(
        (
            f"profile={cfg.profile}",
            *cfg.overrides,
            f"seed={cfg.seed}",  # in place of the profile's
            f"protocol.learning_rate={rates}",
            f"runs={cfg.runs}/search/lr-${{protocol.learning_rate}}",
        )
    )
    studies: dict[tuple[str, str], list[DictConfig]] = {}
    for cell in cells:
        if cell.protocol.validation == "test":
            raise ConfigError(
                f"The protocol {cell.protocol.name!r} validates on the test set, which a search must not see: "
                "choose one with protocol.validation=tenth_of_train."
            )
        studies.setdefault((cell.task.name, cell.adapter.name), []).append(cell)
    return list(studies.values())


def run_study(trials: list[DictConfig]) -> pd.DataFrame:
    """Do the trials that the study's storage lacks; all of them as a table, in order of the rates."""
    digests = [recipe_hash(recipe(cell)) for cell in trials]
    study, known = open_study(trials[0], digests)
    for cell, digest in zip(trials, digests, strict=True):
        if digest not in {trial.user_attrs["recipe_hash"] for trial in study.trials}:
            study.add_trial(known.get((digest, cell.seed)) or run_trial(cell, digest))
    return pd.DataFrame([row(trial) for trial in study.trials]).sort_values("learning_rate")


Known = dict[tuple[str, int], FrozenTrial]


def open_study(cell: DictConfig, digests: Iterable[str]) -> tuple[optuna.Study, Known]:
    """The study of these recipes and this seed, and the trials of all studies by recipe and seed.

    Other rates or another protocol make another study, to which the trials that they share are copied.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(cell.runs).parent
    folder.mkdir(parents=True, exist_ok=True)
    name = recipe_hash({"seed": cell.seed, "trials": list(digests)})
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


def run_trial(cell: DictConfig, digest: str) -> FrozenTrial:
    """Fine-tune with one rate: a complete trial with its validation score, or a failed one with the reason."""
    rate, name = cell.protocol.learning_rate, f"{cell.task.name} {cell.adapter.name}"
    value, reason = None, None
    try:
        value = validation_score(cell)
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


def validation_score(cell: DictConfig) -> float:
    """The headline metric on validation of the checkpoint that the run keeps, from the run's curve.

    Raises:
        DivergedError: the loss was not finite.
        UndefinedScore: the metric had no value on validation.
    """
    undefined = None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a run's last line is its test score
            finetune.run(cell)
    except UndefinedScore as error:  # on validation or on the test set: the curve tells which
        undefined = error
    curve = pd.read_csv(run_folder(cell) / "curve.csv")[cell.task.headline]
    value = curve.max() if cell.protocol.select == "best" else curve.iloc[-1]
    if math.isnan(value):
        raise undefined
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
