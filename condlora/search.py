"""The learning rate of each task and method of a profile, chosen on validation.

A study is one task and method, a trial one rate and seed: a run of `condlora.training.run` like any other, kept under
`<runs>/search`. A rate's score is the mean over its seeds. Every study follows one rule: first the same few rates, or
with `around` the rate that another profile's search chose, half of it and twice it; then, where the settings ask for it, `further` rates, each where those before it point (`next_rate`), since the best rates of
methods lie far apart; then rates beyond the lowest or highest one as long as that is the best (`extend`); then the two
rates next to the best by a factor of sqrt 2 (`refine`). Nothing is random: a search that was killed comes to the same
trials when it is started again.

The chosen rates are written to `configs/rates/<profile>.yaml`, which a profile reads with the entry
`- optional /rates: <profile>` in its defaults.

What picks the rate is the run's curve, which is on the held-out part of the training set. The scores on the
test set, which each run records too, are not read, and a trial whose test score is undefined is as good as
any.

Optuna keeps the trials, each study in a file of its own (SQLite), so that studies may run side by side. A trial
is entered in one write when its run has ended: a kill leaves none half done.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import math
import shlex
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

import optuna
import pandas as pd
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from condlora.errors import ConfigError, DivergedError, UndefinedScore
from condlora.files import write_atomically
from condlora.grid.cells import compose_cells
from condlora.grid.workers import call_in_worker, leave_with_parent
from condlora.paths import CONFIGS, IS_CHECKOUT
from condlora.runs.recipe import recipe, recipe_hash
from condlora.runs.record import read_record, run_folder
from condlora.training import run as finetune
from condlora.training.bars import say
from condlora.training.device import fleet_size

STUDY = ["task", "adapter"]


def search(cfg: DictConfig) -> pd.DataFrame:
    """Do the trials that are missing, write them to `<results>/<profile>/search.csv` and return them.

    One row a trial, see `row`, and `chosen`: the rate with the study's best score, the lower one of equals. The
    file keeps the studies that this search has none of, at first those of `<results>/reference/<profile>/search.csv`.
    The chosen rates of all its studies go to the profile's file of rates, see `write_rates`.

    Raises:
        ConfigError: the protocol validates on the test set, the file of rates cannot be written, or the profile that
            `around` names has no rate for a study.
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
            tables = list(pool.map(functools.partial(call_in_worker, run_study), studies))
    table = pd.concat([choose(table) for table in tables], ignore_index=True)
    path = Path(cfg.results) / cfg.profile / "search.csv"
    reference = Path(cfg.results) / "reference" / cfg.profile / "search.csv"
    others = studies_of_others(table, path if path.exists() else reference)
    written = pd.concat([others, table], ignore_index=True)
    write_atomically(path, lambda path: written.to_csv(path, index=False))
    if cfg.profile != "adhoc":  # which reads none
        write_rates(cfg, written)
    return table


def rates_file(cfg: DictConfig, profile: str | None = None) -> Path:
    """Where the chosen rates of a search go; `profile`: another one than the search's own."""
    return Path(cfg.rates or CONFIGS / "rates") / f"{profile or cfg.profile}.yaml"


def write_rates(cfg: DictConfig, table: pd.DataFrame) -> None:
    """Write the chosen rates of a search's table for the profile to read.

    Raises:
        ConfigError: the folder is that of an installed package, or cannot be written to.
    """
    if cfg.rates is None and not IS_CHECKOUT:
        raise ConfigError(
            "The chosen rates are not written into an installed package: set rates=FOLDER and run the same command again; "
            "finished trials are kept."
        )
    chosen = table[table["chosen"]].drop_duplicates(STUDY)
    rates = {
        adapter: dict(zip(rows["task"], rows["learning_rate"].astype(float), strict=True))
        for adapter, rows in chosen.groupby("adapter", sort=False)
    }
    text = (
        "# @package protocol.tables.learning_rate\n"
        f"# Chosen on validation; every trial is in results/{cfg.profile}/search.csv. Written by\n"
        f"#   {command_of(cfg)}\n"
        + yaml.safe_dump(rates, sort_keys=False, default_flow_style=None, width=1000)
    )
    path = rates_file(cfg)
    try:
        write_atomically(path, lambda path: path.write_text(text))
    except OSError as error:
        raise ConfigError(
            f"The chosen rates could not be written to {path} ({error.strerror}): set rates=FOLDER to a folder that can "
            "be written to and run the same command again; finished trials are kept."
        ) from error


