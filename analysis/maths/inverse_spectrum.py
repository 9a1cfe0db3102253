"""What W0^-1 does by itself: its singular vectors, and how conversion matrices lie along them.

With W0 = U S V', the inverse is V S^-1 U'. Whatever it is applied to, the result lies along the
columns of V, each weighted by one over its singular value: so along the right singular vectors of
W0's smallest singular values, if these are small enough. U decides only how much of the matrix
falls on each. Two layers' conversion matrices are therefore alike, with nothing learned, where the
layers' smallest right singular vectors are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.conversion_similarity import CONTROL, TRAINED
from analysis.maths import subspace
from analysis.present import typeset
from analysis.stats.significance import summarise
from analysis.study.selection import MATRIX_LABEL, Settings, Stack

COUNTS = (1, 2, 4, 8, 16, 32)  # how many of W0's smallest singular directions are looked at
DRAWS = 20  # of Gaussian A and B per truncation: each costs a pass over all pairs of layers
LABEL = {TRAINED: "trained", CONTROL: "Gaussian"}


@dataclass(frozen=True)
class Inverse:
    """W^-1 of L layers, or the pseudo-inverse: left diag(1 / sigma) right'.

    left (L, n, m), sigma (L, m) with the smallest first, right (L, d, m); float64, W being (d, n)
    of rank m in each layer. For a square W = U S V', left is V and right is U.
    """

    left: Tensor
    sigma: Tensor
    right: Tensor

    def coefficients(self, X: Tensor) -> Tensor:
        """diag(1 / sigma) right' X: the conversion matrix in the basis `left`.

        X (..., L, d, r), any float type; returns float64 (..., L, m, r).
        """
        return subspace.in_each_layer(self.right.mT, X) / self.sigma[..., None]

    def basis(self, coefficients: Tensor, k: int) -> Tensor:
        """The k leading left singular vectors of left @ coefficients; float64 (..., L, n, k)."""
        return subspace.in_each_layer(self.left, subspace.left_basis(coefficients, k))


def inverses(stack: Stack) -> dict[str, Inverse]:
    """By matrix, "A" and "B", the inverse that its conversion matrices are made with.

    One singular value decomposition per layer. They are one and the same for square W; otherwise
    A's is that of W', as in `subspace.conversion_matrices`. Raises subspace.NotInvertible likewise.
    """
    W = stack.W.double()
    if not W.isfinite().all():
        raise subspace.NotInvertible("W0 is not finite")
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    U, S, V = U.flip(-1), S.flip(-1), Vh.mT.flip(-1)
    singular = S[:, 0] <= S[:, -1] * max(W.shape[-2:]) * torch.finfo(S.dtype).eps
    if singular.any():
        layer = stack.layers[int(singular.nonzero()[0])]
        raise subspace.NotInvertible(f"W0 of layer {layer} is singular to working precision")
    of_B = Inverse(V, S, U)
    is_square = W.shape[-2] == W.shape[-1]
    return {"A": of_B if is_square else Inverse(U, S, V), "B": of_B}


def shares(coefficients: Tensor, r: int, k: int) -> tuple[Tensor, Tensor]:
    """How much of conversion matrices lies in the k smallest singular directions of W0.

    coefficients (..., L, m, r) as from `Inverse.coefficients`. Returns two (..., L): the share of
    the squared Frobenius norm, and phi between the matrix's column space and those k directions,
    which counts each of the r columns' directions alike.
    """
    energy = coefficients[..., :k, :].square().sum(dim=(-2, -1))
    basis = subspace.left_basis(coefficients, r)
    inside = basis[..., :k, :].square().sum(dim=(-2, -1)) / min(k, r)
    return energy / coefficients.square().sum(dim=(-2, -1)), inside


def truncated(coefficients: Tensor, k: int) -> Tensor:
    """The conversion matrices without W0's k smallest singular directions, in the same basis."""
    kept = coefficients.clone()
    kept[..., :k, :] = 0
    return kept


