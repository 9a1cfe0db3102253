"""How an update changes the size and the direction of W0's rows, and how the two changes go together (DoRA, section 3).

With W' = W0 + s B A and rows w_n (one per output, as DoRA's code has it), of each layer:

    delta M = mean over n of | ||w'_n|| - ||w_n|| |         delta D = mean over n of 1 - cos(w'_n, w_n)

Liu et al. (arXiv 2402.09353, figure 2) correlate the two over layers and checkpoints of query modules: full fine-tuning
-.62, DoRA -.31, LoRA +.83. Here the correlation is over the layers of each finished run. Of full fine-tuning and DoRA, whose
update is not one s B A, W' is the weight after training.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.study.rank_selection import by_method, method_of, scaling, shown_rank
from analysis.study.stacks import Stack
from condlora.grid.cells import Cell

COLUMNS = ["method", "module", "task", "seed", "layers", "correlation", "delta_M", "delta_D"]
WHOLE_WEIGHTS = ("full", "dora")
PUBLISHED = {"full fine-tuning": -0.62, "DoRA": -0.31, "LoRA": 0.83}


def changes(W: Tensor, A: Tensor, B: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """delta M and delta D, float64 (runs, L) each, without forming B A.

    W (L, out, in), A (runs, L, r, in), B (runs, L, out, r), any float type; s (runs,): the scaling of B A.
    """
    W, A = W.double(), A.double()
    B = B.double() * s.double()[:, None, None, None]
    before = W.square().sum(dim=-1)  # (L, out)
    cross = ((W @ A.mT) * B).sum(dim=-1)  # w_n . (s B A)_n, (runs, L, out)
    after = before + 2 * cross + ((B @ (A @ A.mT)) * B).sum(dim=-1)
    size, new_size = before.sqrt(), after.clamp(min=0).sqrt()
    cosine = (before + cross) / (size * new_size)
    return (new_size - size).abs().mean(dim=-1), (1 - cosine).mean(dim=-1)


def changes_of_weights(W: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """delta M and delta D, float64 (L,) each, of weights W and `after` (L, out, in), any float type."""
    W, after = W.double(), after.double()
    size, new_size = (torch.linalg.vector_norm(x, dim=-1) for x in (W, after))
    cosine = (W * after).sum(dim=-1) / (size * new_size)
    return (new_size - size).abs().mean(dim=-1), (1 - cosine).mean(dim=-1)


def of_changed_weights(
    cells: Iterable[Cell], load: Callable[[Path], dict[str, Any]] | None = None
) -> pd.DataFrame:
    """As `magnitude_and_direction`, of the finished runs of full fine-tuning and DoRA.

    load: reads one run folder (default: condlora.models.adapters.changed_weights).
    """
    chosen = [cell for cell in cells if method_of(cell.adapter) in WHOLE_WEIGHTS]
    if chosen and load is None:
        # Here, as it imports transformers, which takes seconds.
        from condlora.models.adapters import changed_weights as load
    rows = []
    for cell in chosen:
        for module, (W, after, layers) in load(cell.folder).items():
            if len(layers) < 3:
                continue
            changed = (x.numpy() for x in changes_of_weights(W, after))
            rows.append(_row(method_of(cell.adapter), module, cell, *changed))
    return pd.DataFrame(rows, columns=COLUMNS)


def magnitude_and_direction(stacks: list[Stack]) -> pd.DataFrame:
    """A row per method, module, task and seed: Pearson's correlation of delta M and delta D over layers, and their means.

    Of all methods whose update is one s B A a layer, at the rank of `shown_rank`, with three layers or more.
    """
    rows = []
    stacks = [stack for stack in by_method(stacks) if stack.W is not None]
    r = shown_rank(stacks) if stacks else 0
    for stack in stacks:
        if stack.A.shape[-2] != r or len(stack.layers) < 3:
            continue
        s = torch.tensor([scaling(cell) for cell in stack.cells])
        magnitude, direction = (x.numpy() for x in changes(stack.W, stack.A, stack.B, s))
        for cell, m, d in zip(stack.cells, magnitude, direction, strict=True):
            rows.append(_row(stack.adapter, stack.module, cell, m, d))
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(method: str, module: str, cell: Cell, m: np.ndarray, d: np.ndarray) -> list:
    """delta M and delta D (L,) of one run: its correlation over layers, and means."""
    varies = np.ptp(m) > 0 and np.ptp(d) > 0
    correlation = np.corrcoef(m, d)[0, 1] if varies else np.nan
    return [method, module, cell.task, cell.seed, len(m), correlation, m.mean(), d.mean()]
