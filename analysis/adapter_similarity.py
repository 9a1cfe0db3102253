"""Table 3: how alike LoRA's and CondLoRA's matrices are, same layer, task and seed.

Takes the matrices of finished runs, gives phi between A, B and delta W of the two methods, layer
by layer, beside its expectation for random subspaces and a seeded baseline drawn through the
same phi.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from analysis.maths import subspace
from analysis.present import typeset
from analysis.stats.significance import Summary, summarise
from analysis.study.selection import (
    MATRIX_LABEL,
    REFERENCE,
    TASKS,
    Settings,
    Stack,
    load_stacks,
    open_study,
    published,
    task_order,
)
from condlora.commands.cli import command


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

    def random(self, module: str, matrix: str) -> Summary:
        """Mean phi over layers of Gaussian matrices, over draws."""
        b = self.baseline
        return summarise(b.phi[(b.module == module) & (b.matrix == matrix)].to_numpy())

    def of(self, module: str, matrix: str) -> pd.DataFrame:
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


def table3(result: AdapterSimilarity) -> typeset.Table:
    """Per layer, over all tasks and seeds; the paper's row below."""
    paper = published("table3")
    depth = max([paper["layers"], *result.values.layer])
    paper_random = subspace.expected_random_phi(paper["i"], paper["j"], paper["d"])
    rows = []
    for (module, matrix), expected in result.expected.items():
        phi = result.of(module, matrix)
        ours = {layer: typeset.spread(summarise(phi[layer]), 3, with_n=False) for layer in phi}
        cells = [ours.get(layer, typeset.UNDEFINED) for layer in range(1, depth + 1)]
        name = f"{module}, {MATRIX_LABEL[matrix]}"
        rows.append([name, str(len(phi)), *cells, typeset.number(expected, 4)])
    for matrix, phi in paper["phi"].items():
        cells = [typeset.number(value, 2) for value in phi]
        cells += [typeset.UNDEFINED] * (depth - len(phi))
        name = f"Paper: {paper['module']}, {MATRIX_LABEL[matrix]}"
        random = typeset.number(paper_random, 4)
        rows.append([name, typeset.UNDEFINED, *cells, random])
    return typeset.Table(
        name="table3",
        title="Table 3: φ between LoRA's and CondLoRA's matrices of the same layer, task and seed",
        header=["modules, matrix", "n", *map(str, range(1, depth + 1)), "random"],
        rows=rows,
        data=result.values,
        notes=[
            "Columns are layers. Mean ± sd over all tasks and seeds with both methods finished "
            "(n pairs of runs); right singular vectors for A, left for B and ΔW. Random: the "
            "expectation max(i, j) / d for random subspaces.",
            "The paper's rows: RoBERTa-base (12 layers, d = 768), i = j = 8; its task, seeds and "
            "spread are not stated.",
        ],
    )


def table_by_task(result: AdapterSimilarity) -> typeset.Table:
    """Mean over layers, a column for each task, beside Gaussian matrices."""
    tasks = sorted(set(result.values.task), key=task_order)
    rows, data = [], []
    for module, matrix in result.expected:
        per_run = result.of(module, matrix).mean(axis=1, skipna=False)
        found = [summarise(per_run[per_run.index.get_level_values("task") == t]) for t in tasks]
        random = result.random(module, matrix)
        cells = [typeset.spread(x, 4) for x in (*found, random)]
        rows.append([module, MATRIX_LABEL[matrix], *cells])
        for name, x in zip([*tasks, "gaussian"], [*found, random], strict=True):
            data.append([module, matrix, name, x.mean, x.sd, x.n])
    return typeset.Table(
        name="table3_by_task",
        title="Table 3 by task: φ between LoRA and CondLoRA, mean over layers",
        header=["modules", "matrix", *(TASKS.get(task, task) for task in tasks), "Gaussian"],
        rows=rows,
        data=pd.DataFrame(data, columns=["module", "matrix", "task", "mean", "sd", "n"]),
        notes=["Mean ± sd over seeds (n); Gaussian matrices: over draws (n)."],
        text_columns=2,
    )


def largest_difference(result: AdapterSimilarity, first: str, second: str) -> float:
    """The largest absolute difference of phi between two matrices, over all runs and layers."""
    gaps = [
        np.abs(result.of(module, first) - result.of(module, second)).to_numpy().max()
        for module in result.counts
    ]
    return float(max(gaps))


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    result = compare(load_stacks(study.done), study.settings)
    for table in (table3(result), table_by_task(result)):
        typeset.write(table, study.folder / "tables")
    print(f"Table 3: {study.folder / 'tables' / 'table3.md'}")


if __name__ == "__main__":
    main()
