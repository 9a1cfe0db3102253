"""Scores and parameters of finished runs by rank, and which ranks have no run."""

from dataclasses import dataclass

import pandas as pd

from analysis.maths import rank_similarity
from analysis.study.names import REFERENCE, label
from analysis.study.rank_selection import by_method, has_rank, method_of, rank_of
from analysis.study.selection import Settings
from analysis.study.stacks import Stack
from condlora.grid.cells import Cell

RANKS = (1, 2, 4, 8, 16, 64)  # those of Hu et al., table 6, and 16
COMPARED = (REFERENCE, "condlora")


@dataclass(frozen=True)
class RankStudy:
    """What the table and figures over ranks rest on.

    runs: a row per run with task, method, r, alpha, seed, score_points and parameters.
    similarity: see `rank_similarity.similarities`. notes: which ranks have no run, what is undefined.
    """

    runs: pd.DataFrame
    similarity: pd.DataFrame
    notes: list[str]

    @property
    def over_ranks(self) -> pd.DataFrame:
        """The runs of methods that ran at several ranks."""
        return self.runs[self.runs.groupby("method").r.transform("nunique") > 1]


def by_rank(cells: list[Cell], stacks: list[Stack], settings: Settings) -> RankStudy:
    """Everything over ranks, from finished runs and their matrices (any ranks, in any order).

    Runs of methods without LoRA's r and alpha are left out.
    """
    runs = _runs(cells)
    similarity, notes = rank_similarity.similarities(by_method(stacks), settings)
    return RankStudy(runs, similarity, [*_missing(runs), *notes])


def _runs(cells: list[Cell]) -> pd.DataFrame:
    rows = []
    for cell in filter(has_rank, cells):
        record = cell.record
        rows.append(
            {
                "task": cell.task,
                "method": method_of(cell.adapter),
                "r": rank_of(cell),
                "alpha": record["recipe"]["adapter"]["config"]["lora_alpha"],
                "seed": cell.seed,
                "score_points": 100 * record["test"][record["headline"]],
                "adapter_parameters": record["parameters"]["adapter"],
                "trainable_parameters": record["parameters"]["trainable"],
            }
        )
    return pd.DataFrame(rows)


def _missing(runs: pd.DataFrame) -> list[str]:
    """Which ranks have no finished run; one sentence where each method has one rank alone."""
    if (runs.groupby("method").r.nunique() == 1).all():
        ranks = ", ".join(map(str, sorted(set(runs.r))))
        return [
            f"Each method was run at one rank (r = {ranks}), so nothing can be concluded about other ranks."
        ]
    absent = {m: [r for r in RANKS if r not in set(runs.r[runs.method == m])] for m in COMPARED}
    named = [f"{label(m)} at r = {', '.join(map(str, rs))}" for m, rs in absent.items() if rs]
    return [f"Not run: {'; '.join(named)}."] if named else []
