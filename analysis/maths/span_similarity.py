"""How similar the layers' A and B are themselves: phi between their spans, which needs no W0.

An update s B A reads its input along the rows of A and writes its output along the columns of B. Both have r
directions, and phi (i = j = r) compares those of two layers: 1 where they are the same subspace, r / d by chance.
The null hypothesis is that the layers' spans are independent and uniformly random, as those of A before training and
of any A and B that training pushes in unrelated directions. Draws of that world are exchangeable with a run under it,
so the rank of a run among them is an exact test (`analysis.stats.span_tests`).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.conversion_similarity import GAUSSIAN, TRAINED
from analysis.study.names import REFERENCE
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

DRAWS = 999  # the smallest p value of one run is then .001
CHUNK = 27  # worlds drawn at a time: 12 x 768 x 8 numbers of each are 16 MB together


@dataclass(frozen=True)
class SpanSimilarity:
    """phi between the spans of different layers.

    maps: (module, matrix, task) -> (runs, L, L). values: a row per module, matrix, source, task and run or draw with the
    means over pairs of layers (off_diagonal, deep, shallow). chance: (module, matrix) -> r / d. layers: by module.
    """

    maps: dict[tuple[str, str, str], np.ndarray]
    values: pd.DataFrame
    chance: dict[tuple[str, str], float]
    layers: dict[str, list[int]]


def spans(stacks: list[Stack], settings: Settings) -> SpanSimilarity:
    """phi of every LoRA run and of draws of the null, for A (right singular vectors) and B (left ones)."""
    maps, rows, chance, layers = {}, [], {}, {}
    null: dict[tuple[int, ...], Tensor] = {}
    for stack in (s for s in stacks if s.adapter == REFERENCE and len(s.layers) > 1):
        layers[stack.module] = stack.layers
        for matrix, X in (("A", stack.A.mT), ("B", stack.B)):
            d, r = X.shape[-2:]
            if r > d:
                continue
            chance[stack.module, matrix] = subspace.expected_random_phi(r, r, d)
            U = subspace.left_basis(X, r)
            phi = subspace.phi_map(U, U, r, r)
            runs = [(cell.task, cell.seed) for cell in stack.cells]
            for task in dict.fromkeys(task for task, _ in runs):
                of_task = [n for n, run in enumerate(runs) if run[0] == task]
                maps[stack.module, matrix, task] = phi[of_task].numpy()
            shape = (len(stack.layers), d, r)
            if shape not in null:
                null[shape] = random_means(shape, DRAWS, settings.generator())
            drawn = [("", draw) for draw in range(DRAWS)]
            for source, names, means in (
                (TRAINED, runs, subspace.means_of_pairs(phi)),
                (GAUSSIAN, drawn, null[shape]),
            ):
                for name, numbers in zip(names, means.tolist(), strict=True):
                    rows.append([stack.module, matrix, source, *name, *numbers])
    columns = ["module", "matrix", "source", "task", "seed_or_draw"]
    values = pd.DataFrame(rows, columns=[*columns, "off_diagonal", "deep", "shallow"])
    return SpanSimilarity(maps, values, chance, layers)


def random_means(shape: tuple[int, int, int], draws: int, generator: torch.Generator) -> Tensor:
    """Means of phi over pairs of layers, (draws, 3), of uniformly random spans; shape (L, d, r)."""
    found = []
    for first in range(0, draws, CHUNK):
        n = min(CHUNK, draws - first)
        U = subspace.span_basis(subspace.gaussian((n, *shape), generator))
        found.append(subspace.means_of_pairs(subspace.phi_map(U, U, shape[-1], shape[-1])))
    return torch.cat(found)
