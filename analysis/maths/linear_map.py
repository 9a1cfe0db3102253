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

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from analysis.maths import subspace
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


def left_out(M: Tensor, X: Tensor) -> Tensor:
    """phi (n, L) of each layer with the map fitted without its fold: the second of `explained`, without the others."""
    return _left_out(_Problem.of(M, X))[0]


def explained(M: Tensor, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fits one map over all layers, and one without each layer's fold; see above.

    M (L, d, p) and X (n, L, d, r) for n runs, L at least 2, any float type. Returns float64 (n, L)
    each: phi of the fit on all layers, phi of the layer left out, and the share of that layer's
    ||X_l||^2 in the span of M_l T. NaN where an X_l has rank below r.
    """
    problem, r = _Problem.of(M, X), X.shape[-1]
    everywhere = _yielded(problem.M, _best_map(problem.grams.sum(dim=0), problem.inside))
    return subspace.phi(everywhere, problem.Q, r, r), *_left_out(problem)


@dataclass(frozen=True)
class _Problem:
    """M (L, d, p) of norm one and their M_l' M_l; X (n, L, d, r), bases Q of its spans, and M_l' Q_l."""

    M: Tensor
    grams: Tensor
    X: Tensor
    Q: Tensor
    inside: Tensor

    @classmethod
    def of(cls, M: Tensor, X: Tensor) -> "_Problem":
        is_one_matrix = M.stride(0) == 0  # the same in all layers, expanded
        M = M.double() / torch.linalg.matrix_norm(M.double())[:, None, None]
        grams = (M[:1].mT @ M[:1]).expand(len(M), -1, -1) if is_one_matrix else M.mT @ M
        Q = subspace.span_basis(X)
        # An undefined Q_l is left out of the fits, and phi with it stays undefined.
        return cls(M, grams, X, Q, subspace.in_each_layer(M.mT, Q).nan_to_num())


def _left_out(problem: _Problem) -> tuple[Tensor, Tensor]:
    """phi and share of energy (n, L) of each layer, with the map fitted without its fold."""
    M, X, Q, r, L = problem.M, problem.X, problem.Q, problem.Q.shape[-1], len(problem.M)
    whole = problem.grams.sum(dim=0)
    found, energy = torch.empty(2, len(X), L, dtype=torch.float64)
    for fold in torch.arange(L) % FOLDS == torch.arange(min(L, FOLDS))[:, None]:
        gram = whole - problem.grams[fold].sum(dim=0)
        U = _yielded(M[fold], _best_map(gram, problem.inside[:, ~fold]))
        x = X[:, fold].double()
        found[:, fold] = subspace.phi(U, Q[:, fold], r, r)
        energy[:, fold] = (U.mT @ x).square().sum(dim=(-2, -1)) / x.square().sum(dim=(-2, -1))
    return found, energy


def _yielded(M: Tensor, T: Tensor) -> Tensor:
    """Bases (n, L, d, r) of what the maps T (n, p, r) yield from each layer's M (L, d, p)."""
    each = T[:, None].expand(-1, len(M), -1, -1)
    return subspace.span_basis(subspace.in_each_layer(M, each))


def _best_map(gram: Tensor, inside: Tensor) -> Tensor:
    """T (n, p, r) for gram = sum M_l' M_l (p, p) and inside = M_l' Q_l (n, L, p, r).

    With gram = C C', T = C'^-1 times the r leading left singular vectors of C^-1 [M_l' Q_l]_l.
    """
    n, L, p, r = inside.shape
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(p, dtype=gram.dtype)
    C = torch.linalg.cholesky(gram + ridge)
    columns = inside.permute(2, 0, 1, 3).reshape(p, n * L * r)
    Y = torch.linalg.solve_triangular(C, columns, upper=False).reshape(p, n, L * r).movedim(1, 0)
    # Its right singular vectors come from the small matrix Y'Y, whose largest eigenvalue is last.
    U = Y @ torch.linalg.eigh(Y.mT @ Y).eigenvectors[..., -r:].flip(-1)
    T = torch.linalg.solve_triangular(C.mT, U.movedim(0, 1).reshape(p, n * r), upper=True)
    return T.reshape(p, n, r).movedim(1, 0)


def linear_maps(stacks: list[Stack], settings: Settings) -> LinearMap:
    """Every LoRA stack of two layers or more, each form that its W0's shape allows, and the nulls."""
    rows, chance = [], {}
    for stack in (s for s in stacks if s.adapter == REFERENCE and len(s.layers) > 1):
        generator = settings.generator()
        for form, M, X in _problems(stack):
            n, r = len(X), X.shape[-1]
            chance[stack.module, form] = subspace.expected_random_phi(r, r, X.shape[-2])
            runs = [(cell.task, f"seed {cell.seed}") for cell in stack.cells]
            identity = torch.eye(X.shape[-2]).expand(len(stack.layers), -1, -1)
            shared = (SHARED, runs, _means(identity, X))
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


def _means(M: Tensor, X: Tensor) -> Tensor:
    return torch.stack(explained(M, X), dim=-1).mean(dim=1)
