"""Which directions two LoRAs share: the LoRA paper's subspace analyses (Hu et al., section 7.2).

Takes the matrices of finished runs of LoRA and CondLoRA, gives phi over all numbers of singular
vectors (i, j) between A at two ranks (figure 3 of arXiv 2106.09685) and between A, or delta W, of
two seeds (their figure 4) or of two tasks. The reference is Gaussian A and B for LoRA, as in their figure, and for CondLoRA the A and B
that Gaussian maps give from the same W: W alone makes two of them similar.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.study.names import adapter_order
from analysis.study.rank_selection import PAPER_RANK, by_method, shown_rank
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

RANKS, SEEDS, TASKS = "ranks", "seeds", "tasks"  # what two runs differ in


@dataclass(frozen=True)
class Comparison:
    """phi over all (i, j) between two ranks, seeds or tasks, for one matrix of one method and module.

    phi (pairs, L, I, J); random (draws, L, I, J): of `gaussian_factors`, nothing learned; pairs: task (or both),
    seed of the first and seed of the second; layers: the L layers, from 1.
    """

    compared: str
    method: str
    module: str
    matrix: str
    phi: np.ndarray
    random: np.ndarray
    pairs: list[tuple[str, int, int]]
    layers: list[int]

    @property
    def counts(self) -> tuple[int, int]:
        """The two ranks (I, J)."""
        return self.phi.shape[2:]

    def at(self, i: int, j: int) -> np.ndarray:
        """phi(i, j), (pairs, L)."""
        return self.phi[:, :, i - 1, j - 1]

    def random_at(self, i: int, j: int) -> float:
        """phi(i, j) of random factors, mean over draws and layers."""
        return float(self.random[:, :, i - 1, j - 1].mean())


@dataclass(frozen=True)
class LoraSubspace:
    """All comparisons the runs allow, and what they do not allow yet (`notes`)."""

    comparisons: list[Comparison]
    notes: list[str]

    @property
    def layers(self) -> list[int]:
        """All layers that any of the comparisons has."""
        return sorted({layer for c in self.comparisons for layer in c.layers})

    def between(self, compared: str) -> list[Comparison]:
        """Those between ranks, seeds or tasks, by matrix, module and method."""
        return sorted(
            (c for c in self.comparisons if c.compared == compared),
            key=lambda c: (c.matrix, c.module, adapter_order(c.method)),
        )


def phi_all(U_X: Tensor, U_Y: Tensor) -> Tensor:
    """phi(i, j) of equation 2 for all i and j at once, by cumulative sums of one matrix.

    U_X (..., d, I) and U_Y (..., d, J) with orthonormal columns, leading dimensions broadcast;
    returns (..., I, J) whose entry [i - 1, j - 1] compares the leading i and j vectors. Hu et al.,
    equation 4.
    """
    squares = (U_X.mT @ U_Y).square()
    i, j = (torch.arange(1, size + 1) for size in squares.shape[-2:])
    return squares.cumsum(-2).cumsum(-1) / torch.minimum(i[:, None], j)


def gaussian_factors(
    stack: Stack, r: int, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A (draws, L, r, in) and B (draws, L, out, r) with nothing learned, as the stack's method has them.

    For LoRA Gaussian A and B; for CondLoRA those that Gaussian maps, the same in all layers, make
    from W in the form of the stack's runs.
    """
    L, out, width = len(stack.layers), stack.B.shape[-2], stack.A.shape[-1]
    if stack.adapter != "condlora":
        A = subspace.gaussian((draws, L, r, width), generator)
        return A, subspace.gaussian((draws, L, out, r), generator)
    # Here, as it imports PEFT, which takes seconds.
    from condlora.tuner.methods.condlora import make_factors, theta_shapes

    form = stack.cells[0].record["recipe"]["adapter"]["config"]["form"]
    shapes = theta_shapes(out, width, draws * r, form)
    thetas = [subspace.gaussian(shape, generator) for shape in shapes]  # all draws in one matrix
    made = [make_factors(W, *thetas, form) for W in stack.W.double()]
    A, B = (torch.stack([factors[n] for factors in made]) for n in (0, 1))
    A, B = A.unflatten(1, (draws, r)), B.unflatten(2, (draws, r))
    return A.movedim(1, 0), B.movedim(2, 0)


