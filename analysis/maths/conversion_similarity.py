"""Figure 1: similarity of the conversion matrices W0->A and W0->B between LoRA's layers.

phi over all pairs of layers for finished LoRA runs and for two seeded baselines of the same shapes: Gaussian matrices in
place of the conversion matrices (the paper's), and conversion matrices of Gaussian A and B (ours). The second shows the
effect of W0^-1 alone; the paper's baseline does not pass through it.

B and A live on different sides of W0. W0^-1 B is unchanged by a change of basis of the outputs (W0 -> M W0, B -> M B), but
W0^-1 A' is not by one of the inputs (W0 -> W0 M, A -> A M), as A' has the size of an input and W0^-1 takes an output. What
is unchanged then is W0^-T A', the conversion matrix of A = theta W0. For square W0 both are computed: "A" as the paper has
it, and "A_transposed" of the form `consistent`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.layers import parts
from analysis.study.names import REFERENCE
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

TRANSPOSED = "A_transposed"  # W0^-T A'
TRAINED, GAUSSIAN, CONTROL = "trained", "gaussian", "gaussian_through_inverse_W0"


@dataclass(frozen=True)
class ConversionSimilarity:
    """What Figure 1 rests on.

    maps: (module, matrix, source, task) -> phi (runs or draws, L, L); the task of a baseline is "".
    values: one row per run or draw with the means of its map off the diagonal. layers_of: module -> its layers.
    """

    maps: dict[tuple[str, str, str, str], np.ndarray]
    values: pd.DataFrame
    layers_of: dict[str, list[int]]
    notes: list[str]

    def select(self, column: str, module: str, matrix: str, source: str) -> np.ndarray:
        """`column` of `values` of one module kind, matrix and source: (n,), one per run or draw."""
        v = self.values
        chosen = (v.module == module) & (v.matrix == matrix) & (v.source == source)
        return v.loc[chosen, column].to_numpy()

    @property
    def layers(self) -> list[int]:
        """The layers of the first module kind, which are those of all kinds in runs of one backbone."""
        return next(iter(self.layers_of.values()), [])

    @property
    def modules(self) -> list[str]:
        return sorted(set(self.values.module)) if len(self.values) else []


def figure1(stacks: list[Stack], settings: Settings) -> ConversionSimilarity:
    """phi between the conversion matrices of all layer pairs, for every LoRA run and baseline."""
    maps: dict[tuple[str, str, str, str], np.ndarray] = {}
    rows, notes, layers = [], [], {}
    for stack in (stack for stack in stacks if stack.adapter == REFERENCE):
        if stack.W is None:
            notes.append(
                f"No conversion matrices for {stack.module} modules: they need W₀, which base= names."
            )
            continue
        try:
            found = _stack_maps(stack, settings)
        except subspace.NotInvertible as error:
            notes.append(f"No conversion matrices for {stack.module} modules: {error}.")
            continue
        layers[stack.module] = stack.layers
        if stack.W.shape[-2] != stack.W.shape[-1]:
            notes.append(_rectangular(stack))
        for (matrix, source), phi in found.items():
            names = [(c.task, c.seed) for c in stack.cells]
            if source != TRAINED:
                names = [("", draw) for draw in range(len(phi))]
            for name, means in zip(names, subspace.means_of_pairs(phi).tolist(), strict=True):
                rows.append([stack.module, matrix, source, *name, *means])
            for task in dict.fromkeys(task for task, _ in names):
                of_task = [n for n, (name, _) in enumerate(names) if name == task]
                maps[stack.module, matrix, source, task] = phi[of_task].numpy()
    columns = ["module", "matrix", "source", "task", "seed_or_draw"]
    values = pd.DataFrame(rows, columns=[*columns, "off_diagonal", "deep", "shallow"])
    values["deep_minus_shallow"] = values.deep - values.shallow
    return ConversionSimilarity(maps, values, layers, notes)


def _stack_maps(stack: Stack, settings: Settings) -> dict[tuple[str, str], Tensor]:
    runs, L, r, d_in = stack.A.shape
    d_out = stack.B.shape[2]
    i, j = settings.counts(r)
    generator = settings.generator()
    gaussian_A = subspace.gaussian((settings.baseline_draws, L, r, d_in), generator)
    gaussian_B = subspace.gaussian((settings.baseline_draws, L, d_out, r), generator)
    # Trained and Gaussian factors pass through one factorisation of W0, and the paper's baseline
    # is the same Gaussian matrices before they do.
    A = torch.cat([stack.A.double(), gaussian_A])
    B = torch.cat([stack.B.double(), gaussian_B])
    through = _maps(_conversions(stack, A, B), i, j)
    # Conversion matrices of a rectangular W0 have the sides of the other factor.
    replaced = (gaussian_A.mT, gaussian_B) if d_in == d_out else (gaussian_B, gaussian_A.mT)
    plain = _maps(zip(*map(parts, (*replaced, gaussian_A)), strict=True), i, j)
    if d_in == d_out:
        # Equation 4's system, with W0' for W0 and A' for B.
        solve = subspace.solver(stack.W.mT, stack.layers)
        bases = (subspace.left_basis(solve(a.mT), max(i, j)) for a in parts(A))
        through[TRANSPOSED] = torch.cat([subspace.phi_map(U, U, i, j) for U in bases])
        plain[TRANSPOSED] = plain["A"]
    maps = {}
    for matrix in through:
        maps[matrix, TRAINED] = through[matrix][:runs]
        maps[matrix, GAUSSIAN] = plain[matrix]
        maps[matrix, CONTROL] = through[matrix][runs:]
    return maps


Conversions = Iterable[tuple[Tensor, Tensor, Tensor]]  # W0->A, W0->B and A of a few runs or draws


def _conversions(stack: Stack, A: Tensor, B: Tensor) -> Conversions:
    W = stack.W
    if W.shape[-2] == W.shape[-1]:
        solve = subspace.solver(W, stack.layers)
        return ((solve(a.mT), solve(b), a) for a, b in zip(parts(A), parts(B), strict=True))
    found = subspace.conversion_matrices(W, A, B, stack.layers)
    return zip(*map(parts, (*found, A)), strict=True)


def _maps(conversions: Conversions, i: int, j: int) -> dict[str, Tensor]:
    found = [subspace.conversion_maps(*part, i, j) for part in conversions]
    return {matrix: torch.cat([maps[matrix] for maps in found]) for matrix in found[0]}


def _rectangular(stack: Stack) -> str:
    d_out, d_in = stack.W.shape[-2:]
    partly = "B" if d_out > d_in else "A"
    return (
        f"W₀ of {stack.module} modules is {d_out} x {d_in} and has no inverse: their conversion "
        "matrices are least-squares solutions of smallest norm, of W₀X = B and, as the sides of "
        "equation 3 do not fit, of W₀′X = A′. The solution for "
        f"{partly} reproduces only a part of {partly}, the one that W₀ can reach. Compare these "
        "modules with their own baselines and with no square module."
    )
