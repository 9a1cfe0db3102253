"""One trial: a run with a rate and a seed, its score on validation, and its entry in the study's storage."""

from __future__ import annotations

import contextlib
import io
import math
from datetime import datetime

import pandas as pd
from omegaconf import DictConfig
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from condlora.errors import DivergedError, RunTaken, UndefinedScore
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import read_record, run_folder
from condlora.search.storage import Key, Known
from condlora.training import run as finetune
from condlora.training.bars import say


def key_of_cell(cell: DictConfig) -> Key:
    return recipe_hash(recipe(cell)), cell.seed


def run_trials(trials: dict[Key, DictConfig]) -> Known:
    """Fine-tune each with its rate: a complete trial with its validation score, or a failed one with the reason.

    A run that another process is doing is left out.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # a run's last line is its test score
        outcomes = finetune.run_together(list(trials.values()))
    return {
        key: ended_trial(cell, key[0], outcome)
        for (key, cell), outcome in zip(trials.items(), outcomes, strict=True)
        if not isinstance(outcome, RunTaken)
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
