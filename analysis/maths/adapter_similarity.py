"""Table 3: similarity of LoRA's and CondLoRA's matrices in the same layer, task and seed.

phi between A, B and delta W of the two methods, layer by layer, with its expectation for random subspaces and a seeded
baseline of Gaussian matrices.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.maths import subspace
from analysis.study.names import REFERENCE
from analysis.study.selection import Settings
from analysis.study.stacks import Stack


@dataclass(frozen=True)
class AdapterSimilarity:
    """What Table 3 rests on.

    values: one row per module, task, seed, matrix and layer (from 1) with phi.
    baseline: one row per module, matrix and draw with the mean phi over layers of Gaussian
    matrices. expected: (module, matrix) -> max(i, j) / d. counts: module -> (i, j, r).
    """

    values: pd.DataFrame
    baseline: pd.DataFrame
    expected: dict[tuple[str, str], float]
    counts: dict[str, tuple[int, int, int]]

    def random_means(self, module: str, matrix: str) -> np.ndarray:
        """Mean phi over layers of Gaussian matrices, (draws,)."""
        b = self.baseline
        return b.phi[(b.module == module) & (b.matrix == matrix)].to_numpy()

    def per_layer(self, module: str, matrix: str) -> pd.DataFrame:
        """phi of one matrix of one module kind: a row per run, a column per layer."""
        v = self.values
        chosen = v[(v.module == module) & (v.matrix == matrix)]
        return chosen.pivot(index=["task", "seed"], columns="layer", values="phi")


def compare(stacks: list[Stack], settings: Settings) -> AdapterSimilarity:
    """phi between LoRA and CondLoRA for each task and seed where both are finished."""
    values, baseline = [], []
    expected: dict[tuple[str, str], float] = {}
    counts: dict[str, tuple[int, int, int]] = {}
    by_kind = {(stack.adapter, stack.module): stack for stack in stacks}
    for module in sorted({stack.module for stack in stacks}):
        lora, cond = by_kind.get((REFERENCE, module)), by_kind.get(("condlora", module))
        pairs = _pairs(lora, cond) if lora and cond else []
        if not pairs:
            continue
        ours, theirs = ([p[side] for p in pairs] for side in (0, 1))
        L, r, d_in = lora.A.shape[1:]
        i, j = settings.counts(min(r, cond.A.shape[2]))
        counts[module] = (i, j, r)
        found = subspace.adapter_phi(
            lora.A[ours], lora.B[ours], cond.A[theirs], cond.B[theirs], i, j
        )
        generator = settings.generator()
        for matrix, phi in found.items():
            d = d_in if matrix == "A" else lora.B.shape[2]
            expected[module, matrix] = subspace.expected_random_phi(i, j, d)
            for n, run in zip(ours, phi.tolist(), strict=True):
                cell = lora.cells[n]
                for layer, value in zip(lora.layers, run, strict=True):
                    values.append([module, cell.task, cell.seed, matrix, layer, value])
            # The leading left space of a Gaussian product is a uniformly random one, as is that of
            # a Gaussian matrix: one kind of draw serves all three rows.
            drawn = subspace.random_phi(
                (L, d, r), i, j, draws=settings.baseline_draws, generator=generator
            )
            for draw, value in enumerate(drawn.mean(dim=1).tolist()):
                baseline.append([module, matrix, draw, value])
    return AdapterSimilarity(
        pd.DataFrame(values, columns=["module", "task", "seed", "matrix", "layer", "phi"]),
        pd.DataFrame(baseline, columns=["module", "matrix", "draw", "phi"]),
        expected,
        counts,
    )


def _pairs(lora: Stack, cond: Stack) -> list[tuple[int, int]]:
    """Positions of the runs with the same task and seed in both stacks."""
    positions = {(c.task, c.seed): n for n, c in enumerate(cond.cells)}
    found = [(n, positions.get((c.task, c.seed))) for n, c in enumerate(lora.cells)]
    return [(n, m) for n, m in found if m is not None]


def largest_difference(result: AdapterSimilarity, first: str, second: str) -> float:
    """The largest absolute difference of phi between two matrices, over all runs and layers."""
    gaps = [
        np.abs(result.per_layer(module, first) - result.per_layer(module, second)).to_numpy().max()
        for module in result.counts
    ]
    return float(max(gaps))
