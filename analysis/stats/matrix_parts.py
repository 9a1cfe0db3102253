"""The parts of claims about matrices: samples of runs and of draws, decided by the rules."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.maths import linear_map
from analysis.maths.conversion_similarity import GAUSSIAN, TRAINED, ConversionSimilarity
from analysis.stats.rules import Part, Thresholds, above_limit, above_null
from analysis.study.names import TASKS

MATRICES = ("A", "B")


def conversion_parts(
    values: pd.DataFrame,
    source: str,
    thresholds: Thresholds,
    column: str = "off_diagonal",
    *,
    modules: Iterable[str] | None = None,
    tasks: Iterable[str | None] = (None,),
) -> list[Part]:
    """Similarity of trained conversion matrices against draws of `source`, a part per module, matrix and task.

    values: a row per run or draw with module, matrix, source, task and `column`; modules: all by default; a task of
    None joins the runs of all tasks.
    """
    samples = {}
    for module in sorted(set(values.module)) if modules is None else modules:
        for matrix in MATRICES:
            own = values[(values.module == module) & (values.matrix == matrix)]
            draws = own.loc[own.source == source, column].to_numpy(dtype=float)
            trained = own[own.source == TRAINED]
            if np.isnan(draws).all():
                continue  # fewer than four layers: a half has no pair
            for task in tasks:
                name = " ".join(filter(None, [module, matrix, TASKS.get(task)]))
                chosen = trained if task is None else trained[trained.task == task]
                samples[name] = (chosen[column].to_numpy(dtype=float), draws)
    return above_null(samples, thresholds)


def conversion_parts_of_pairs(result: ConversionSimilarity, thresholds: Thresholds) -> list[Part]:
    """phi of every pair of layers against the same pair in Gaussian draws."""
    samples = {}
    for module in result.modules:
        for matrix in MATRICES:
            trained = np.concatenate(
                [phi for key, phi in result.maps.items() if key[:3] == (module, matrix, TRAINED)]
            )
            draws = result.maps[module, matrix, GAUSSIAN, ""]
            layers = result.layers_of[module]
            for first, second in zip(*np.triu_indices(len(layers), k=1), strict=True):
                name = f"{module} {matrix} layers {layers[first]}–{layers[second]}"
                samples[name] = (trained[:, first, second], draws[:, first, second])
    return above_null(samples, thresholds)


def linear_map_above_gaussian(values: pd.DataFrame, thresholds: Thresholds) -> list[Part]:
    """The share that a linear map explains in a left-out layer, of trained against Gaussian A and B."""
    samples = {}
    for name, trained in _left_out(values).items():
        kind = (values.module == trained.module.iloc[0]) & (values.form == trained.form.iloc[0])
        draws = values.left_out[kind & (values.source == linear_map.GAUSSIAN)]
        samples[name] = (trained.left_out.to_numpy(), draws.to_numpy())
    return above_null(samples, thresholds)


def linear_map_explains_most(values: pd.DataFrame, thresholds: Thresholds) -> list[Part]:
    """The same share of trained A and B against the threshold `most`."""
    samples = {name: runs.left_out.to_numpy() for name, runs in _left_out(values).items()}
    return above_limit(samples, thresholds.most, thresholds)


def _left_out(values: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The trained runs' rows for A and for B of each module kind; A in the released code's form if W0 is square."""
    found = {}
    trained = values[values.source == linear_map.TRAINED]
    for (module, form), runs in trained.groupby(["module", "form"], sort=False):
        found.setdefault(f"{module} {form[0]}", runs)  # the code's form comes first
    return found
