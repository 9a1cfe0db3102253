"""Comparison of each method with LoRA, paired by task and seed."""

import pandas as pd

from analysis.study.names import REFERENCE


def against_reference(runs: pd.DataFrame, column: str, operation: str, name: str) -> pd.DataFrame:
    """`column` of each other method compared with LoRA's, for each task and seed that both finished.

    runs: a row a run, with task, adapter, seed and `column`. operation: "sub" or "div", LoRA's value second.
    Returns a row a pair: task, seed, adapter and the result under `name`.
    """
    wide = runs.pivot(index=["task", "seed"], columns="adapter", values=column)
    if REFERENCE not in wide:
        return pd.DataFrame(columns=["task", "seed", "adapter", name])
    others = getattr(wide.drop(columns=REFERENCE), operation)(wide[REFERENCE], axis=0)
    return (
        others.melt(ignore_index=False, var_name="adapter", value_name=name)
        .dropna(subset=name)
        .reset_index()
    )