@dataclass(frozen=True)
class Spectra:
    """What W0's inverse looks like.

    sigma: a row per module, layer and place in the order of singular values (1 is the smallest).
    directions: a row per module, matrix and k: phi between two layers' k smallest directions, means
    over pairs, and k / n, its expectation for random directions.
    along: a row per module, matrix, source, task, run or draw and k: energy and space shares, and
    the mean phi over pairs once those directions are taken out (k = 0: all are in), beside its
    expectation for random subspaces.
    """

    sigma: pd.DataFrame
    directions: pd.DataFrame
    along: pd.DataFrame


def spectra(stacks: list[tuple[Stack, dict[str, Inverse]]], settings: Settings) -> Spectra:
    """Spectra, smallest directions and truncations of each stack with its `inverses`."""
    sigma, directions, along = [], [], []
    for stack, found in stacks:
        for layer, values in zip(stack.layers, found["B"].sigma.tolist(), strict=True):
            sigma += [[stack.module, layer, n + 1, value] for n, value in enumerate(values)]
        generator = settings.generator()
        for matrix, inverse in found.items():
            _add_directions(directions, stack.module, matrix, inverse)
            trained = stack.A.mT if matrix == "A" else stack.B
            draws = subspace.gaussian((DRAWS, *trained.shape[1:]), generator)
            runs = [(cell.task, cell.seed) for cell in stack.cells]
            i, j = settings.counts(trained.shape[-1])
            for source, names, X in (
                (TRAINED, runs, trained),
                (CONTROL, [("", draw) for draw in range(DRAWS)], draws),
            ):
                random = subspace.expected_random_phi(i, j, inverse.left.shape[-2])
                for name, k, numbers in _along(inverse, names, X, i, j):
                    along.append([stack.module, matrix, source, *name, k, *numbers, random])
    means = ["off_diagonal", "deep", "shallow"]
    names = [
        "module",
        "matrix",
        "source",
        "task",
        "seed_or_draw",
        "k",
        "energy",
        "space",
        *means,
        "random",
    ]
    return Spectra(
        pd.DataFrame(sigma, columns=["module", "layer", "place", "sigma"]),
        pd.DataFrame(directions, columns=["module", "matrix", "k", *means, "random"]),
        pd.DataFrame(along, columns=names),
    )


def _add_directions(rows: list[list], module: str, matrix: str, inverse: Inverse) -> None:
    n, m = inverse.left.shape[-2:]
    for k in (k for k in COUNTS if k <= m):
        smallest = inverse.left[..., :k]
        means = subspace.means_of_pairs(subspace.phi_map(smallest, smallest, k, k))
        rows.append([module, matrix, k, *means.tolist(), subspace.expected_random_phi(k, k, n)])


def _along(
    inverse: Inverse, names: list[tuple[str, int]], X: Tensor, i: int, j: int
) -> Iterator[tuple[tuple[str, int], int, list[float]]]:
    """For each k and each of X (n, L, d, r): its name, k, energy, space and three means of phi."""
    r = X.shape[-1]
    coefficients = inverse.coefficients(X)
    for k in (k for k in (0, *COUNTS) if k <= inverse.sigma.shape[-1] - r):
        inside = shares(coefficients, r, k) if k else torch.zeros(2, len(X), 1)
        energy, space = (share.mean(dim=-1, keepdim=True) for share in inside)
        U = inverse.basis(truncated(coefficients, k), max(i, j))
        means = subspace.means_of_pairs(subspace.phi_map(U, U, i, j))
        numbers = torch.cat([energy, space, means], dim=-1).tolist()
        for name, row in zip(names, numbers, strict=True):
            yield name, k, row


