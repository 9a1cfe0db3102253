"""What an update does to the weight it is added to: amplification (Hu et al., section 7.3).

Takes the matrices of finished runs of LoRA and CondLoRA. Gives the norm of W within the subspaces
of delta W = s B A, within its own leading ones and within random ones (table 7 of arXiv
2106.09685), the amplification factor ||delta W|| / ||U' W V|| (their appendix H.4), and where
delta W lies among the singular directions of W (H.3). delta W itself is never formed. The
control of CondLoRA, whose B and A are made from W, is what Gaussian maps give from the same W.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.decomposition import singular_vectors
from analysis.maths.lora_subspace import gaussian_factors
from analysis.study.names import adapter_order
from analysis.study.rank_selection import by_method, scaling, shown_rank
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

GAUSSIAN_MAPS = "condlora_gaussian_maps"


@dataclass(frozen=True)
class Amplification:
    """Table 7 and appendix H.3 of the LoRA paper for our runs.

    values: a row per run, module kind and layer with the Frobenius norms of W, of delta W and of
    W within pairs of subspaces, the amplification factor, and the shares of the left space of
    delta W in the first and the last tenth of W's left singular vectors. shares: (method, module)
    -> the share in the leading 1 ... d of them, (runs, L, d), at the rank `shown_r`. The method
    GAUSSIAN_MAPS is CondLoRA with nothing learned, a row per draw; its size is not defined.
    """

    values: pd.DataFrame
    shares: dict[tuple[str, str], np.ndarray]
    shown_r: int

    @property
    def kinds(self) -> list[tuple[str, str, int]]:
        """(module, method, r) of all runs, in the order of tables."""
        kinds = set(self.values[["module", "method", "r"]].itertuples(index=False, name=None))
        return sorted(kinds, key=lambda kind: (kind[0], adapter_order(kind[1]), kind[2]))

    def per_layer(self, module: str, method: str, r: int, column: str) -> pd.DataFrame:
        """`column`: a row per run, a column per layer."""
        v = self.values
        chosen = v[(v.module == module) & (v.method == method) & (v.r == r)]
        return chosen.pivot(index=["task", "seed"], columns="layer", values=column)


def product_norm(B: Tensor, A: Tensor) -> Tensor:
    """||B A||_F of B (..., out, r) and A (..., r, in), without forming the product; float64 (...)."""
    A, B = A.double(), B.double()
    # The squared norm is tr(A' B' B A) = <B' B, A A'>, which rounding may leave below zero.
    return ((B.mT @ B) * (A @ A.mT)).sum(dim=(-2, -1)).clamp(min=0).sqrt()


def projected_norm(W: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """||U' W V||_F, what W does within a pair of subspaces; Hu et al., table 7.

    W (L, out, in), U (runs, L, out, r) and V (runs, L, in, r); returns float64 (runs, L).
    """
    # Folded by einsum into one product a layer, for all runs together.
    return torch.linalg.matrix_norm(torch.einsum("nloi,loa->nlia", U, W.double()) @ V)


def random_projected_norm(W: Tensor, r: int) -> Tensor:
    """The root of the expected ||U' W V||_F^2 for independent, uniformly random U and V of r columns.

    W (..., out, in) -> (...): each random direction meets 1 / out or 1 / in of the energy.
    """
    out, width = W.shape[-2:]
    return torch.linalg.matrix_norm(W.double()) * r / (out * width) ** 0.5


def left_directions(W: Tensor) -> tuple[Tensor, Tensor]:
    """All left singular vectors (L, out, out) of W (L, out, in), and squared singular values (L, out)."""
    if W.shape[-2] <= W.shape[-1]:
        U, sigma, _ = singular_vectors(W)
        return U, sigma.square()
    # From W W', as the decomposition has only the vectors whose singular values are not zero.
    energy, U = torch.linalg.eigh(W.double() @ W.double().mT)
    return U.flip(-1), energy.flip(-1).clamp(min=0)


def amplify(stacks: list[Stack], settings: Settings) -> Amplification:
    """Norms, factor and shares of every finished run, module kind and layer, at any ranks."""
    shown_r = shown_rank(stacks)
    stacks = [x for s in by_method(stacks) for x in (s, *_gaussian_maps(s, settings))]
    known: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # module -> W and its directions
    rows, shares = [], {}
    for stack in stacks:
        W, *directions = known.get(stack.module, (None,))
        if W is None or not torch.equal(W, stack.W):
            W, directions = stack.W, left_directions(stack.W)
            known[stack.module] = W, *directions
        values, share = _measure(stack, *directions)
        rows.append(_long(stack, values))
        if stack.A.shape[-2] == shown_r:
            shares[stack.adapter, stack.module] = share.numpy()
    return Amplification(pd.concat(rows, ignore_index=True), shares, shown_r)


def _gaussian_maps(stack: Stack, settings: Settings) -> list[Stack]:
    """CondLoRA's control, with draws in the place of runs; nothing for other methods."""
    if stack.adapter != "condlora":
        return []
    draws = max(2, settings.baseline_draws // 20)  # means over all layers: few draws vary little
    A, B = gaussian_factors(stack, stack.A.shape[-2], draws, settings.generator())
    return [replace(stack, adapter=GAUSSIAN_MAPS, A=A, B=B, cells=[])]


def _measure(stack: Stack, U_W: Tensor, energy: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The columns of `values` for one stack, (runs, L) or (L,) each, and its shares (runs, L, d)."""
    W, r = stack.W.double(), stack.A.shape[-2]
    left = subspace.left_basis_of_product(stack.B, stack.A, r)
    right = subspace.left_basis_of_product(stack.A.mT, stack.B.mT, r)
    share = torch.einsum("loe,nloi->nlei", U_W, left).square().sum(dim=-1).cumsum(-1) / r
    tenth = max(1, round(share.shape[-1] / 10))
    s = [scaling(cell) for cell in stack.cells] or [math.nan]  # random factors have no size
    values = {
        "norm_W": torch.linalg.matrix_norm(W),
        "norm_delta_W": torch.tensor(s, dtype=torch.float64)[:, None]
        * product_norm(stack.B, stack.A),
        "within_delta_W": projected_norm(W, left, right),
        "within_W": energy[..., :r].sum(dim=-1).sqrt(),
        "within_random": random_projected_norm(W, r),
        "first_tenth": share[..., tenth - 1],
        "last_tenth": share[..., -1] - share[..., -tenth - 1],
    }
    values["amplification"] = values["norm_delta_W"] / values["within_delta_W"]
    return values, share


def _long(stack: Stack, values: dict[str, Tensor]) -> pd.DataFrame:
    """A row per run (or draw) and layer with `values`."""
    runs = [(cell.task, cell.seed) for cell in stack.cells]
    runs = runs or [("", draw) for draw in range(len(stack.A))]
    shape = (len(runs), len(stack.layers))
    columns = {name: value.expand(shape).flatten().numpy() for name, value in values.items()}
    kind = {"method": stack.adapter, "r": stack.A.shape[-2], "module": stack.module}
    names = [
        kind | {"task": task, "seed": seed, "layer": layer}
        for task, seed in runs
        for layer in stack.layers
    ]
    return pd.DataFrame(names).assign(**columns)
