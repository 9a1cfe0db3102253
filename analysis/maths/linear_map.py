"""The share of A or B that one linear map of W0 explains: the fit, and the left-out layers.

CondLoRA assumes maps theta, shared by all layers, with A_l = theta_A W_l' (form `code`) or theta_A W_l
(`consistent`), and B_l = W_l theta_B' (both). Of a LoRA's own A_l and B_l only the spans are determined:
(B G)(G^-1 A) is the same update for any invertible G. So the question is whether one matrix T puts the span of
M_l T on the span of X_l in every layer, with M_l = W_l or W_l', and X_l = A_l' or B_l, whose orthonormal basis is
Q_l. The fitted T maximises

    sum_l ||Q_l' M_l T||^2   subject to   T' (sum_l M_l' M_l) T = I,   each M_l scaled to norm one:

the share of what the map yields, over all layers, that lies in the spans to be explained. The constraint excludes
the trivial T = 0. It is the least-squares problem sum_l ||Q_l G_l - M_l T||^2 with every G_l free, at its best
G_l = Q_l' M_l T, and its solution is known: the leading generalised eigenvectors. No W0 is inverted here, so small
singular values carry no weight of their own.

T has r x d entries against r directions of d in each layer: with few layers it fits anything in part. What counts
are layers left out: T is fitted on the others (every sixth layer is left out at a time, so one of six layers, two
of twelve), and the share explained is phi between the spans of M_l T and X_l (i = j = r), 1 under the hypothesis
and r / d by chance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.layers import in_each_layer, parts
from analysis.study.names import REFERENCE
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

TRAINED, OTHER_LAYER, RANDOM = "trained", "other_layer_W0", "random_W0"
SHARED, GAUSSIAN = "no_W0", "gaussian_A_B"
FOLDS = 6
GAUSSIAN_DRAWS = 24  # each is fitted once per fold; its value is already a mean over layers
# Keeps the constraint positive definite where a few layers leave directions that no M_l reaches.
RIDGE = 1e-10


@dataclass(frozen=True)
class LinearMap:
    """How much of LoRA's A and B one linear map of W0 explains.

    values: a row per module, form, source, task and run or draw (`run_or_draw`), each the mean over layers:
    `fitted` (phi of the map fitted on all layers), `left_out` (phi of the layer left out), `energy`
    (the share of the squared norm of A or B in the same span). chance: (module, form) -> r / d.
    """

    values: pd.DataFrame
    chance: dict[tuple[str, str], float]


def left_out(M: Tensor | None, X: Tensor) -> Tensor:
    """phi (n, L) of each layer with the map fitted without its fold: the second of `explained`, without the others."""
    shared = _Shared.of(M, X.shape[1])
    found = torch.empty(X.shape[:2], dtype=torch.float64)
    for x, phi in zip(parts(X), parts(found), strict=True):
        sets = _Sets.of(shared, x)
        for fold, U in _spans_left_out(shared, sets):
            phi[:, fold] = subspace.phi(U, sets.Q[:, fold], X.shape[-1], X.shape[-1])
    return found


def explained(M: Tensor | None, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fits one map over all layers, and one without each layer's fold; see above.

    M (L, d, p), None for the identity in all layers, and X (n, L, d, r) for n runs, L at least 2, any float type. Returns
    float64 (n, L) each: phi of the fit on all layers, phi of the layer left out, and the share of that layer's
    ||X_l||^2 in the span of M_l T. NaN where an X_l has rank below r.
    """
    shared, r = _Shared.of(M, X.shape[1]), X.shape[-1]
    fitted, left, energy = torch.empty(3, *X.shape[:2], dtype=torch.float64)
    for x, phi_fitted, phi_left, share in zip(*map(parts, (X, fitted, left, energy)), strict=True):
        sets = _Sets.of(shared, x)
        U = _yielded(shared.M, _best_map(shared.of_all, sets.inside))
        phi_fitted[:] = subspace.phi(U, sets.Q, r, r)
        for fold, U in _spans_left_out(shared, sets):
            y = x[:, fold].double()
            phi_left[:, fold] = subspace.phi(U, sets.Q[:, fold], r, r)
            share[:, fold] = _energy(U.mT @ y) / _energy(y)
    return fitted, left, energy


@dataclass(frozen=True)
class _Shared:
    """What all sets of X have in common.

    M (L, d, p) and its norms (L,), by which each M_l is to be divided; folds (F, L), the layers left out together; the
    Cholesky factors (p, p) of sum M_l' M_l over all layers and (F, p, p) over those outside each fold. Without an M, one
    span for all layers is asked for, and M_l = 1 needs no products and no solutions.
    """

    M: Tensor | None
    norms: Tensor | None
    folds: Tensor
    of_all: Tensor | None
    of_others: Tensor | None

    @classmethod
    def of(cls, M: Tensor | None, L: int) -> "_Shared":
        folds = torch.arange(L) % FOLDS == torch.arange(min(L, FOLDS))[:, None]
        if M is None:
            return cls(None, None, folds, None, None)
        M = M.double()
        norms = torch.linalg.matrix_norm(M)
        scaled = ((M[fold] / norms[fold, None, None]).flatten(0, 1) for fold in folds)
        grams = torch.stack([rows.mT @ rows for rows in scaled])
        whole = grams.sum(dim=0)
        # One by one, which takes less memory.
        of_others = torch.stack([_factor(whole - gram) for gram in grams])
        return cls(M, norms, folds, _factor(whole), of_others)


