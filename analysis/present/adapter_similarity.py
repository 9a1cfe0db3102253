"""Table 3 as tables and a section of the report; computed in `analysis.maths.adapter_similarity`."""

import pandas as pd

from analysis.maths import subspace
from analysis.maths.adapter_similarity import AdapterSimilarity
from analysis.present import typeset
from analysis.present.typeset import Section
from analysis.stats import formatting
from analysis.stats.significance import summarise
from analysis.study.names import MATRIX_LABEL, TASKS, task_order
from analysis.study.paper import published


def table3(result: AdapterSimilarity) -> typeset.Table:
    """Per layer, over all tasks and seeds; the paper's row below."""
    paper = published("table3")
    depth = max([paper["layers"], *result.values.layer])
    paper_random = subspace.expected_random_phi(paper["i"], paper["j"], paper["d"])
    rows = []
    for (module, matrix), expected in result.expected.items():
        phi = result.per_layer(module, matrix)
        ours = {layer: formatting.mean_sd(summarise(phi[layer]), 3, with_n=False) for layer in phi}
        cells = [ours.get(layer, formatting.UNDEFINED) for layer in range(1, depth + 1)]
        name = f"{module}, {MATRIX_LABEL[matrix]}"
        rows.append([name, str(len(phi)), *cells, formatting.number(expected, 4)])
    for matrix, phi in paper["phi"].items():
        cells = [formatting.number(value, 2) for value in phi]
        cells += [formatting.UNDEFINED] * (depth - len(phi))
        name = f"Paper: {paper['module']}, {MATRIX_LABEL[matrix]}"
        random = formatting.number(paper_random, 4)
        rows.append([name, formatting.UNDEFINED, *cells, random])
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
            "standard deviation are not stated.",
        ],
    )


def table_by_task(result: AdapterSimilarity) -> typeset.Table:
    """Mean over layers, a column for each task and one for Gaussian matrices."""
    tasks = sorted(set(result.values.task), key=task_order)
    rows, data = [], []
    for module, matrix in result.expected:
        per_run = result.per_layer(module, matrix).mean(axis=1, skipna=False)
        found = [summarise(per_run[per_run.index.get_level_values("task") == t]) for t in tasks]
        random = summarise(result.random_means(module, matrix))
        cells = [formatting.mean_sd(x, 4) for x in (*found, random)]
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


def section(result: AdapterSimilarity) -> Section:
    """Table 3 and the table by task."""
    text = [] if result.counts else ["No task and seed has both methods finished."]
    shown = [table3(result)] if result.counts else []
    details = [table_by_task(result)] if result.counts else []
    return Section("Table 3: similarity of LoRA's and CondLoRA's matrices", text, shown, details)
