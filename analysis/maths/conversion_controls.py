"""Figure 1's controls: are conversion matrices similar through training, or through W0's inverse alone?

The paper finds W0->A = W0^-1 A' and W0->B = W0^-1 B more similar between layers than Gaussian
matrices. Those never pass through W0^-1, so they cannot tell what was learned from what the inverse
does to anything. Each control below changes one thing, W0 = U S V' being the singular value
decomposition, so that W0^-1 = V S^-1 U':

- Gaussian A and B through W0^-1: nothing is learned and W0 is kept. The main control.
- LoRA before training: its A is Kaiming-uniform; its B is zero, so B's conversion is undefined.
- Another layer's A and B through this layer's W0^-1 (all cyclic shifts of the layers): training is
  kept, its tie to the layer's own W0 is cut.
- Another seed: layer l of one run against layer m of another, so that the two were not trained
  together.
- W0's spectrum with random singular vectors, of both sides or of one. The columns of W0^-1 X lie
  along V, weighted by S^-1: random V leaves random subspaces, whatever the adapter, and so does
  changing both; the value is max(i, j) / d by symmetry. U decides how X falls on these directions:
  random U sends every X to a random subspace before S^-1 and V act, which for i = j = r is the main
  control again, as a Gaussian X spans a random subspace. So what is learned shows in U' X or nowhere.
- W0's singular vectors with a flat spectrum: V U' X. Gaussian X stay Gaussian here, so what exceeds
  Gaussian matrices is a similarity that does not depend on small singular values.

For a rectangular W0 the roles of U and V in A's conversion matrices are exchanged, see
`subspace.conversion_matrices`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from analysis.maths import inverse_spectrum, subspace
from analysis.maths.conversion_similarity import CONTROL, GAUSSIAN, TRAINED
from analysis.maths.inverse_spectrum import Inverse, Spectra
from analysis.maths.layers import in_each_layer, parts
from analysis.study.names import REFERENCE
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

UNTRAINED, OTHER_LAYER, OTHER_SEED = "untrained", "other_layer", "other_seed"
BOTH_RANDOM, V_RANDOM, U_RANDOM = "random_U_and_V", "random_V", "random_U"
ROTATIONS = 4  # random singular vectors per run; each run's value is the mean over them


@dataclass(frozen=True)
class Controls:
    """Figure 1's quantity for trained adapters and for every control.

    values: a row per module, matrix, source, task and run, pair of runs or draw (`run_or_draw`): mean phi
    over pairs of layers (off_diagonal, deep, shallow). spectra: W0's own part.
    """

    values: pd.DataFrame
    spectra: Spectra
    notes: list[str]


def controls(stacks: list[Stack], settings: Settings) -> Controls:
    """All controls for every LoRA run, from the settings' generator alone."""
    rows, notes, spectra = [], [], []
    for stack in (stack for stack in stacks if stack.adapter == REFERENCE):
        try:
            inverses = inverse_spectrum.inverses(stack)
        except subspace.NotInvertible as error:
            notes.append(f"No controls for {stack.module} modules: {error}.")
            continue
        spectra.append(inverse_spectrum.spectra([(stack, inverses)], settings))
        for matrix, source, names, phi in _maps(stack, inverses, settings):
            for (task, name), means in zip(
                names, subspace.means_of_pairs(phi).tolist(), strict=True
            ):
                rows.append([stack.module, matrix, source, task, name, *means])
    columns = ["module", "matrix", "source", "task", "run_or_draw", *PAIRS]
    values = pd.DataFrame(rows, columns=columns)
    spectra = spectra or [inverse_spectrum.spectra([], settings)]
    return Controls(values, inverse_spectrum.joined(spectra), notes)


Maps = Iterator[tuple[str, str, list[tuple[str, str]], Tensor]]


def _maps(stack: Stack, inverses: dict[str, Inverse], settings: Settings) -> Maps:
    """(matrix, source, task and name of n runs or draws, phi (n, L, L)) of everything compared."""
    L, r, d_in = stack.A.shape[1:]
    d_out, n = stack.B.shape[2], settings.baseline_draws
    i, j = settings.counts(r)
    generator = settings.generator()
    # The draws of Figure 1, in its order.
    drawn_A = subspace.gaussian((n, L, r, d_in), generator).mT
    drawn_B = subspace.gaussian((n, L, d_out, r), generator)
    # A Gaussian matrix in the place of a conversion matrix has its sides.
    plain = (drawn_A, drawn_B) if d_in == d_out else (drawn_B, drawn_A)
    draws = [("", f"draw {draw}") for draw in range(n)]

    def phi(U: Tensor) -> Tensor:
        return subspace.phi_map(U, U, i, j)

    def phi_through(inverse: Inverse, X: Tensor) -> Tensor:
        bases = (inverse.basis(inverse.coefficients(x), i, j) for x in parts(X))
        return torch.cat([phi(U) for U in bases])

    for matrix, X, drawn, in_place in (
        ("A", stack.A.mT, drawn_A, plain[0]),
        ("B", stack.B, drawn_B, plain[1]),
    ):
        inverse = inverses[matrix]
        bases = (subspace.compared_basis(x, i, j) for x in parts(in_place))
        yield matrix, GAUSSIAN, draws, torch.cat([phi(U) for U in bases])
        yield matrix, CONTROL, draws, phi_through(inverse, drawn)
        if matrix == "A":
            before = subspace.initial_A((n, L, r, d_in), generator).mT
            yield matrix, UNTRAINED, draws, phi_through(inverse, before)
        runs = [(cell.task, f"seed {cell.seed}") for cell in stack.cells]
        U = inverse.basis(inverse.coefficients(X), i, j)
        for source, bases in _changed(inverse, X, U, (i, j), generator):
            yield matrix, source, runs, torch.stack([phi(V) for V in bases]).mean(dim=0)
        pairs = [p for p in combinations(range(len(runs)), 2) if runs[p[0]][0] == runs[p[1]][0]]
        if pairs:
            first, second = (list(side) for side in zip(*pairs, strict=True))
            names = [(runs[a][0], f"{runs[a][1]}, {runs[b][1]}") for a, b in pairs]
            yield matrix, OTHER_SEED, names, subspace.phi_map(U[first], U[second], i, j)


def _changed(
    inverse: Inverse, X: Tensor, U: Tensor, counts: tuple[int, int], generator: torch.Generator
) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Trained runs with one thing changed: each source with bases (runs, L, d, k) to average over."""

    def basis(X: Tensor) -> Tensor:
        return inverse.basis(inverse.coefficients(X), *counts)

    yield TRAINED, iter([U])
    L = X.shape[1]
    if L > 1:
        yield OTHER_LAYER, (basis(X.roll(shift, dims=1)) for shift in range(1, L))
    random_U = [basis(subspace.rotated(X, generator)) for _ in range(ROTATIONS)]
    yield U_RANDOM, iter(random_U)
    yield V_RANDOM, (subspace.rotated(U, generator) for _ in range(ROTATIONS))
    yield BOTH_RANDOM, (subspace.rotated(V, generator) for V in random_U)
    yield FLAT, iter([inverse.basis(in_each_layer(inverse.right.mT, X), *counts)])


FLAT = "flat_spectrum"
PAIRS = {"off_diagonal": "all pairs", "deep": "deep half", "shallow": "shallow half"}
