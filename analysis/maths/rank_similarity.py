"""Similarities at each rank r: of LoRA's conversion matrices, and between LoRA and CondLoRA.

Mean phi of finished runs at each rank, with two references that need no learning: Gaussian A and B through the same
W0^-1, and random subspaces, whose phi grows with r.
"""

from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from analysis.maths import adapter_similarity, subspace
from analysis.study.names import REFERENCE
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

TRAINED, CONTROL, METHODS = "trained", "gaussian_through_inverse_W0", "lora_condlora"
# Fewer draws at higher ranks: each costs more and varies less.
FEWEST_DRAWS = 10
COLUMNS = ["r", "module", "source", "matrix", "task", "seed_or_draw", "phi", "expected"]


def similarities(stacks: list[Stack], settings: Settings) -> tuple[pd.DataFrame, list[str]]:
    """phi at each rank, and notes on what has none; stacks are named by their methods.

    A row per run or draw with phi, averaged over pairs of layers (`source` TRAINED or CONTROL, LoRA
    alone) or over layers (METHODS: LoRA against CondLoRA), and its expectation for random subspaces.
    """
    conversions, notes = _conversions(stacks, settings)
    between = _between_methods(stacks, settings)
    return pd.concat([conversions, between], ignore_index=True), notes


def _conversions(stacks: list[Stack], settings: Settings) -> tuple[pd.DataFrame, list[str]]:
    """LoRA's conversion matrices, and those of Gaussian A and B through the same W0^-1."""
    rows, notes = [], []
    for stack in (s for s in stacks if s.adapter == REFERENCE and len(s.layers) > 1):
        _, L, r, d = stack.A.shape
        i, j = settings.counts(r)
        generator = settings.generator()
        draws = max(FEWEST_DRAWS, settings.baseline_draws // r)
        gaussian_A = subspace.gaussian((draws, L, r, d), generator)
        gaussian_B = subspace.gaussian((draws, *stack.B.shape[1:]), generator)
        A, B = torch.cat([stack.A.double(), gaussian_A]), torch.cat([stack.B.double(), gaussian_B])
        try:
            found = subspace.conversion_matrices(stack.W, A, B, stack.layers)
        except subspace.NotInvertible as error:
            notes.append(f"No conversion matrices for {stack.module} modules, r = {r}: {error}.")
            continue
        names = [(TRAINED, cell.task, cell.seed) for cell in stack.cells]
        names += [(CONTROL, "", draw) for draw in range(draws)]
        expected = subspace.expected_random_phi(i, j, d)
        for matrix, X in zip(("A", "B"), found, strict=True):
            U = subspace.left_basis(X, max(i, j))
            phi = _mean_of_pairs(subspace.phi_map(U, U, i, j))
            for (source, task, seed), value in zip(names, phi.tolist(), strict=True):
                rows.append([r, stack.module, source, matrix, task, seed, value, expected])
    return pd.DataFrame(rows, columns=COLUMNS), notes


def _mean_of_pairs(phi: Tensor) -> Tensor:
    """Mean of maps (n, L, L) over pairs of two different layers."""
    L = phi.shape[-1]
    return phi[:, ~torch.eye(L, dtype=torch.bool)].mean(dim=-1)


def _between_methods(stacks: list[Stack], settings: Settings) -> pd.DataFrame:
    """LoRA against CondLoRA of the same rank, layer, task and seed: means over layers."""
    rows = []
    for r in sorted({stack.A.shape[2] for stack in stacks}):
        own = [s for s in stacks if s.A.shape[2] == r and s.adapter in (REFERENCE, "condlora")]
        # Its own baseline is not used here: the expectation is exact.
        found = adapter_similarity.compare(own, replace(settings, baseline_draws=1))
        for module, matrix in found.expected:
            if matrix == "delta_W" and found.counts[module] == (r, r, r):
                continue  # its left space is then that of B
            means = found.per_layer(module, matrix).mean(axis=1, skipna=False)
            expected = found.expected[module, matrix]
            for (task, seed), phi in means.items():
                rows.append([r, module, METHODS, matrix, task, seed, phi, expected])
    return pd.DataFrame(rows, columns=COLUMNS)
