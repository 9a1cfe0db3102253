"""Time what the project promises: `python scripts/benchmark.py`, see configs/benchmark.yaml.

One row a figure, with its limit, machine and commit (`training` and `growth` have tables of their own); timings are not
tests, a busy machine misses limits.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from benchmark_adapter import memory, step
from benchmark_analysis import analysis, controls
from benchmark_checkpoints import checkpoints
from benchmark_training import growth, training
from omegaconf import DictConfig

from condlora.commands.cli import command
from condlora.runs.environment import ROOT, environment


def tests(_: DictConfig) -> dict[str, float]:
    """Wall seconds of the whole test suite."""
    return run([["-m", "pytest", str(ROOT / "tests")]])


def embedded(_: DictConfig) -> dict[str, float]:
    """Wall seconds and peak memory of the embedded profile with its analysis, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["profile=embedded", f"runs={folder}/runs"]
        train = [str(ROOT / "scripts/train.py"), *words]
        report = [str(ROOT / "analysis/report.py"), *words, f"results={folder}/results"]
        return run([train, report])


def run(commands: list[list[str]]) -> dict[str, float]:
    started = time.perf_counter()
    for words in commands:
        subprocess.run([sys.executable, *words], check=True, cwd=ROOT)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    return {"wall_seconds": time.perf_counter() - started, "memory_mib": peak}


def spread(value: float | list[float]) -> dict[str, float]:
    """A figure as it is; of a list the first, with the quartiles of the others, which were measured one by one."""
    if not isinstance(value, list):
        return {"value": round(value, 4)}
    low, high = np.percentile(value[1:], [25, 75]).round(4)
    return {"value": round(value[0], 4), "low": low, "high": high, "n": len(value) - 1}


def figures(cfg: DictConfig, measure: str, found: dict) -> pd.DataFrame:
    """One row a figure, beside its limit."""
    return pd.DataFrame(
        {"measure": measure, "figure": name, **spread(value), "limit": limit(cfg, measure, name)}
        for name, value in found.items()
    )


def limit(cfg: DictConfig, measure: str, figure: str) -> float | None:
    """The goal for a figure, by its last word."""
    return next((v for key, v in cfg.limits[measure].items() if figure.endswith(key)), None)


MEASURES = (
    analysis, controls, step, memory, training, growth, checkpoints, tests, embedded,
)  # fmt: skip


@command("benchmark")
def main(cfg: DictConfig) -> None:
    where = environment()
    about = {"processor": where["processor"], "torch": where["versions"]["torch"]}
    about |= {"commit": where["commit"], "dirty": where["dirty"]}
    measures = {measure.__name__: measure for measure in MEASURES}
    for name in cfg.measures:
        found = measures[name](cfg)
        table = found if isinstance(found, pd.DataFrame) else figures(cfg, name, found)
        table = table.assign(**about)
        path = Path(cfg.results) / "benchmark" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
        print(table.drop(columns=list(about)).to_string(index=False), f"\n{path}")


if __name__ == "__main__":
    main()
