"""How an update changes the size and the direction of W0's rows, and how the two changes go together (DoRA, section 3).

With W' = W0 + s B A and rows w_n (one per output, as DoRA's code has it), of each layer:

    delta M = mean over n of | ||w'_n|| - ||w_n|| |         delta D = mean over n of 1 - cos(w'_n, w_n)

Liu et al. (arXiv 2402.09353, figure 2) correlate the two over layers and checkpoints of query modules: full fine-tuning
-.62, DoRA -.31, LoRA +.83. Here the correlation is over the layers of each finished run.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.study.rank_selection import by_method, scaling, shown_rank
from analysis.study.stacks import Stack

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
            varies = np.ptp(m) > 0 and np.ptp(d) > 0
            correlation = np.corrcoef(m, d)[0, 1] if varies else np.nan
            names = [stack.adapter, stack.module, cell.task, cell.seed]
            rows.append([*names, len(m), correlation, m.mean(), d.mean()])
    columns = ["method", "module", "task", "seed", "layers", "correlation", "delta_M", "delta_D"]
    return pd.DataFrame(rows, columns=columns)
