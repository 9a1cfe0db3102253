"""Planted worlds, the closed-form null of Figure 1, and what the statistics detect."""

import math

import numpy as np
import pytest
import torch

from analysis.maths import subspace
from analysis.maths.decomposition import decompose
from analysis.maths.inverse_null import expected_phi, occupancies
from analysis.maths.layers import in_each_layer
from analysis.maths.planted import LEFT_OUT, planted, statistics
from analysis.stats.power import planted_share, power, smallest_detected

L, D, R = 6, 32, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def weights():
    """Weights with a spread of singular values as pretrained ones have: condition numbers above 1,000."""
    g = generator(7)
    U, V = (torch.linalg.qr(subspace.gaussian((L, D, D), g)).Q for _ in range(2))
    sigma = torch.logspace(0, -3.2, D, dtype=torch.float64)
    return decompose(U * sigma @ V.mT)


def gaussian_maps(W, draws, seed=1):
    X = subspace.gaussian((draws, L, D, R), generator(seed))
    through = in_each_layer(W.U.mT, X) / W.sigma[..., None]
    U = in_each_layer(W.V, subspace.left_basis(through, R))
    return subspace.phi_map(U, U, R, R)


def test_occupancies_sum_to_the_rank_and_favour_small_singular_values():
    sigma = torch.tensor([[10.0, 3.0, 1.0, 0.5, 0.1], [1.0, 1.0, 1.0, 1.0, 1.0]])
    found = occupancies(sigma, 2)
    assert found.sum(dim=-1).tolist() == pytest.approx([2, 2])
    assert (found[0].diff() > 0).all()
    assert found[1].tolist() == pytest.approx([0.4] * 5)  # nothing to tell them apart: r / m
    assert occupancies(sigma, 5).tolist() == [[1.0] * 5] * 2
    with pytest.raises(ValueError, match="does not fit"):
        occupancies(sigma, 6)


def test_the_closed_form_agrees_with_draws(weights):
    drawn = gaussian_maps(weights, 4000).mean(dim=0)
    closed = expected_phi(weights.V, weights.sigma, R)
    assert closed.diagonal().tolist() == [1.0] * L
    assert torch.allclose(closed, closed.mT)
    off = ~torch.eye(L, dtype=torch.bool)
    assert closed[off].mean().item() == pytest.approx(drawn[off].mean().item(), rel=0.02)
    assert (closed - drawn)[off].abs().max() < 0.03


def test_with_orthogonal_weights_the_null_is_chance():
    Q = torch.linalg.qr(subspace.gaussian((L, D, D), generator())).Q
    W = decompose(Q)
    off = ~torch.eye(L, dtype=torch.bool)
    assert expected_phi(W.V, W.sigma, R)[off].tolist() == pytest.approx([R / D] * (L * (L - 1)))


def test_a_planted_world_has_its_share_of_energy(weights):
    for rho in (0.0, 0.3, 1.0):
        X = planted(weights.M, rho, R, 400, generator())
        assert X.shape == (400, L, D, R)
        energy = X.square().sum(dim=(-2, -1)).mean().item()
        assert energy == pytest.approx(1.0, abs=0.01)
    same = planted(weights.M, 0.5, R, 3, generator(4))
    assert torch.equal(same, planted(weights.M, 0.5, R, 3, generator(4)))


@pytest.mark.parametrize(
    ("rho", "r", "says"), [(-0.1, R, "share"), (1.1, R, "share"), (0.5, D + 1, "rank")]
)
def test_what_cannot_be_planted(weights, rho, r, says):
    with pytest.raises(ValueError, match=says):
        planted(weights.M, rho, r, 2, generator())


def test_the_hypothesis_is_seen_by_all_and_a_large_share_by_the_linear_map_alone(weights):
    whole = statistics(weights, planted(weights.M, 1.0, R, 3, generator()))
    assert whole["phi_all"].tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert whole[LEFT_OUT].tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    most, nothing = (
        statistics(weights, planted(weights.M, rho, R, 24, generator())) for rho in (0.8, 0.0)
    )
    assert (most["phi_all"].mean() - nothing["phi_all"].mean()).abs() < 2 * nothing["phi_all"].std()
    assert most[LEFT_OUT].min() > nothing[LEFT_OUT].max() + 0.2


def test_weights_without_an_inverse_are_refused_by_layer(weights):
    M = weights.M.clone()
    M[2, :, 0] = M[2, :, 1]
    with pytest.raises(subspace.NotInvertible, match="layer 3 is singular"):
        decompose(M)
    M[4, 0, 0] = math.nan
    with pytest.raises(subspace.NotInvertible, match="layer 5 is not finite"):
        decompose(M)


def test_half_precision_and_rectangular_weights_are_decomposed(weights):
    assert decompose(weights.M.half() + torch.eye(D) * 0.01).sigma.dtype == torch.float64
    tall = decompose(subspace.gaussian((L, D, D // 2), generator()))
    found = statistics(tall, planted(tall.M, 0.5, R, 2, generator()))
    assert "transposed" not in found
    assert all(value.isfinite().all() for value in found.values())


def test_power_is_the_level_at_the_null_and_rises():
    rng = np.random.default_rng(0)
    response = np.stack([rng.normal(mean, 1, 4000) for mean in (0, 1, 2, 4)])
    reached = power(response, runs=4, alpha=0.05)
    assert reached[0] == pytest.approx(0.05, abs=0.005)
    assert reached[1] == pytest.approx(0.64, abs=0.03)  # P(z > 1.645 - 1 x sqrt 4)
    assert (np.diff(reached) > 0).all()
    assert power(np.array([[1.0, 1.0], [2.0, 2.0]]), runs=3, alpha=0.05).tolist() == [0, 1]


def test_smallest_detected_share():
    rho = np.array([0, 0.1, 0.5, 1])
    assert smallest_detected(rho, np.array([0.05, 0.3, 0.9, 1]), 0.8) == pytest.approx(
        0.1 + 0.4 * 5 / 6
    )
    assert smallest_detected(rho, np.array([0.05, 0.9, 0.6, 1]), 0.8) == pytest.approx(
        0.75
    )  # it must stay there
    assert math.isnan(smallest_detected(rho, np.array([0.05, 0.1, 0.2, 0.3]), 0.8))


def test_a_planted_share_is_recovered_in_95_of_100_worlds(weights):
    """200 worlds of five runs each: the interval of the share holds the planted one as often as it says."""
    rho = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1])
    response = np.stack(
        [
            statistics(weights, planted(weights.M, x, R, 60, generator(3)))[LEFT_OUT].numpy()
            for x in rho
        ]
    )
    truth, worlds, runs = 0.35, 200, 5
    values = statistics(weights, planted(weights.M, truth, R, worlds * runs, generator(11)))[
        LEFT_OUT
    ]
    shares = [planted_share(v, rho, response, 0.95) for v in values.reshape(worlds, runs).numpy()]
    covered = np.mean([share.low <= truth <= share.high for share in shares])
    assert 0.90 <= covered <= 0.99  # 200 worlds know 95 % to about 1.5 points
    assert np.mean([share.value for share in shares]) == pytest.approx(truth, abs=0.03)


def test_a_share_of_one_run_has_no_interval():
    share = planted_share(
        np.array([0.5]), np.array([0.0, 1.0]), np.array([[0.0, 0.0], [1.0, 1.0]]), 0.95
    )
    assert share.value == pytest.approx(0.5)
    assert math.isnan(share.low) and math.isnan(share.high)
