"""What a search writes: the table of all trials, and the file of chosen rates that a profile reads."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd
import yaml
from omegaconf import DictConfig, OmegaConf

from condlora.errors import ConfigError
from condlora.files import write_atomically
from condlora.paths import CONFIGS, IS_CHECKOUT

STUDY = ["task", "adapter"]


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """One study's table with the column `chosen`; none is where every trial failed."""
    by_rate = table["validation_score"].astype(float).groupby(table["learning_rate"])
    scores = by_rate.mean().where(by_rate.count() == by_rate.size())  # a failed seed fails the rate
    best = scores[scores == scores.max()].index.min()
    return table.assign(chosen=table["learning_rate"] == best)


def write_table(cfg: DictConfig, table: pd.DataFrame) -> pd.DataFrame:
    """Write a search's table to `<results>/<profile>/search.csv`, after the studies of other searches; returns both."""
    path = Path(cfg.results) / cfg.profile / "search.csv"
    reference = Path(cfg.results) / "reference" / cfg.profile / "search.csv"
    others = studies_of_others(table, path if path.exists() else reference)
    written = pd.concat([others, table], ignore_index=True)
    write_atomically(path, lambda path: written.to_csv(path, index=False))
    return written


def studies_of_others(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows of a search's file that are of other tasks and methods than a table's."""
    if not path.exists():
        return table.iloc[:0]
    before = pd.read_csv(path)
    same = pd.MultiIndex.from_frame(before[STUDY]).isin(pd.MultiIndex.from_frame(table[STUDY]))
    return before[~same]


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
