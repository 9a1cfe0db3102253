"""How much of LoRA's A, B and delta A one linear map of W0 explains: values per layer, and the scale to read them on.

The statistic is the share of a left-out layer's span that the map fitted on the other layers gives
(`analysis.maths.linear_map`). Its scale comes from planted worlds on the same weights (`analysis.maths.planted`), of
which one map explains a known share rho of the energy: `analysis.stats.shares` reads the runs' values on that scale.

Each question is asked of the layer's own W0 and of controls in its place:

    another layer's W0      the tie between a layer and its own W0 is cut
    a Gaussian matrix       nothing of W0 is left
    W0's singular values with random singular vectors       its spectrum alone is left
    no W0 (M = 1)           one common A or B for all layers

A0 is the start of A, so delta A = A - A0 is what training added to A, as B (which starts at zero) is to B.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.decomposition import singular_vectors
from analysis.maths.linear_map import left_out
from analysis.maths.planted import planted
from analysis.study.names import REFERENCE
from analysis.study.rank_selection import by_method, shown_rank
from analysis.study.selection import Settings
from analysis.study.stacks import Stack
from analysis.study.starts import start_of, steps_of

OWN, OTHER_LAYER, GAUSSIAN_W0, SPECTRUM, NO_W0 = (
    "own_W0",
    "other_layer_W0",
    "gaussian_W0",
    "spectrum_of_W0",
    "no_W0",
)
SOURCES = (OWN, OTHER_LAYER, GAUSSIAN_W0, SPECTRUM, NO_W0)
RHO = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
WORLDS = 4  # planted worlds for each share on W0 itself: their values are already means over layers
CONTROL_WORLDS = 2  # in a control's place, whose shares are near 0
LAST = -1  # the step of the finished run


@dataclass(frozen=True)
class ExplainedShare:
    """Values of the statistic and its response to planted shares.

    values: a row per module, form, source, r, step (LAST: of the finished run), task, seed and layer, with `left_out`.
    response: (module, side, source, r) -> (len(RHO), worlds, L), side "W" or "W'" as of `side_of`.
    r: the rank of the controls and steps. notes: what is missing and why.
    """

    values: pd.DataFrame
    response: dict[tuple[str, str, str, int], np.ndarray]
    r: int
    notes: list[str]


def side_of(form: str) -> str:
    """Which side of W0 the map of a form is applied to: "W'" for A = theta W0, "W" for the others."""
    return "W'" if form.endswith("consistent") else "W"


def explained_shares(stacks: list[Stack], settings: Settings) -> ExplainedShare:
    """The shares of every finished LoRA run, of two layers or more: controls and steps at one rank, all ranks on W0 itself.

    Empty without such runs or without W0.
    """
    ours = [
        stack
        for stack in by_method(stacks)
        if stack.adapter == REFERENCE and len(stack.layers) > 1 and stack.W is not None
    ]
    r = shown_rank(ours) if ours else 0
    rows, response, notes = [], {}, []
    for stack in ours:
        generator, rank = settings.generator(), stack.A.shape[-2]
        start = start_of(stack)
        if start is None:
            notes.append(
                f"No delta A of {stack.module} modules at r = {rank}: the starts are not known."
            )
        moments = {LAST: (stack.A, stack.B)} | (steps_of(stack) if rank == r else {})
        in_its_place = _in_place_of(stack, generator) if rank == r else {}
        for side in ("W", "W'"):
            X = _matrices(stack, side, start, moments)
            if not X:
                continue
            for source, M in _sources(stack, side, in_its_place):
                chosen = {key: x for key, x in X.items() if source == OWN or key[1] == LAST}
                worlds = {OWN: WORLDS, OTHER_LAYER: 0}.get(source, CONTROL_WORLDS)
                found, scale = _measure(M, chosen, rank, generator, worlds=worlds)
                # Another layer's W0 is the same set of matrices, so it has the scale of the layer's own.
                response[stack.module, side, source, rank] = (
                    response[stack.module, side, OWN, rank] if scale is None else scale
                )
                for (form, step), shares in found.items():
                    rows.append(_long(stack, form, source, step, shares))
    columns = ["module", "form", "source", "r", "step", "task", "seed", "layer", "left_out"]
    values = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    return ExplainedShare(values, response, r, list(dict.fromkeys(notes)))


def _matrices(
    stack: Stack,
    side: str,
    start: Tensor | None,
    moments: dict[int, tuple[Tensor, Tensor]],
) -> dict[tuple[str, int], Tensor]:
    """(form, step) -> X (runs, L, d, r) of the forms whose map is applied to this side of W0."""
    is_square = stack.W.shape[-2] == stack.W.shape[-1]
    found = {}
    for step, (A, B) in moments.items():
        name = "A_consistent" if side == "W'" else "A_code"
        if side == "W'" or is_square:
            found[name, step] = A.mT
            if start is not None:
                found[f"delta_{name}", step] = (A - start).mT
        if side == "W":
            found["B", step] = B
    return found


def _in_place_of(stack: Stack, generator: torch.Generator) -> dict[str, Tensor]:
    """The controls that are drawn in the shape of W (L, out, in), by source."""
    W, (_, sigma, _) = stack.W, singular_vectors(stack.W)
    drawn = (subspace.gaussian((len(W), size, sigma.shape[-1]), generator) for size in W.shape[-2:])
    # Layer by layer, which takes less memory.
    left, right = (torch.stack([torch.linalg.qr(layer).Q for layer in X]) for X in drawn)
    return {
        GAUSSIAN_W0: subspace.gaussian(W.shape, generator),
        SPECTRUM: left.mul_(sigma[:, None]) @ right.mT,
    }


def _sources(
    stack: Stack, side: str, in_its_place: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor | None]]:
    """W0 and what stands in its place, with its source: M (L, d, p), transposed for the side W'; None for M = 1."""
    W = stack.W.double()
    yield OWN, W if side == "W" else W.mT
    if not in_its_place:
        return
    other = W.roll(len(W) // 2, dims=0)
    yield OTHER_LAYER, other if side == "W" else other.mT
    del other  # arrays of this size are most of the memory
    for source, M in in_its_place.items():
        yield source, M if side == "W" else M.mT
    yield NO_W0, None


def _measure(
    M: Tensor | None,
    X: dict[tuple[str, int], Tensor],
    r: int,
    generator: torch.Generator,
    *,
    worlds: int,
) -> tuple[dict[tuple[str, int], Tensor], np.ndarray | None]:
    """The left-out share (runs, L) of each X, and of planted worlds (RHO, worlds, L); fitted in one call."""
    first = next(iter(X.values()))
    planted_on = (
        torch.eye(first.shape[-2], dtype=torch.float64).expand(first.shape[1], -1, -1)
        if M is None
        else M
    )
    scale = [planted(planted_on, rho, r, worlds, generator) for rho in RHO] if worlds else []
    shares = left_out(M, torch.cat([*(x.double() for x in X.values()), *scale]))
    sizes = [len(x) for x in X.values()]
    of_runs = dict(zip(X, shares[: sum(sizes)].split(sizes), strict=True))
    if not worlds:
        return of_runs, None
    return of_runs, shares[sum(sizes) :].unflatten(0, (len(RHO), worlds)).numpy()


def _long(stack: Stack, form: str, source: str, step: int, shares: Tensor) -> pd.DataFrame:
    """A row per run and layer."""
    runs, L = shares.shape
    frame = pd.DataFrame(
        {
            "task": [cell.task for cell in stack.cells for _ in range(L)],
            "seed": [cell.seed for cell in stack.cells for _ in range(L)],
            "layer": stack.layers * runs,
            "left_out": shares.flatten().numpy(),
        }
    )
    return frame.assign(
        module=stack.module, form=form, source=source, r=stack.A.shape[-2], step=step
    )
