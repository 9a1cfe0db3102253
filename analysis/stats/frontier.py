"""Mean score of each method against its parameters, training time and memory, from records."""

import numpy as np
import pandas as pd

from analysis.stats.significance import UNDEFINED_INTERVAL, summarise, t_interval
from analysis.study.costs import costs as costs_of_runs
from analysis.study.costs import speed_ratios
from analysis.study.names import REFERENCE, TASKS, adapter_order, label, task_order
from analysis.study.scores import AVERAGE, scores
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import Cell

BESIDE = (REFERENCE, "condlora")  # whose scores the others' are compared with: the paper's two


def frontier(cells: list[Cell], confidence: float) -> tuple[pd.DataFrame, list[str]]:
    """A row a method, fewest parameters first, and the sentences that belong to them.

    Columns: method, parameters; score, sd, n, low, high: mean over tasks in points, over seeds, with Student's
    interval; less_lora, less_condlora, each with _low and _high: the same of its difference from their score of the same
    seed; time: training time over LoRA's, mean over pairs that were timed alike; memory_mib: the largest run's;
    on_frontier.

    Raises NoFinishedRuns where no seed has every task.
    """
    runs = scores(cells)
    runs = runs[runs.task != AVERAGE]
    done = {method: set(zip(own.task, own.seed, strict=True)) for method, own in runs.groupby("adapter")}  # fmt: skip
    wanted = done[REFERENCE] if REFERENCE in done else max(done.values(), key=len)
    wanted = _whole_seeds(wanted)
    kept = sorted((m for m in done if done[m] >= wanted), key=adapter_order)
    pairs = pd.MultiIndex.from_frame(runs[["task", "seed"]])
    shared = runs[runs.adapter.isin(kept) & pairs.isin(wanted)]
    means = shared.pivot_table("score_points", "seed", "adapter", aggfunc="mean")
    costs = costs_of_runs(cells)
    speed = speed_ratios(costs, "train_examples_per_second")
    if not wanted:
        raise NoFinishedRuns(
            "No seed has a finished run of every task: finish one, then draw the frontier."
        )
    rows = [_row(method, means, costs, speed, confidence) for method in kept]
    table = pd.DataFrame(rows).sort_values(["parameters", "score"], ascending=[True, False])
    table["on_frontier"] = pareto(table.parameters.to_numpy(), table.score.to_numpy())
    return table.reset_index(drop=True), _notes(wanted, set(done) - set(kept))


def _whole_seeds(runs: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """The (task, seed) of those seeds alone that have every task: means over other tasks are other quantities."""
    tasks = {task for task, _ in runs}
    return {(t, s) for t, s in runs if all((task, s) in runs for task in tasks)}


def _row(
    method: str, means: pd.DataFrame, costs: pd.DataFrame, speed: pd.DataFrame, confidence: float
) -> dict:
    own, found = costs[costs.adapter == method], summarise(means[method])
    interval = t_interval(means[method], confidence)
    time = 1.0 if method == REFERENCE else (1 / speed.ratio[speed.adapter == method]).mean()
    return {
        "method": method,
        "parameters": own.adapter_parameters.mean(),
        "score": found.mean,
        "sd": found.sd,
        "n": found.n,
        "low": interval.low,
        "high": interval.high,
        "time": time,
        "memory_mib": own.peak_memory_mib.max(),
    } | _gaps(method, means, confidence)


def _gaps(method: str, means: pd.DataFrame, confidence: float) -> dict[str, float]:
    """The score less that of each of BESIDE, of the same seed: mean and Student's interval."""
    found = {}
    for other in BESIDE:
        gap, interval = summarise([]), UNDEFINED_INTERVAL
        if other in means and method != other:
            gaps = means[method] - means[other]
            gap, interval = summarise(gaps), t_interval(gaps, confidence)
        found |= {
            f"less_{other}": gap.mean,
            f"less_{other}_low": interval.low,
            f"less_{other}_high": interval.high,
        }
    return found


def pareto(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which of n methods no other beats: costs as little and scores higher, or costs less and scores as high; (n,)."""
    cheaper, dearer = costs[:, None] <= costs, costs[:, None] < costs
    higher, as_high = scores[:, None] > scores, scores[:, None] >= scores
    return ~((cheaper & higher) | (dearer & as_high)).any(axis=0)


def _notes(wanted: set[tuple[str, int]], left_out: set[str]) -> list[str]:
    tasks = sorted({task for task, _ in wanted}, key=task_order)
    seeds = len({seed for _, seed in wanted})
    notes = [
        f"Score: mean over {', '.join(TASKS.get(t, t) for t in tasks)} in points, whatever the metric of each; over "
        f"{seeds} seed{'s' * (seeds > 1)}. On the frontier: no method with as few parameters scores as high, by the "
        "means alone; the intervals say how far other seeds would lie."
    ]
    if left_out:
        names = ", ".join(label(method) for method in sorted(left_out, key=adapter_order))
        notes.append(f"Not drawn, as runs are missing: {names}.")
    return notes
