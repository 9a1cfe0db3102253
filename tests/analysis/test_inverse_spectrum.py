"""W0's inverse by singular vectors: its directions, what lies along them and what is left without."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.maths import inverse_spectrum, subspace
from analysis.maths.conversion_similarity import CONTROL, TRAINED
from analysis.present import inverse_spectrum as present_inverse_spectrum
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

SETTINGS = Settings(i=None, j=None, baseline_seed=0, baseline_draws=20)
L, d, r, RUNS = 3, 48, 4, 2


def gaussian(*shape, seed=0):
    return subspace.gaussian(shape, torch.Generator().manual_seed(seed))


def stack_of(W, seed=1):
    d_out, d_in = W.shape[-2:]
    cells = [SimpleNamespace(task="rte", seed=n) for n in range(RUNS)]
    A, B = gaussian(RUNS, len(W), r, d_in, seed=seed), gaussian(RUNS, len(W), d_out, r, seed=seed)
    return Stack("lora", "value", [4, 5, 6][: len(W)], W, A, B, cells)


@pytest.mark.parametrize("shape", [(L, d, d), (L, d, 20), (L, 20, d)])
def test_both_roads_give_the_same_conversion_matrices(shape):
    """Singular vectors here; LU, or pivoted QR for rectangular weights, there."""
    stack = stack_of(gaussian(*shape))
    theirs = subspace.conversion_matrices(stack.W, stack.A, stack.B)
    found = inverse_spectrum.inverses(stack)
    for matrix, X, expected in zip("AB", (stack.A.mT, stack.B), theirs, strict=True):
        inverse = found[matrix]
        coefficients = inverse.coefficients(X)
        torch.testing.assert_close(inverse.left @ coefficients, expected)
        U = inverse.basis(coefficients, 2, 2)
        reference = subspace.left_basis(expected, 2)
        found_phi = subspace.phi(U.double(), reference, 2, 2)  # U is in float32
        torch.testing.assert_close(found_phi, torch.ones(RUNS, L).double(), atol=1e-5, rtol=0)


def test_singular_values_are_those_of_w0_smallest_first():
    U, V = (torch.linalg.qr(gaussian(L, 5, 5, seed=n))[0] for n in (0, 1))
    W = U * torch.tensor([4.0, 0.5, 2.0, 8.0, 1.0]) @ V.mT
    inverse = inverse_spectrum.inverses(stack_of(W))["A"]
    torch.testing.assert_close(inverse.sigma[0], torch.tensor([0.5, 1, 2, 4, 8]).double())
    # The first direction of W^-1 is the right singular vector of W with the smallest value.
    torch.testing.assert_close(
        (inverse.left[:, :, 0] * V[:, :, 1]).sum(-1).abs(), torch.ones(L).double()
    )


@pytest.mark.parametrize(
    ("spoil", "words"), [(0, "layer 5 is singular"), (torch.nan, "not finite")]
)
def test_weights_without_inverse_are_refused(spoil, words):
    W = gaussian(L, d, d)
    W[1] = spoil
    with pytest.raises(subspace.NotInvertible, match=words):
        inverse_spectrum.inverses(stack_of(W))


def test_shares_by_hand():
    """Two columns: (3, 0, 0, 4) and (0, 5, 0, 0), in the basis of W0's directions."""
    coefficients = torch.tensor([[3.0, 0], [0, 5], [0, 0], [4, 0]]).double()
    for k, expected_energy, expected_space in (
        (1, 9 / 50, 9 / 25),  # of the one direction, 0.6^2 lies in the columns' space
        (2, 34 / 50, (9 / 25 + 1) / 2),
        (3, 34 / 50, (9 / 25 + 1) / 2),
        (4, 1, 1),
    ):
        energy, space = inverse_spectrum.shares(coefficients, 2, k)
        assert energy.item() == pytest.approx(expected_energy)
        assert space.item() == pytest.approx(expected_space)


def test_truncation_projects_the_smallest_directions_out():
    stack = stack_of(gaussian(L, d, d))
    inverse = inverse_spectrum.inverses(stack)["B"]
    kept = inverse.left @ inverse_spectrum.truncated(inverse.coefficients(stack.B), 3)
    for layer in range(L):
        smallest = np.linalg.svd(stack.W[layer].numpy())[2][-3:]
        X = np.linalg.inv(stack.W[layer].numpy()) @ stack.B[1, layer].numpy()
        expected = X - smallest.T @ (smallest @ X)
        np.testing.assert_allclose(kept[1, layer].numpy(), expected, atol=1e-8)


@pytest.fixture(scope="module")
def shared():
    """Four tiny singular values whose right singular vectors are the same in all layers."""
    U, _, Vh = torch.linalg.svd(gaussian(L, d, d))
    V = Vh.clone()
    V[:, -4:] = Vh[0, -4:]
    V = (
        torch.linalg.qr(V.mT.flip(-1))[0].flip(-1).mT
    )  # the shared ones first, the rest made orthogonal
    scale = torch.cat([torch.ones(d - 4), torch.full((4,), 1e-3)])
    stack = stack_of(U * scale @ V)
    return inverse_spectrum.spectra([(stack, inverse_spectrum.inverses(stack))], SETTINGS)


def test_directions_that_layers_share_are_found(shared):
    directions = shared.directions[shared.directions.matrix == "A"].set_index("k")
    assert directions.off_diagonal[4] == pytest.approx(1)
    assert directions.off_diagonal[32] == pytest.approx(32 / d, abs=0.1)
    assert directions.random[4] == 4 / d


@pytest.mark.parametrize("source", [TRAINED, CONTROL])
def test_similarity_by_shared_directions_goes_with_them(shared, source):
    a = shared.along[(shared.along.matrix == "B") & (shared.along.source == source)]
    means = a.groupby("k")[["energy", "space", "off_diagonal"]].mean()
    assert means[["energy", "space"]].loc[4].min() > 0.99 and means.off_diagonal[0] > 0.99
    # Two runs of three pairs with deviations below 0.06 each, around 4 / 48.
    assert means.off_diagonal[4] == pytest.approx(r / d, abs=0.06)
    assert a.random.unique().tolist() == [r / d]
    assert "of 0.0" in present_inverse_spectrum.statement(shared).split("leaves a mean φ")[1]


def test_no_more_directions_are_taken_out_than_leave_a_subspace():
    stack = stack_of(gaussian(L, 10, 10))
    found = inverse_spectrum.spectra([(stack, inverse_spectrum.inverses(stack))], SETTINGS)
    assert sorted(found.along.k.unique()) == [0, 1, 2, 4]
    assert sorted(found.directions.k.unique()) == [1, 2, 4, 8]
    rows = present_inverse_spectrum.table_of_directions(found).rows
    assert {len(row) for row in rows} == {10} and rows[-1][-1] == "–"


def test_the_table_of_spectra_gives_condition_numbers():
    W = torch.diag(torch.arange(1.0, 11.0)).expand(1, 10, 10) / 4
    stack = stack_of(W)
    found = inverse_spectrum.spectra([(stack, inverse_spectrum.inverses(stack))], SETTINGS)
    table = present_inverse_spectrum.table_of_spectra(found)
    assert table.rows == [["value", "4", "2.50", "1.375", "2.0000", "0.25000", "10"]]
    assert table.data.condition_number.tolist() == pytest.approx([10])


def test_nothing_to_say_of_no_weights():
    assert present_inverse_spectrum.statement(inverse_spectrum.spectra([], SETTINGS)) == ""
