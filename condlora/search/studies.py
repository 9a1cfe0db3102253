"""The studies of a profile, and the trials that each of them does, stage by stage."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pandas as pd
import yaml
from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from condlora.errors import ConfigError, RunTaken
from condlora.grid.cells import compose_cells
from condlora.runs.lease import Claim, living_owner
from condlora.runs.recipe import recipe_hash
from condlora.runs.record import run_folder
from condlora.search.files import rates_file
from condlora.search.rules import Scores, best_rate, beyond_edge, next_rate, value_of
from condlora.search.storage import Key, Known, Trials
from condlora.search.trials import key_of_cell, row, run_trials
from condlora.training.device import fleet_size


@dataclass(frozen=True)
class Plan:
    """One study: a cell of the profile with the search's own seed, the rates to begin with, and the rule for more.

    repeats: seeds of each rate, from the cell's on. further, extend, refine: see `condlora.search`.
    keys: those of its trials that were asked for.
    """

    cell: DictConfig
    first: list[float]
    further: int = 0
    repeats: int = 1
    extend: int = 0
    refine: bool = False
    keys: dict[tuple[float, int], Key] = field(default_factory=dict, compare=False)

    def trial(self, rate: float, repeat: int = 0) -> DictConfig:
        """The config of a trial of a rate."""
        cell = copy.deepcopy(self.cell)
        cell.protocol.learning_rate = rate
        cell.seed += repeat
        return cell

    def each(self, rates: list[float]) -> list[tuple[float, int]]:
        """All trials of some rates, each as its rate and repeat."""
        return [(rate, repeat) for rate in rates for repeat in range(self.repeats)]

    def key(self, rate: float, repeat: int = 0) -> Key:
        """What a trial is known by."""
        if (rate, repeat) not in self.keys:  # resolving a recipe takes milliseconds
            self.keys[rate, repeat] = key_of_cell(self.trial(rate, repeat))
        return self.keys[rate, repeat]

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


def standing(plan: Plan, known: Known) -> tuple[pd.DataFrame, dict[Key, DictConfig]]:
    """What follows from the trials so far: the table, and the trials that the current stage lacks.

    Each stage waits for those before it. With no trial missing the study is complete and the table whole, in order of
    the rates.
    """
    scores: Scores = {}
    rows: list[dict] = []
    for stage, rates in plan.stages(scores):
        cells = {plan.key(rate, repeat): (rate, repeat) for rate, repeat in plan.each(rates)}
        missing = {key: plan.trial(*which) for key, which in cells.items() if key not in known}
        if missing:
            return pd.DataFrame(rows), missing
        trials = [known[key] for key in cells]
        for rate in rates:
            scores[rate] = mean_score([t for t in trials if t.params["learning_rate"] == rate])
        rows += [row(trial) | {"stage": stage} for trial in trials]
    return pd.DataFrame(rows).sort_values(["learning_rate", "seed"]), {}


def free_trials(plan: Plan, missing: dict[Key, DictConfig]) -> dict[Key, DictConfig]:
    """Those of some trials that no worker is doing."""
    trials, free = storage_of(plan), {}
    for key, cell in missing.items():
        folder = run_folder(cell)
        if not living_owner(folder) and not living_owner(folder, file=trials.claim_file(key)):
            free[key] = cell
    return free


def work_on(plan: Plan) -> None:
    """Do trials of a study until it is complete, or until all that its current stage lacks are done by other workers.

    Trials of a stage are trained jointly where `runtime.fleet` says so.
    """
    trials, limit = storage_of(plan), fleet_size(plan.cell)
    known = trials.known()
    while missing := standing(plan, known)[1]:
        with ExitStack() as stack:
            ours: dict[Key, DictConfig] = {}
            for key, cell in missing.items():
                if len(ours) == limit:
                    break
                with contextlib.suppress(RunTaken):
                    stack.enter_context(Claim(run_folder(cell), file=trials.claim_file(key)))
                    ours[key] = cell
            before, known = known, trials.known()  # a trial may have ended before it was claimed
            done = run_trials({key: cell for key, cell in ours.items() if key not in known})
            if done:
                known = trials.enter(done)
        if known.keys() == before.keys():
            return


def storage_of(plan: Plan) -> Trials:
    """The storage of the plan's trials.

    A plan with other rates, other stages or another protocol is another study of the same storage.
    """
    identity = {
        "seed": plan.cell.seed,
        "trials": [plan.key(rate)[0] for rate in plan.first],
        "further": plan.further,
    }
    rule = {"repeats": plan.repeats, "extend": plan.extend, "refine": plan.refine}
    if rule != {"repeats": 1, "extend": 0, "refine": False}:  # studies from before keep their name
        identity |= rule
    return Trials(plan.cell, recipe_hash(identity))


def mean_score(trials: list[FrozenTrial]) -> float | None:
    """Of a rate's trials; None where one failed."""
    values = [trial.value for trial in trials]
    return None if None in values else statistics.fmean(values)