def statement(result: Spectra) -> str:
    """What W0's smallest directions hold and what their removal leaves, in a sentence; "" if nothing."""
    a = result.along
    if not len(a):
        return ""
    last = a.k.max()
    means = a.groupby(["source", "module", "matrix", "k"]).mean(numeric_only=True)

    def of(source: str, column: str, k: int) -> str:
        values = means.xs((source, k), level=("source", "k"))[column].dropna()
        low, high = (typeset.number(end, 3) for end in (values.min(), values.max()))
        return low if low == high else f"{low} to {high}"

    return (
        f"Along W₀'s {last} smallest of its singular directions lies a share {of(TRAINED, 'energy', last)} of the "
        f"squared norm of trained conversion matrices, and {of(CONTROL, 'energy', last)} with Gaussian A and "
        f"B. Taking these directions out leaves a mean φ of {of(TRAINED, 'off_diagonal', last)} (trained) "
        f"and {of(CONTROL, 'off_diagonal', last)} (Gaussian A and B), where random subspaces have "
        f"{of(TRAINED, 'random', 0)}."
    )


def table_of_spectra(result: Spectra) -> typeset.Table:
    """Largest, median and smallest singular values and the condition number of every W0."""
    rows, data = [], []
    for (module, layer), group in result.sigma.groupby(["module", "layer"], sort=False):
        values = group.sigma.to_numpy()  # smallest first
        eighth = values[min(7, len(values) - 1)]
        numbers = [values[-1], np.median(values), eighth, values[0], values[-1] / values[0]]
        digits = (2, 3, 4, 5, 0)
        text = [typeset.number(x, n) for x, n in zip(numbers, digits, strict=True)]
        rows.append([module, str(layer), *text])
        data.append([module, layer, *numbers])
    names = ["largest", "median", "eighth_smallest", "smallest", "condition_number"]
    return typeset.Table(
        name="figure1_spectra",
        title="Singular values of W₀",
        header=["modules", "layer", *(name.replace("_", " ") for name in names)],
        rows=rows,
        data=pd.DataFrame(data, columns=["module", "layer", *names]),
        notes=["Condition number: the largest over the smallest."],
    )


def table_of_directions(result: Spectra) -> typeset.Table:
    """W0's smallest directions: alike between layers? How much of conversion matrices do they hold?"""
    rows = []
    for (module, matrix), group in result.directions.groupby(["module", "matrix"], sort=False):
        name = [module, MATRIX_LABEL[matrix]]
        for column, text in (("off_diagonal", "φ between layers"), ("random", "random directions")):
            values = dict(zip(group.k, group[column], strict=True))
            cells = [typeset.number(values.get(k, np.nan), 4) for k in COUNTS]
            rows.append([*name, f"the directions: {text}", typeset.UNDEFINED, *cells])
        rows += [[*name, *row] for row in _rows_along(result, module, matrix)]
    return typeset.Table(
        name="figure1_smallest_directions",
        title="W₀'s smallest singular directions, and conversion matrices with and without them",
        header=["modules", "matrix", "quantity", "k = 0", *map(str, COUNTS)],
        rows=rows,
        data=result.along.merge(
            result.directions.drop(columns=["deep", "shallow"]),
            on=["module", "matrix", "k"],
            how="left",
            suffixes=("", "_of_directions"),
        ),
        notes=[
            "Columns: the number k of smallest singular directions of W₀. Energy: their share of the "
            "squared norm of a conversion matrix, mean over layers. Space: φ between the matrix's "
            "columns' space and them. Taken out: mean φ over pairs of layers once they are projected "
            "out. Mean over runs of all tasks and seeds, and over draws of Gaussian A and B; every "
            "value is in the csv.",
        ],
        text_columns=3,
    )


def _rows_along(result: Spectra, module: str, matrix: str) -> list[list[str]]:
    rows = []
    a = result.along[(result.along.module == module) & (result.along.matrix == matrix)]
    for column, text in (("energy", "energy"), ("space", "space"), ("off_diagonal", "taken out")):
        for source, label in LABEL.items():
            cells = []
            for k in (0, *COUNTS):
                values = a.loc[(a.source == source) & (a.k == k), column]
                has_value = len(values) and not (k == 0 and column != "off_diagonal")
                mean = summarise(values.to_numpy()).mean if has_value else np.nan
                cells.append(typeset.number(mean, 4))
            rows.append([f"{label}: {text}", *cells])
    return rows