@dataclass(frozen=True)
class _Sets:
    """Bases Q (n, L, d, r) of the spans of X, and M_l' Q_l (n, L, p, r) for each M_l of norm one."""

    Q: Tensor
    inside: Tensor

    @classmethod
    def of(cls, shared: _Shared, X: Tensor) -> "_Sets":
        Q = inside = subspace.span_basis(X)
        if shared.M is not None:
            inside = in_each_layer(shared.M.mT, Q) / shared.norms[:, None, None]
        # An undefined Q_l is left out of the fits, and phi with it stays undefined.
        return cls(Q, inside.nan_to_num())


def _factor(gram: Tensor) -> Tensor:
    """C (p, p), lower triangular, with C C' = gram (p, p)."""
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.cholesky(gram + ridge)


def _energy(X: Tensor) -> Tensor:
    return X.square().sum(dim=(-2, -1))


def _spans_left_out(shared: _Shared, sets: _Sets) -> Iterator[tuple[Tensor, Tensor]]:
    """Each fold, and what the map fitted without it yields there (n, layers of the fold, d, r)."""
    for number, fold in enumerate(shared.folds):
        C = None if shared.M is None else shared.of_others[number]
        M = None if shared.M is None else shared.M[fold]
        yield fold, _yielded(M, _best_map(C, sets.inside[:, ~fold]))


def _yielded(M: Tensor | None, T: Tensor) -> Tensor:
    """Bases (n, L, d, r) of what the maps T (n, p, r) yield from each layer's M (L, d, p).

    Without M every layer has the same basis, and the result is (n, 1, d, r).
    """
    if M is None:
        return subspace.span_basis(T)[:, None]
    each = T[:, None].expand(-1, len(M), -1, -1)
    return subspace.span_basis(in_each_layer(M, each))


def _best_map(C: Tensor | None, inside: Tensor) -> Tensor:
    """T (n, p, r) for C C' = sum M_l' M_l (p, p) and inside = M_l' Q_l (n, L, p, r).

    T = C'^-1 times the r leading left singular vectors of C^-1 [M_l' Q_l]_l; without C, where all M_l = 1, these vectors.
    """
    n, L, p, r = inside.shape
    if C is None:
        return _leading(inside.movedim(1, 2).flatten(-2), r)
    columns = inside.permute(2, 0, 1, 3).reshape(p, n * L * r)
    Y = torch.linalg.solve_triangular(C, columns, upper=False).reshape(p, n, L * r).movedim(1, 0)
    U = _leading(Y, r)
    T = torch.linalg.solve_triangular(C.mT, U.movedim(0, 1).reshape(p, n * r), upper=True)
    return T.reshape(p, n, r).movedim(1, 0)


def _leading(Y: Tensor, r: int) -> Tensor:
    """The r leading left singular vectors of Y (n, p, m), each times its singular value: (n, p, r).

    Its right singular vectors come from the small matrix Y'Y, whose largest eigenvalue is last.
    """
    return Y @ torch.linalg.eigh(Y.mT @ Y).eigenvectors[..., -r:].flip(-1)


def linear_maps(stacks: list[Stack], settings: Settings) -> LinearMap:
    """Every LoRA stack of two layers or more, each form that its W0's shape allows, and the nulls."""
    rows, chance = [], {}
    for stack in (s for s in stacks if s.adapter == REFERENCE and len(s.layers) > 1):
        generator = settings.generator()
        for form, M, X in _problems(stack):
            n, r = len(X), X.shape[-1]
            chance[stack.module, form] = subspace.expected_random_phi(r, r, X.shape[-2])
            runs = [(cell.task, f"seed {cell.seed}") for cell in stack.cells]
            shared = (SHARED, runs, _means(None, X))
            if M is None:
                rows += _rows(stack.module, form, [shared])
                continue
            drawn = subspace.gaussian((GAUSSIAN_DRAWS, *X.shape[1:]), generator)
            # Each X with the M of the layer half the depth away: as other runs of the same M.
            moved = X.double().roll(len(M) // 2, dims=1)
            scores = _means(M, torch.cat([X.double(), moved, drawn]))
            named = [
                (TRAINED, runs, scores[:n]),
                (OTHER_LAYER, runs, scores[n : 2 * n]),
                (RANDOM, runs, _means(subspace.gaussian(M.shape, generator), X)),
                shared,
                (GAUSSIAN, [("", f"draw {k}") for k in range(GAUSSIAN_DRAWS)], scores[2 * n :]),
            ]  # fmt: skip
            rows += _rows(stack.module, form, named)
    columns = ["module", "form", "source", "task", "run_or_draw", "fitted", "left_out", "energy"]
    values = pd.DataFrame(rows, columns=columns)
    return LinearMap(values, chance)


def _rows(
    module: str, form: str, named: list[tuple[str, list[tuple[str, str]], Tensor]]
) -> list[list]:
    return [
        [module, form, source, task, name, *row]
        for source, names, numbers in named
        for (task, name), row in zip(names, numbers.tolist(), strict=True)
    ]


def _problems(stack: Stack) -> list[tuple[str, Tensor | None, Tensor]]:
    """(form, M (L, d, p), X (n, L, d, r)); the code's A = theta W' needs a square W. M is None without W."""
    if stack.W is None:
        return [("A_consistent", None, stack.A.mT), ("B", None, stack.B)]
    forms = [("A_consistent", stack.W.mT, stack.A.mT), ("B", stack.W, stack.B)]
    if stack.W.shape[-2] == stack.W.shape[-1]:
        forms.insert(0, ("A_code", stack.W, stack.A.mT))
    return forms


def _means(M: Tensor | None, X: Tensor) -> Tensor:
    return torch.stack(explained(M, X), dim=-1).mean(dim=1)
