"""The studies of a profile, and the trials that each of them does, stage by stage."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
import yaml
from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from condlora.errors import ConfigError
from condlora.grid.cells import compose_cells
from condlora.runs.recipe import recipe_hash
from condlora.search.files import rates_file
from condlora.search.rules import Scores, best_rate, beyond_edge, next_rate, value_of
from condlora.search.trials import Known, key_of, key_of_cell, row, run_trials
from condlora.training.device import fleet_size


@dataclass(frozen=True)
class Plan:
    """One study: a cell of the profile with the search's own seed, the rates to begin with, and the rule for more.

    repeats: seeds of each rate, from the cell's on. further, extend, refine: see `condlora.search`.
    """

    cell: DictConfig
    first: list[float]
    further: int = 0
    repeats: int = 1
    extend: int = 0
    refine: bool = False

    def trial(self, rate: float, repeat: int = 0) -> DictConfig:
        """The config of a trial of a rate."""
        cell = copy.deepcopy(self.cell)
        cell.protocol.learning_rate = rate
        cell.seed += repeat
        return cell

    def trials(self, rates: list[float]) -> list[DictConfig]:
        """The configs of all trials of some rates."""
        return [self.trial(rate, repeat) for rate in rates for repeat in range(self.repeats)]

    def stages(self, scores: Scores) -> Iterator[tuple[str, list[float]]]:
        """The rates to try, stage by stage; before each next one, `scores` has those of all before."""
        yield "first", self.first
        for _ in range(self.further):
            yield "further", [next_rate(scores)]
        while rate := beyond_edge(scores, self.first, self.extend):
            yield "extended", [rate]
        if self.refine and math.isfinite(value_of(scores, best_rate(scores))):
            best = best_rate(scores)
            yield "refined", [float(f"{best * 2**power:.3g}") for power in (-0.5, 0.5)]


def plan_studies(cfg: DictConfig) -> list[Plan]:
    """A study for each task and method of the profile.

    Raises:
        ConfigError: the protocol validates on the test set, which a search must not see; or `around` has no rate.
    """
    words = (
        f"profile={cfg.profile}",
        *cfg.overrides,
        f"seed={cfg.seed}",
    )  # not the profile's seeds
    cells = copy.deepcopy(compose_cells(words))
    for cell in cells:
        # Not an override, whose grammar not every path fits.
        cell.runs = f"{cfg.runs}/search/lr-${{protocol.learning_rate}}"
        if cell.protocol.validation == "test":
            raise ConfigError(
                f"The protocol {cell.protocol.name!r} validates on the test set, which a search must not see: "
                "choose one with protocol.validation=tenth_of_train."
            )
    rule = {name: cfg[name] for name in ("further", "repeats", "extend", "refine")}
    return [Plan(cell, first_rates(cfg, cell), **rule) for cell in cells]


def first_rates(cfg: DictConfig, cell: DictConfig) -> list[float]:
    """The rates that a study begins with, ascending: the settings', or those around the rate of another profile's search.

    Raises:
        ConfigError: that profile has no rate for the task and the method.
    """
    if not cfg.around:
        return sorted(cfg.learning_rates)
    path = rates_file(cfg, cfg.around)
    rates = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    center = rates.get(cell.adapter.name, {}).get(cell.task.name)
    if center is None:
        raise ConfigError(
            f"{path} has no learning rate for {cell.adapter.name} on {cell.task.name}: search the profile {cfg.around} "
            "first, or set learning_rates in place of around."
        )
    return [center / 2, center, 2 * center]


def run_study(plan: Plan) -> pd.DataFrame:
    """Do the trials that the study's storage lacks; all of them as a table, in order of the rates.

    Those of a stage are trained together where `runtime.fleet` says so; each stage waits for those before it.
    """
    study, known = open_study(plan)
    fleet = fleet_size(plan.cell)
    scores: Scores = {}
    rows = []
    for stage, rates in plan.stages(scores):
        cells = plan.trials(rates)
        found = {key_of(trial): trial for trial in study.trials}
        missing = [cell for cell in cells if key_of_cell(cell) not in found]
        for start in range(0, len(missing), fleet):
            part = {key_of_cell(cell): cell for cell in missing[start : start + fleet]}
            known |= run_trials({key: cell for key, cell in part.items() if key not in known})
            for key in part:
                study.add_trial(known[key])
                found[key] = known[key]
        trials = [found[key_of_cell(cell)] for cell in cells]
        for rate in rates:
            scores[rate] = mean_score([t for t in trials if t.params["learning_rate"] == rate])
        rows += [row(trial) | {"stage": stage} for trial in trials]
    return pd.DataFrame(rows).sort_values(["learning_rate", "seed"])


def open_study(plan: Plan) -> tuple[optuna.Study, Known]:
    """The study of a plan, and the trials of all studies of its task and method, by recipe and seed.

    A plan with other rates, other stages or another protocol is another study. Trials that both have are copied to it.
    """
    cell = plan.cell
    identity = {
        "seed": cell.seed,
        "trials": [key_of_cell(plan.trial(rate))[0] for rate in plan.first],
        "further": plan.further,
    }
    rule = {"repeats": plan.repeats, "extend": plan.extend, "refine": plan.refine}
    if rule != {"repeats": 1, "extend": 0, "refine": False}:  # studies from before keep their name
        identity |= rule
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(cell.runs).parent
    folder.mkdir(parents=True, exist_ok=True)
    name = recipe_hash(identity)
    file = f"{cell.profile.name}-{cell.task.name}-{cell.adapter.name}.db"
    storage = f"sqlite:///{folder / file}"
    study = optuna.create_study(
        study_name=name, storage=storage, direction="maximize", load_if_exists=True
    )
    known = {
        key_of(trial): trial
        for other in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=other, storage=storage).trials
    }
    return study, known


def mean_score(trials: list[FrozenTrial]) -> float | None:
    """Of a rate's trials; None where one failed."""
    values = [trial.value for trial in trials]
    return None if None in values else statistics.fmean(values)
