"""Mean score of each method against its parameters, training time and memory, from records."""

import numpy as np
import pandas as pd

from analysis.stats.significance import UNDEFINED_INTERVAL
from analysis.stats.task_means import TaskMean, task_mean
from analysis.study.costs import costs as costs_of_runs
from analysis.study.costs import speed_ratios
from analysis.study.names import REFERENCE, TASKS, adapter_order, label, task_order
from analysis.study.scores import scores
from condlora.errors import NoFinishedRuns
from condlora.grid.cells import Cell

COMPARED_WITH = (
    REFERENCE,
    "condlora",
)  # whose scores the others' are compared with: the paper's two


def frontier(cells: list[Cell], confidence: float) -> tuple[pd.DataFrame, list[str]]:
    """A row per method, fewest parameters first, and notes.

    Columns: method, parameters; score, sd, n, low, high: mean over tasks in points, see `task_means`; minus_lora and
    minus_condlora, each with _low and _high: mean over tasks of the score difference paired by task and seed; time:
    training time relative to LoRA's, mean over pairs timed under the same conditions; memory_mib: the largest of any
    run; on_frontier: no method with as few parameters has as high a mean.

    Raises NoFinishedRuns where no seed has every task.
    """
    runs = scores(cells)
    done = {method: set(zip(own.task, own.seed, strict=True)) for method, own in runs.groupby("adapter")}  # fmt: skip
    wanted = done[REFERENCE] if REFERENCE in done else max(done.values(), key=len)
    wanted = _whole_seeds(wanted)
    kept = sorted((m for m in done if done[m] >= wanted), key=adapter_order)
    pairs = pd.MultiIndex.from_frame(runs[["task", "seed"]])
    shared = runs[runs.adapter.isin(kept) & pairs.isin(wanted)]
    scored = shared.pivot(index=["task", "seed"], columns="adapter", values="score_points")
    costs = costs_of_runs(cells)
    speed = speed_ratios(costs, "train_examples_per_second")
    if not wanted:
        raise NoFinishedRuns(
            "No seed has a finished run of every task: finish one, then draw the frontier."
        )
    rows = [_row(method, scored, costs, speed, confidence) for method in kept]
    table = pd.DataFrame(rows).sort_values(["parameters", "score"], ascending=[True, False])
    table["on_frontier"] = pareto(table.parameters.to_numpy(), table.score.to_numpy())
    return table.reset_index(drop=True), _notes(wanted, set(done) - set(kept))


def _whole_seeds(runs: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """The (task, seed) of the seeds that have every task, so that all means are over the same tasks."""
    tasks = {task for task, _ in runs}
    return {(t, s) for t, s in runs if all((task, s) in runs for task in tasks)}


def _row(
    method: str, scored: pd.DataFrame, costs: pd.DataFrame, speed: pd.DataFrame, confidence: float
) -> dict:
    own, found = costs[costs.adapter == method], _over_tasks(scored[method])
    interval = found.interval(confidence)
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
    } | _differences(method, scored, confidence)


def _over_tasks(scored: pd.Series) -> TaskMean:
    return task_mean([own.to_numpy() for _, own in scored.groupby("task")])


def _differences(method: str, scored: pd.DataFrame, confidence: float) -> dict[str, float]:
    """Score difference to each of COMPARED_WITH, paired by task and seed: mean over tasks and interval."""
    found = {}
    for other in COMPARED_WITH:
        mean, interval = np.nan, UNDEFINED_INTERVAL
        if other in scored and method != other:
            difference = _over_tasks(scored[method] - scored[other])
            mean, interval = difference.mean, difference.interval(confidence)
        found |= {
            f"minus_{other}": mean,
            f"minus_{other}_low": interval.low,
            f"minus_{other}_high": interval.high,
        }
    return found


def pareto(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The n methods that no other dominates (as cheap and better, or cheaper and as good); bool (n,)."""
    cheaper, costlier = costs[:, None] <= costs, costs[:, None] < costs
    higher, as_high = scores[:, None] > scores, scores[:, None] >= scores
    return ~((cheaper & higher) | (costlier & as_high)).any(axis=0)


def _notes(wanted: set[tuple[str, int]], left_out: set[str]) -> list[str]:
    tasks = sorted({task for task, _ in wanted}, key=task_order)
    seeds = len({seed for _, seed in wanted})
    notes = [
        f"Score: mean over {', '.join(TASKS.get(t, t) for t in tasks)} in points, with {seeds} seed{'s' * (seeds > 1)} "
        "per task; intervals from the variances of the tasks (Satterthwaite). On the frontier: no method with as few "
        "parameters has as high a mean. This is not a ranking: see the intervals."
    ]
    if left_out:
        names = ", ".join(label(method) for method in sorted(left_out, key=adapter_order))
        notes.append(f"Not drawn, as runs are missing: {names}.")
    return notes
