"""The measures of `python scripts/benchmark.py` by name, and their tables with the limits of configs/benchmark.yaml."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from benchmarks import scaling
from benchmarks.adapter import memory, step
from benchmarks.analysis import analysis, controls
from benchmarks.checkpoints import checkpoints
from benchmarks.claims import claims, draw
from benchmarks.latency import latency
from benchmarks.learning_rates import learning_rates
from benchmarks.training import growth, training
from condlora.paths import ROOT
from condlora.runs.environment import environment


def tests(_: DictConfig) -> dict[str, float]:
    """Wall seconds of `make test`: the tests that are not marked slow, gpu or cluster."""
    return _run(
        [["-m", "pytest", "-n", "2", "-m", "not (slow or gpu or cluster)", str(ROOT / "tests")]]
    )


def embedded(_: DictConfig) -> dict[str, float]:
    """Wall seconds and peak memory of the embedded profile and its analysis, starting from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["profile=embedded", f"runs={folder}/runs"]
        train = [str(ROOT / "scripts/train.py"), *words]
        report = [str(ROOT / "analysis/report.py"), *words, f"results={folder}/results"]
        return _run([train, report])


MEASURES = {
    measure.__name__: measure
    for measure in (
        analysis, controls, step, memory, training, growth, scaling.scaling, learning_rates, latency, checkpoints,
        claims, tests, embedded,
    )
}  # fmt: skip

DRAWN = {
    "claims": draw,
    "scaling": scaling.draw,
}  # measures that are a figure as well, by a function of the table and the folder


def measure(cfg: DictConfig) -> Iterator[tuple[str, pd.DataFrame]]:
    """The table of each measure in `cfg.measures`, with the machine and commit it was measured on."""
    where = environment()
    about = {"processor": where["processor"], "torch": where["versions"]["torch"]}
    about |= {"commit": where["commit"], "dirty": where["dirty"]}
    for name in cfg.measures:
        found = MEASURES[name](cfg)
        table = found if isinstance(found, pd.DataFrame) else figures(cfg, name, found)
        yield name, table.assign(**about)


def figures(cfg: DictConfig, measure: str, found: dict[str, float | list[float]]) -> pd.DataFrame:
    """One row per figure, with the limit that configs/benchmark.yaml sets for it, if any."""
    return pd.DataFrame(
        {"measure": measure, "figure": name, **_quartiles(value), "limit": _limit(cfg, measure, name)}
        for name, value in found.items()
    )  # fmt: skip


def _run(commands: list[list[str]]) -> dict[str, float]:
    started = time.perf_counter()
    for words in commands:
        subprocess.run([sys.executable, *words], check=True, cwd=ROOT)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    return {"wall_seconds": time.perf_counter() - started, "memory_mib": peak}


def _quartiles(value: float | list[float]) -> dict[str, float]:
    """A number as it is; of a list, the first, with the quartiles of the others (repeated measurements)."""
    if not isinstance(value, list):
        return {"value": round(value, 4)}
    low, high = np.percentile(value[1:], [25, 75]).round(4)
    return {"value": round(value[0], 4), "low": low, "high": high, "n": len(value) - 1}


def _limit(cfg: DictConfig, measure: str, figure: str) -> float | None:
    """The limit whose key ends the figure's name."""
    return next((v for key, v in cfg.limits[measure].items() if figure.endswith(key)), None)
