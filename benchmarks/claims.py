"""What it costs that workers divide a grid by claims: runs per hour over the number of workers.

Measured by `python scripts/benchmark.py 'measures=[claims]'`. A cell is a claim, a wait in place of the training, and a
record, so that the number of cores does not matter. For more workers than are measured the same grid is simulated with the
measured costs.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from omegaconf import DictConfig

from analysis.present.figures import save
from condlora.errors import RunTaken
from condlora.files import write_atomically
from condlora.grid.cells import plan_cells
from condlora.paths import ROOT
from condlora.runs.lease import Claim

TINY = ("backbone=tiny", "data=synthetic", "protocol=embedded", "adapter=lora", "task=rte")


@dataclass(frozen=True)
class Costs:
    """Seconds. doing: a claim, its record and its end; refused: a claim that another has; passing: a run that is done."""

    doing: float
    refused: float
    passing: float


def claims(cfg: DictConfig) -> pd.DataFrame:
    """A row for each number of workers and length of a run: seconds of the whole grid and runs per hour.

    measured: processes on this machine, with claims and records alone. simulated: with these costs. with_command:
    simulated, where each run that others do also costs what the training command takes to pass over it.
    """
    wanted = cfg.claims
    costs = measured_costs(wanted.costs_from)
    command = Costs(costs.doing, *2 * [seconds_to_pass_over(wanted.passed_over)])
    rows = [
        (n, wanted.seconds[0], "measured", measured(n, wanted.cells, wanted.seconds[0]))
        for n in wanted.workers
    ]
    for seconds in wanted.seconds:
        for n in wanted.simulated:
            for kind, of_kind in (("simulated", costs), ("with_command", command)):
                rows.append((n, seconds, kind, simulated(n, wanted.cells, seconds, of_kind)))
    table = pd.DataFrame(rows, columns=["workers", "run_seconds", "kind", "grid_seconds"])
    table["runs_per_hour"] = 3600 * wanted.cells / table["grid_seconds"]
    named = {"doing": costs.doing, "refused": costs.refused, "passing": costs.passing}
    named["passing_with_command"] = command.passing
    return table.round(3).assign(**{f"{k}_ms": round(1000 * v, 3) for k, v in named.items()})


def folder_of(place: Path, number: int) -> Path:
    return place / "grid" / "rte" / "lora" / f"seed-{number}"


def do_cell(folder: Path, seconds: float) -> bool:
    """Do a cell that is not done and that nobody has; False if there is nothing to do."""
    record = folder / "record.json"
    if record.exists():
        return False
    try:
        with Claim(folder):
            if record.exists():
                return False
            time.sleep(seconds)
            text = json.dumps({"status": "done"})
            write_atomically(record, lambda path: path.write_text(text))
            return True
    except RunTaken:
        return False


def worker(place: Path, cells: int, seconds: float) -> None:
    for number in range(cells):
        do_cell(folder_of(place, number), seconds)


def measured(workers: int, cells: int, seconds: float) -> float:
    """Seconds in which some processes, started together, do a grid."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place:
        arguments = (Path(place), cells, seconds)
        processes = [context.Process(target=worker, args=arguments) for _ in range(workers)]
        began = time.perf_counter()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        took = time.perf_counter() - began
        done = len(list(Path(place).rglob("record.json")))
    if done != cells or any(process.exitcode for process in processes):
        raise RuntimeError(f"{done} of {cells} cells were done")
    return took


def measured_costs(cells: int) -> Costs:
    """Medians over some cells, of this process alone."""

    def median(number: int, is_done: bool) -> float:
        began = time.perf_counter()
        if do_cell(folder_of(Path(place), number), 0) != is_done:
            raise RuntimeError("a cell of the benchmark was not done as planned")
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as place:
        doing = statistics.median(median(n, True) for n in range(cells))
        passing = statistics.median(median(n, False) for n in range(cells))
        with ExitStack() as stack:
            for n in range(cells, 2 * cells):
                stack.enter_context(Claim(folder_of(Path(place), n)))
            refused = statistics.median(median(n, False) for n in range(cells, 2 * cells))
    return Costs(doing, refused, passing)


def seconds_to_pass_over(runs: int) -> float:
    """CPU seconds in which the training command finds that another process is doing a run, without its own start."""

    def took(seeds: range) -> float:
        words = (*TINY, f"runs={place}", "wait=false", f"seed={','.join(map(str, seeds))}")
        with ExitStack() as stack:
            for cell in plan_cells(words):
                stack.enter_context(Claim(cell.folder))
            command = [sys.executable, str(ROOT / "scripts/train.py"), *words]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    with tempfile.TemporaryDirectory() as place:
        return max(0.0, took(range(2, 2 + 2 * runs)) - took(range(2, 2 + runs))) / runs


def simulated(workers: int, cells: int, seconds: float, costs: Costs) -> float:
    """Seconds until a grid is done, if the disk does one claim after the other and each worker begins at the first run."""
    ends = [None] * cells  # of each cell, when it is done
    disk_is_free = 0.0
    queue = [(0.0, number, 0) for number in range(workers)]  # when, who, and the cell it looks at
    while queue:
        now, who, cell = heapq.heappop(queue)
        if ends[cell] is None:
            disk_is_free = max(now, disk_is_free) + costs.doing
            ends[cell] = now = disk_is_free + seconds
        else:
            now += costs.passing if ends[cell] <= now else costs.refused
        if cell + 1 < cells:
            heapq.heappush(queue, (now, who, cell + 1))
    return max(ends)


def draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Speed-up over one worker by the number of workers; the paths of the figure."""
    fig, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
    kinds = {"simulated": "-", "with_command": "--", "measured": "o"}
    for number, (seconds, rows) in enumerate(table.groupby("run_seconds")):
        one = rows[(rows["kind"] == "simulated") & (rows["workers"] == 1)]["grid_seconds"].item()
        for kind, style in kinds.items():
            part = rows[rows["kind"] == kind].sort_values("workers")
            if len(part):
                label = f"{seconds:g} s a run, {kind.replace('_', ' ')}"
                speeds = one / part["grid_seconds"]
                ax.plot(part["workers"], speeds, style, color=f"C{number}", label=label)
    most = table["workers"].max()
    ax.plot([1, most], [1, most], color="0.6", linewidth=0.8, label="one for each worker")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xlabel("workers")
    ax.set_ylabel("speed over one worker")
    ax.legend(fontsize=7)
    drawn = ["workers", "run_seconds", "kind", "grid_seconds", "runs_per_hour"]
    return save(fig, folder / "claims_over_workers", table[drawn])
