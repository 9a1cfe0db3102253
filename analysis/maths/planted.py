"""Planted worlds: adapters of which a known share is one linear map of W0, to calibrate the statistics.

    X_l = sqrt(rho) M_l Theta / ||M_l Theta|| + sqrt(1 - rho) E_l / ||E_l||

M_l is W0 of layer l (A of the form `code` and B of every form) or its transpose (A of `consistent`), Theta one
Gaussian matrix for all layers, E_l Gaussian noise of each layer, and rho the share of the energy of A or B that
the one map explains. rho = 1 is the paper's hypothesis, rho = 0 is Gaussian A and B.
"""

import torch
from torch import Tensor

from analysis.maths import subspace
from analysis.maths.decomposition import Decomposed
from analysis.maths.layers import in_each_layer, turned
from analysis.maths.linear_map import left_out

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # lambda as a multiple of the mean squared singular value of W0
LEFT_OUT = "left_out_map"


def planted(M: Tensor, rho: float, r: int, draws: int, generator: torch.Generator) -> Tensor:
    """X (draws, L, d, r), float64, of planted worlds on M (L, d, p); each X_l has expected energy 1.

    Raises ValueError if rho is not in [0, 1], or r is above what the weights can hold.
    """
    L, d, p = M.shape
    if not 0 <= rho <= 1:
        raise ValueError(f"rho is a share from 0 to 1, not {rho}")
    if not 1 <= r <= min(d, p):
        raise ValueError(f"rank {r} is above the smaller side of weights of {d} x {p}")
    theta = subspace.gaussian((draws, 1, p, r), generator).expand(-1, L, -1, -1)
    mapped = _unit(in_each_layer(M, theta))
    noise = _unit(subspace.gaussian((draws, L, d, r), generator))
    return rho**0.5 * mapped + (1 - rho) ** 0.5 * noise


def _unit(X: Tensor) -> Tensor:
    return X / torch.linalg.matrix_norm(X, keepdim=True)


def statistics(W: Decomposed, X: Tensor) -> dict[str, Tensor]:
    """Every statistic that the analysis reports, for each of n sets of matrices X (n, L, d, r); name -> (n,).

    Those of `similarities`, and left_out_map: the share of a left-out layer's span that one linear map of W0, fitted on
    the other layers, explains.
    """
    return similarities(W, X) | {LEFT_OUT: left_out(W.M, X).mean(dim=-1)}


def similarities(W: Decomposed, X: Tensor) -> dict[str, Tensor]:
    """The statistics that are means of phi between layers, as `statistics`.

    phi_all, phi_deep, phi_shallow: Figure 1's statistic on W0^-1 X over all pairs of layers, the deep half, the
    shallow half. transposed: the same over all pairs on W0^-T X, for square W0. flat: every singular value set to
    one. truncated: W0's 4 r smallest directions taken out. ridge_c: (W0'W0 + lambda I)^-1 W0' X with
    lambda = c mean(sigma^2).
    """
    r, m = X.shape[-1], W.sigma.shape[-1]
    inside = in_each_layer(W.U.mT, X)  # U' X
    through = inside / W.sigma[..., None]
    found = dict(
        zip(("phi_all", "phi_deep", "phi_shallow"), _phi(W.right_frames, through), strict=True)
    )
    if W.is_square:
        transposed = in_each_layer(W.V.mT, X) / W.sigma[..., None]
        found["transposed"] = _phi(W.left_frames, transposed)[0]
    found["flat"] = _phi(W.right_frames, inside)[0]
    if m - 4 * r >= r:
        kept = through.clone()
        kept[..., m - 4 * r :, :] = 0
        found["truncated"] = _phi(W.right_frames, kept)[0]
    for c in RIDGES:
        penalty = c * W.sigma.square().mean(dim=-1, keepdim=True)
        shrunk = (W.sigma / (W.sigma.square() + penalty))[..., None] * inside
        found[f"ridge_{c:g}"] = _phi(W.right_frames, shrunk)[0]
    return found


def _phi(frames: Tensor, coefficients: Tensor) -> Tensor:
    """Means of phi over all pairs, the deep half and the shallow half (3, n), of frames @ coefficients."""
    r = coefficients.shape[-1]
    U = turned(frames, subspace.span_basis(coefficients))
    return subspace.means_of_pairs(subspace.phi_map(U, U, r, r)).movedim(-1, 0)