def command_of(cfg: DictConfig) -> str:
    """The command line of a search, without where it reads and writes."""
    rates = "around" if cfg.around else "learning_rates"
    settings = ("overrides", rates, "further", "repeats", "extend", "refine", "seed")
    values = (json.dumps(OmegaConf.to_container(cfg)[name]) for name in settings)
    words = (f"{name}={value}" for name, value in zip(settings, values, strict=True))
    return shlex.join(
        ["python", "scripts/search_learning_rate.py", f"profile={cfg.profile}", *words]
    )


def begin_worker(jobs: int) -> None:
    """Share the cores among `jobs` processes: with all cores in each process, a trial took four times as long."""
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    leave_with_parent()


def studies_of_others(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows of a search's file that are of other tasks and methods than a table's."""
    if not path.exists():
        return table.iloc[:0]
    before = pd.read_csv(path)
    same = pd.MultiIndex.from_frame(before[STUDY]).isin(pd.MultiIndex.from_frame(table[STUDY]))
    return before[~same]


@dataclass(frozen=True)
class Plan:
    """One study: a cell of the profile with the search's own seed, the rates to begin with, and the rule for more.

    repeats: seeds of each rate, from the cell's on. further, extend, refine: see the module.
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


Key = tuple[str, int]  # a trial's recipe hash and seed
Scores = dict[float, float | None]  # of each rate, None where a trial failed


def key_of(trial: FrozenTrial) -> Key:
    return trial.user_attrs["recipe_hash"], trial.user_attrs["seed"]


def key_of_cell(cell: DictConfig) -> Key:
    return recipe_hash(recipe(cell)), cell.seed


def mean_score(trials: list[FrozenTrial]) -> float | None:
    """Of a rate's trials; None where one failed."""
    values = [trial.value for trial in trials]
    return None if None in values else statistics.fmean(values)


def value_of(scores: Scores, rate: float) -> float:
    return -math.inf if scores[rate] is None else scores[rate]


def best_rate(scores: Scores) -> float:
    """The rate of the best score, of equals the lowest."""
    return max(scores, key=lambda rate: (value_of(scores, rate), -rate))


def beyond_edge(scores: Scores, first: list[float], extend: int) -> float | None:
    """Where the best rate is the lowest or the highest: the next one on that side, by the factor between the first rates.

    None where the best lies inside, no rate has a score, or there are `extend` rates on that side already.
    """
    best = best_rate(scores)
    if len(first) < 2 or not math.isfinite(value_of(scores, best)):
        return None
    if best == min(scores) and sum(rate < first[0] for rate in scores) < extend:
        return float(f"{best * first[0] / first[1]:.3g}")
    if best == max(scores) and sum(rate > first[-1] for rate in scores) < extend:
        return float(f"{best * first[-1] / first[-2]:.3g}")
    return None


def next_rate(scores: Scores) -> float:
    """The rate to try after these, of two digits; a score is None where the trial failed.

    Beyond the best, as far as its neighbour is, where it is the lowest or highest yet; else in the middle, by ratio, of the
    wider gap next to it, or of the one on the side of the better score. Where all failed: below them, then above.
    """
    rates = sorted(scores)
    value = {rate: value_of(scores, rate) for rate in rates}
    best = best_rate(scores)
    at = rates.index(best)  # of all that failed the lowest
    if value[best] == -math.inf and len(rates) % 2 == 0:
        at = len(rates) - 1
    if at == 0:
        found = rates[0] ** 2 / rates[1]
    elif at == len(rates) - 1:
        found = rates[-1] ** 2 / rates[-2]
    else:
        neighbour = max(
            (rates[at - 1], rates[at + 1]),
            key=lambda rate: (round(abs(math.log(rate / best)), 1), value[rate]),
        )
        found = math.sqrt(best * neighbour)
    return float(f"{found:.2g}")


Known = dict[Key, FrozenTrial]


def open_study(plan: Plan) -> tuple[optuna.Study, Known]:
    """The study of a plan, and the trials of all studies of its task and method by recipe and seed.

    Other rates, another rule or another protocol make another study, to which the trials that they share are copied.
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


def run_trials(trials: dict[Key, DictConfig]) -> Known:
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
    by_rate = table["validation_score"].astype(float).groupby(table["learning_rate"])
    scores = by_rate.mean().where(by_rate.count() == by_rate.size())  # a failed seed fails the rate
    best = scores[scores == scores.max()].index.min()
    return table.assign(chosen=table["learning_rate"] == best)
