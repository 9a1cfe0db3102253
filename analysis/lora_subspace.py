"""Which directions two LoRAs share: the LoRA paper's subspace analyses (Hu et al., section 7.2).

Takes the matrices of finished runs of LoRA and CondLoRA, gives phi over all numbers of singular
vectors (i, j) between A at two ranks (figure 3 of arXiv 2106.09685) and between A, or delta W, of
two seeds (their figure 4). Beside LoRA stand Gaussian A and B, as in their figure; beside CondLoRA
A and B that Gaussian maps make from the same W, since W alone already makes two of them alike.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from analysis.maths import subspace
from analysis.present import lora_subspace_figures as figures
from analysis.present import typeset
from analysis.present.figures import label
from analysis.present.typeset import Picture, Section, Table
from analysis.stats.significance import summarise
from analysis.study.rank_selection import PAPER_RANK, by_method, load_ranks
from analysis.study.selection import MATRIX_LABEL, Settings, Stack, adapter_order, open_study
from condlora.commands.cli import command

RANKS, SEEDS = "ranks", "seeds"  # what is compared: two ranks, or two seeds


@dataclass(frozen=True)
class Comparison:
    """phi over all (i, j) between two ranks or two seeds, for one matrix of one method and module.

    phi (pairs, L, I, J); random (draws, L, I, J): of `gaussian_factors`, nothing learned; pairs: task,
    seed of the first and seed of the second.
    """

    compared: str
    method: str
    module: str
    matrix: str
    phi: np.ndarray
    random: np.ndarray
    pairs: list[tuple[str, int, int]]

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
    layers: list[int]
    notes: list[str]

    def of(self, compared: str) -> list[Comparison]:
        """Those between ranks or between seeds, by matrix, module and method."""
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
    L, out, width = stack.W.shape
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
    found = (_between_seeds(stacks, r, draws(r), generator) for r in ranks[::-1])
    seeds = next(filter(None, found), [])
    if not seeds:
        notes.append("No task has finished runs of one method and rank with two seeds.")
    return LoraSubspace([*comparisons, *seeds], stacks[0].layers, notes)


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


def _between_seeds(
    stacks: list[Stack], r: int, draws: int, generator: torch.Generator
) -> list[Comparison]:
    """A (right singular vectors) and delta W (left) of every two seeds of one method and task.

    phi(i, j) of a pair is the mean of both orders, as neither seed comes first.
    """
    found = []
    for stack in (stack for stack in stacks if _rank(stack) == r):
        runs = _positions(stack)
        pairs = [(x, y) for x, y in itertools.combinations(sorted(runs), 2) if x[0] == y[0]]
        if not pairs:
            continue
        names = [(task, first, second) for (task, first), (_, second) in pairs]
        X, Y = (_random_bases(stack, r, draws, generator) for _ in range(2))
        for matrix, U in _bases(stack.A, stack.B).items():
            phi = [_symmetric(phi_all(U[runs[x]], U[runs[y]])) for x, y in pairs]
            random = _symmetric(phi_all(X[matrix], Y[matrix]))
            found.append(_comparison(SEEDS, stack, matrix, phi, random, names))
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
    return Comparison(*names, torch.stack(phi).numpy(), random.numpy(), pairs)


def table(result: LoraSubspace) -> Table:
    """phi at three places of each map, over runs and layers, beside random subspaces."""
    rows, data = [], []
    for c in [*result.of(RANKS), *result.of(SEEDS)]:
        low, high = c.counts
        few = min(4, low)
        name = [_what(c), c.module, MATRIX_LABEL[c.matrix], label(c.method)]
        cells = []
        for i, j in ((1, 1), (few, few), (low, high)):
            means = c.at(i, j).mean(axis=1)
            random = c.random_at(i, j)
            cells += [typeset.spread(summarise(means), 4), typeset.number(random, 4)]
            data += [
                [c.compared, c.module, c.matrix, c.method, i, j, *pair, layer, value, random]
                for pair, by_layer in zip(c.pairs, c.at(i, j).tolist(), strict=True)
                for layer, value in zip(result.layers, by_layer, strict=True)
            ]
        rows.append([*name, *cells])
    columns = ["compared", "module", "matrix", "method", "i", "j", "task", "seed_x", "seed_y"]
    return Table(
        name="lora_subspace",
        title="Shared directions: φ between two ranks and between two seeds",
        header=[
            "compared",
            "modules",
            "matrix",
            "method",
            "φ(1, 1)",
            "random",
            "φ(4, 4)",
            "random",
            "φ of all",
            "random",
        ],
        rows=rows,
        data=pd.DataFrame(data, columns=[*columns, "layer", "phi", "random"]),
        notes=[
            "Mean over layers of the same layer's matrices; mean ± sd over pairs of runs (n), which "
            "share runs where a task has more than two seeds. Right singular vectors of A, left ones "
            "of ΔW; φ(4, 4) is of all where the rank is lower. Random: nothing learned, mean over layers and "
            "draws; for LoRA Gaussian A and B, for CondLoRA what Gaussian maps make from the same W. "
            "The csv has every pair and layer.",
            *result.notes,
        ],
        text_columns=4,
    )


def _what(c: Comparison) -> str:
    low, high = c.counts
    return f"r = {low} and r = {high}" if c.compared == RANKS else f"two seeds, r = {low}"


def table_by_layer(result: LoraSubspace) -> Table:
    """phi of the leading directions and of all of them, a column for each layer."""
    rows, data = [], []
    for c in [*result.of(RANKS), *result.of(SEEDS)]:
        for i, j in ((1, 1), c.counts):
            found = [summarise(c.at(i, j)[:, n]) for n in range(len(result.layers))]
            random = typeset.number(c.random_at(i, j), 3)
            name = [_what(c), c.module, MATRIX_LABEL[c.matrix], label(c.method), f"φ({i}, {j})"]
            cells = [typeset.spread(x, 3, with_n=False) for x in found]
            rows.append([*name, str(len(c.pairs)), *cells, random])
            data += [
                [c.compared, c.module, c.matrix, c.method, i, j, layer, x.mean, x.sd, x.n]
                for layer, x in zip(result.layers, found, strict=True)
            ]
    columns = ["compared", "module", "matrix", "method", "i", "j", "layer", "mean", "sd", "n"]
    header = ["compared", "modules", "matrix", "method", "φ(i, j)", "n"]
    return Table(
        name="lora_subspace_by_layer",
        title="Shared directions, layer by layer",
        header=[*header, *map(str, result.layers), "random"],
        rows=rows,
        data=pd.DataFrame(data, columns=columns),
        notes=["Columns are layers; mean ± sd over n pairs of runs."],
        text_columns=5,
    )


def draw(result: LoraSubspace, folder: Path) -> dict[str, Path]:
    """Heat maps over all (i, j), between ranks and between seeds; name -> png."""
    names = {f"lora_subspace_{compared}": result.of(compared) for compared in (RANKS, SEEDS)}
    return {name: figures.draw(found, folder / name) for name, found in names.items() if found}


def section(result: LoraSubspace, folder: Path) -> Section:
    """Figures 3 and 4 of the LoRA paper for our runs; figures go to `folder`."""
    title = "The LoRA paper's question: do two ranks, or two seeds, learn the same directions?"
    if not result.comparisons:
        return Section(title, result.notes, [], [])
    pictures = [
        Picture(path, alt=_alt(result, name), caption=_CAPTIONS[name])
        for name, path in draw(result, folder).items()
    ]
    text = [*_statements(result), *result.notes]
    return Section(title, text, [*pictures, table(result)], [table_by_layer(result)])


_RANDOM = (
    "Beside each the same with nothing learned: Gaussian A and B for LoRA, for CondLoRA what Gaussian "
    "maps make from the same W₀."
)
_CAPTIONS = {
    "lora_subspace_ranks": "φ between the leading i right singular vectors of A at the lower rank "
    "and the leading j at the higher, mean over layers, tasks and seeds (Hu et al., figure 3). "
    + _RANDOM,
    "lora_subspace_seeds": "φ between the leading i singular vectors of one seed and the leading j of "
    "another, mean over layers, tasks and pairs of seeds (Hu et al., figure 4, which has A alone). "
    + _RANDOM,
}


def _alt(result: LoraSubspace, name: str) -> str:
    means = (
        f"{label(c.method)} {c.module} {MATRIX_LABEL[c.matrix]}: "
        f"{typeset.number(c.at(1, 1).mean(), 3)} and {typeset.number(c.at(*c.counts).mean(), 3)}"
        for c in result.of(name.removeprefix("lora_subspace_"))
    )
    return f"Heat maps of φ over all i and j. φ(1, 1) and φ of all: {'; '.join(means)}."


def _statements(result: LoraSubspace) -> list[str]:
    """What the leading direction does, in words: one sentence for ranks and one for seeds."""
    lines = []
    for compared in (RANKS, SEEDS):
        found = result.of(compared)
        if not found:
            continue
        means = (
            f"{label(c.method)}'s {MATRIX_LABEL[c.matrix]}, {c.module}: "
            f"{typeset.number(c.at(1, 1).mean(), 3)} "
            f"(nothing learned: {typeset.number(c.random_at(1, 1), 3)})"
            for c in found
        )
        lines.append(f"φ(1, 1) of the leading direction, {_what(found[0])}. {'; '.join(means)}.")
    return lines


@command("analysis/settings")
def main(cfg: DictConfig) -> None:
    study = open_study(cfg)
    result = compare(load_ranks(study.done), study.settings)
    print(*result.notes, sep="\n", end="\n" * bool(result.notes))
    if not result.comparisons:
        return
    for table_ in (table(result), table_by_layer(result)):
        typeset.write(table_, study.folder / "tables")
    for path in draw(result, study.folder / "figures").values():
        print(f"Subspaces: {path}")
    print(f"Their numbers: {study.folder / 'tables' / 'lora_subspace.md'}")


if __name__ == "__main__":
    main()
