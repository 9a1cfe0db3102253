"""The response of every statistic to planted shares on the weights of a backbone."""

from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig

from analysis.maths import subspace
from analysis.maths.decomposition import Decomposed
from analysis.maths.inverse_null import expected_phi
from analysis.maths.layers import in_each_layer, turned
from analysis.maths.linear_map import left_out
from analysis.maths.planted import LEFT_OUT, planted, similarities
from condlora.errors import UserError


@dataclass(frozen=True)
class Power:
    """Responses of all statistics on one backbone.

    rho (R,); response: (module, form, statistic) -> values (R, D) over planted shares and draws; expected:
    module -> Figure 1's map (L, L) under the null, in closed form; drawn: the same, mean over draws; widths:
    module -> rows of its conversion matrices; layers: module -> their numbers from 1.
    """

    rho: np.ndarray
    response: dict[tuple[str, str, str], np.ndarray]
    expected: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]
    widths: dict[str, int]
    layers: dict[str, list[int]]


def measure(weights: dict[str, Decomposed], cfg: DictConfig, layers: dict[str, list[int]]) -> Power:
    """Plant every share on every module kind's weights and compute every statistic.

    Forms: "W" is A of the form `code` and B of every form; "W'" is A of the form `consistent`, whose conversion
    matrix is W0^-T A'. Raises UserError for fewer than two layers or a rank above what the weights hold.
    """
    check(weights, cfg)
    response, expected, drawn = {}, {}, {}
    for module, W in weights.items():
        generator = torch.Generator().manual_seed(cfg.seed)
        expected[module] = expected_phi(W.V, W.sigma, cfg.r).numpy()
        X = subspace.gaussian((cfg.draws, len(W.M), W.M.shape[-2], cfg.r), generator)
        through = in_each_layer(W.U.mT, X) / W.sigma[..., None]
        basis = turned(W.right_frames, subspace.span_basis(through))
        drawn[module] = subspace.phi_map(basis, basis, cfg.r, cfg.r).mean(dim=0).numpy()
        for form, side in (("W", W), ("W'", W.transposed())):
            M = side.M.double()
            # All shares at once: they have the factorisations of W0 in common.
            worlds = torch.empty(len(cfg.rho) * cfg.draws, *M.shape[:2], cfg.r, dtype=M.dtype)
            for X, rho in zip(worlds.split(cfg.draws), cfg.rho, strict=True):
                X[:] = planted(M, rho, cfg.r, cfg.draws, generator)
            rows = [similarities(side, X) for X in worlds.split(cfg.draws)]
            for name in rows[0]:
                response[module, form, name] = np.stack([row[name].numpy() for row in rows])
            shares = left_out(M, worlds).mean(dim=-1)
            response[module, form, LEFT_OUT] = shares.unflatten(0, (-1, cfg.draws)).numpy()
    widths = {module: W.V.shape[-2] for module, W in weights.items()}
    rho = np.array(list(cfg.rho), dtype=float)
    return Power(rho, response, expected, drawn, widths, layers)


def check(weights: dict[str, Decomposed], cfg: DictConfig) -> None:
    """Raise a UserError, one sentence, for what cannot be planted or left out."""
    rho = list(cfg.rho)
    if len(rho) < 2 or rho[0] != 0 or rho != sorted(set(rho)) or rho[-1] > 1:
        raise UserError("rho must begin with 0 and rise to at most 1, such as rho=[0,0.1,0.5,1].")
    if cfg.draws < 2:
        raise UserError(f"draws={cfg.draws} gives no spread: set draws to 2 or more.")
    for module, W in weights.items():
        if len(W.M) < 2:
            raise UserError(
                f"The backbone has {len(W.M)} layer with {module} modules, and leaving one out needs two or more: "
                "choose another backbone."
            )
        if not 1 <= cfg.r <= min(W.M.shape[-2:]) // 2:
            raise UserError(
                f"Rank r={cfg.r} cannot be planted in {module} weights of {W.M.shape[-2]} x {W.M.shape[-1]}: set r "
                f"to at most {min(W.M.shape[-2:]) // 2}."
            )
