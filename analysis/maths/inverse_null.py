"""What the statistic of Figure 1 is when nothing was learned: its expectation from W0 alone.

Let W0 = U diag(sigma) V'. For a Gaussian X (d, r) the matrix W0^-1 X is V diag(1 / sigma) G with G = U' X
Gaussian again. Flipping the sign of a row of G changes nothing in distribution, so the expected projection onto
the column span is diagonal in the basis V. Its entries are the occupancies: occupancy_i is the expected share of
direction v_i in the span, and they sum to r. For two layers with independent X,

    E phi(l, m) = sum_ij occupancy_l,i occupancy_m,j (v_l,i . v_m,j)^2 / r          (i = j = r).

This is exact given the occupancies. They follow from P_ii = x / (1 + x), x = q / sigma_i^2, with
q = g_i' M^-1 g_i over the other directions (Sherman-Morrison). M is close to a multiple of the identity, as it is
a sum over many directions, so q is taken as tau chi^2_r / r, and tau is the one number for which the occupancies
sum to r. On pretrained weights this agrees with draws to about 1 % (see the tests).
"""

import torch
from scipy.special import roots_genlaguerre
from torch import Tensor

NODES = 40  # of the quadrature over chi^2_r
BISECTIONS = 100


def occupancies(sigma: Tensor, r: int) -> Tensor:
    """Expected share of each singular direction in the span of W0^-1 X for a Gaussian X (d, r).

    sigma (..., m) positive singular values, any order; returns float64 (..., m), between 0 and 1, with sum r.
    Raises ValueError if r is not in 1 ... m.
    """
    if not 1 <= r <= sigma.shape[-1]:
        raise ValueError(f"a span of {r} dimensions does not fit into {sigma.shape[-1]}")
    if r == sigma.shape[-1]:
        return torch.ones_like(sigma, dtype=torch.float64)
    gain = sigma.double() ** -2
    gain = gain / gain.mean(dim=-1, keepdim=True)
    nodes, weights = (torch.from_numpy(x).double() for x in roots_genlaguerre(NODES, r / 2 - 1))
    q, weights = 2 * nodes / r, weights / weights.sum()

    def occupied(log_tau: Tensor) -> Tensor:
        x = gain[..., None] * log_tau.exp()[..., None, None] * q
        return (x / (1 + x) * weights).sum(dim=-1)

    low, high = (torch.full(gain.shape[:-1], end, dtype=torch.float64) for end in (-80.0, 80.0))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_above = occupied(middle).sum(dim=-1) > r
        low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
    return occupied((low + high) / 2)


def expected_phi(directions: Tensor, sigma: Tensor, r: int) -> Tensor:
    """Expected map of Figure 1 for Gaussian A or B through W0^-1: float64 (L, L), the diagonal 1.

    directions (L, n, m): the right singular vectors of each layer's W0 (the left ones for W0'), as columns;
    sigma (L, m): their singular values; r: the rank, and i = j = r singular vectors in phi.
    """
    share = occupancies(sigma, r)
    # sum_ij d_i d_j (v_i . v_j)^2 is the squared norm of the product of the weighted bases; right to 1e-6 in float32.
    weighted = (directions.double() * share.sqrt()[:, None, :]).float()
    L = len(weighted)
    found = torch.zeros(L, L, dtype=torch.float64)
    for n in range(L):
        found[n, n:] = torch.linalg.matrix_norm(weighted[n].mT @ weighted[n:]).double() ** 2
    return ((found + found.triu(1).mT) / r).fill_diagonal_(1.0)