def compare(stacks: list[Stack], settings: Settings) -> LoraSubspace:
    """phi over all (i, j) between two ranks and between seeds, of finished runs of any ranks."""
    stacks = by_method(stacks)
    ranks = sorted({_rank(stack) for stack in stacks})
    generator = settings.generator()

    def draws(r: int) -> int:  # fewer at higher ranks: each costs more and varies less
        return max(5, settings.baseline_draws // r)

    comparisons, notes = [], []
    if len(ranks) > 1:
        low = PAPER_RANK if PAPER_RANK in ranks[:-1] else ranks[0]
        comparisons = _between_ranks(stacks, low, ranks[-1], draws(ranks[-1]), generator)
    if not comparisons:
        notes.append("No task and seed has finished runs of one method at two ranks.")
    # The highest rank that has two seeds, as Hu et al. take theirs.
    found = (_between_runs(SEEDS, stacks, r, draws(r), generator) for r in ranks[::-1])
    seeds = next(filter(None, found), [])
    if not seeds:
        notes.append("No task has finished runs of one method and rank with two seeds.")
    r = shown_rank(stacks)
    tasks = _between_runs(TASKS, stacks, r, draws(r), generator)
    return LoraSubspace([*comparisons, *seeds, *tasks], notes)


def _rank(stack: Stack) -> int:
    return stack.A.shape[-2]


def _positions(stack: Stack) -> dict[tuple[str, int], int]:
    """(task, seed) -> position of the run."""
    return {(cell.task, cell.seed): n for n, cell in enumerate(stack.cells)}


def _between_ranks(
    stacks: list[Stack], low: int, high: int, draws: int, generator: torch.Generator
) -> list[Comparison]:
    """A at two ranks, same method, task and seed; right singular vectors."""
    of = {(stack.adapter, stack.module, _rank(stack)): stack for stack in stacks}
    found = []
    for (method, module, r), X in of.items():
        Y = of.get((method, module, high))
        if r != low or Y is None:
            continue
        in_X, in_Y = _positions(X), _positions(Y)
        shared = sorted(in_X.keys() & in_Y.keys())
        if shared:
            U_X, U_Y = (subspace.right_basis(stack.A, _rank(stack)) for stack in (X, Y))
            phi = [phi_all(U_X[in_X[run]], U_Y[in_Y[run]]) for run in shared]
            random = phi_all(*(_random_bases(X, k, draws, generator)["A"] for k in (low, high)))
            pairs = [(task, seed, seed) for task, seed in shared]
            found.append(_comparison(RANKS, X, "A", phi, random, pairs))
    return found


def _between_runs(
    compared: str, stacks: list[Stack], r: int, draws: int, generator: torch.Generator
) -> list[Comparison]:
    """A (right singular vectors) and delta W (left) of every two seeds of one method and task, or tasks of one seed.

    phi(i, j) of a pair is the mean of both orders, as neither run comes first.
    """
    same = 0 if compared == SEEDS else 1  # of (task, seed), what both runs share
    found = []
    for stack in (stack for stack in stacks if _rank(stack) == r):
        runs = _positions(stack)
        every = itertools.combinations(sorted(runs), 2)
        pairs = [(x, y) for x, y in every if x[same] == y[same]]
        if not pairs:
            continue
        names = [(" and ".join(dict.fromkeys((x[0], y[0]))), x[1], y[1]) for x, y in pairs]
        X, Y = (_random_bases(stack, r, draws, generator) for _ in range(2))
        for matrix, U in _bases(stack.A, stack.B).items():
            phi = [_symmetric(phi_all(U[runs[x]], U[runs[y]])) for x, y in pairs]
            random = _symmetric(phi_all(X[matrix], Y[matrix]))
            found.append(_comparison(compared, stack, matrix, phi, random, names))
    return found


def _symmetric(phi: Tensor) -> Tensor:
    return (phi + phi.mT) / 2


def _bases(A: Tensor, B: Tensor) -> dict[str, Tensor]:
    r = A.shape[-2]
    return {
        "A": subspace.right_basis(A, r),
        "delta_W": subspace.left_basis_of_product(B, A, r),
    }


def _random_bases(
    stack: Stack, r: int, draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    return _bases(*gaussian_factors(stack, r, draws, generator))


def _comparison(
    compared: str,
    stack: Stack,
    matrix: str,
    phi: list[Tensor],
    random: Tensor,
    pairs: list[tuple[str, int, int]],
) -> Comparison:
    names = (compared, stack.adapter, stack.module, matrix)
    return Comparison(*names, torch.stack(phi).numpy(), random.numpy(), pairs, stack.layers)
