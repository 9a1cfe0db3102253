"""What W0^-1 does by itself: its singular vectors, and how conversion matrices lie along them.

With W0 = U S V', the inverse is V S^-1 U'. Whatever it is applied to, the result lies along the
columns of V, each weighted by one over its singular value: so along the right singular vectors of
W0's smallest singular values, if these are small enough. U decides only how much of the matrix
falls on each. Two layers' conversion matrices are therefore similar, although nothing was learned, where the
layers' smallest right singular vectors are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.conversion_similarity import CONTROL, TRAINED
from analysis.maths.decomposition import decompose
from analysis.maths.layers import in_each_layer, turned
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

COUNTS = (1, 2, 4, 8, 16, 32)  # how many of W0's smallest singular directions are looked at
DRAWS = 20  # of Gaussian A and B per truncation: each costs a pass over all pairs of layers


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
        return in_each_layer(self.right.mT, X) / self.sigma[..., None]

    @cached_property
    def frames(self) -> Tensor:
        """`left` in float32, for `turned`."""
        return self.left.float()

    def basis(self, coefficients: Tensor, i: int, j: int) -> Tensor:
        """What phi takes with i and j of left @ coefficients, see `subspace.compared_basis`; float32 (..., L, n, k)."""
        return turned(self.frames, subspace.compared_basis(coefficients, i, j))


def inverses(stack: Stack) -> dict[str, Inverse]:
    """By matrix, "A" and "B", the inverse that its conversion matrices are made with.

    One singular value decomposition per layer. They are one and the same for square W; otherwise
    A's is that of W', as in `subspace.conversion_matrices`. Raises subspace.NotInvertible likewise.
    """
    W = decompose(stack.W, stack.layers)
    U, S, V = W.U.flip(-1), W.sigma.flip(-1), W.V.flip(-1)
    of_B = Inverse(V, S, U)
    return {"A": of_B if W.is_square else Inverse(U, S, V), "B": of_B}


def shares(coefficients: Tensor, r: int, k: int) -> tuple[Tensor, Tensor]:
    """How much of conversion matrices lies in the k smallest singular directions of W0.

    coefficients (..., L, m, r) as from `Inverse.coefficients`. Returns two (..., L): the share of
    the squared Frobenius norm, and phi between the matrix's column space and those k directions,
    which gives each of the r directions the same weight.
    """
    energy = coefficients[..., :k, :].square().sum(dim=(-2, -1))
    basis = subspace.compared_basis(coefficients, r, r)
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
    the mean phi over pairs once those directions are taken out (k = 0: none is removed), and its
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


def joined(spectra: list[Spectra]) -> Spectra:
    """Those of several stacks in one, so that no two stacks' inverses are needed at once."""
    return Spectra(
        *(
            pd.concat([getattr(one, field.name) for one in spectra], ignore_index=True)
            for field in fields(Spectra)
        )
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
        U = inverse.basis(truncated(coefficients, k), i, j)
        means = subspace.means_of_pairs(subspace.phi_map(U, U, i, j))
        numbers = torch.cat([energy, space, means], dim=-1).tolist()
        for name, row in zip(names, numbers, strict=True):
            yield name, k, row
