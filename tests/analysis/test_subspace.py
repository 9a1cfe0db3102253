"""The mathematics: against the authors' numbers, a slow oracle, and what must hold by definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from analysis.maths import subspace

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "analysis.safetensors"
L, KINDS = 6, ("q", "v")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def stacked(golden, name, kind, suffix=""):
    return torch.stack([golden[f"{name}.layer{n}.{kind}{suffix}"] for n in range(L)])


def factors(golden, kind):
    return (stacked(golden, name, kind) for name in ("W", "lora_A", "lora_B"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("suffix", "tolerance"), [(".f64", 1e-8), ("", 1e-4)])
def test_conversion_matrices_are_the_authors(golden, kind, suffix, tolerance):
    found = subspace.conversion_matrices(*factors(golden, kind))
    for matrix, ours in zip(("A", "B"), found, strict=True):
        theirs = stacked(golden, f"conversion.{matrix}", kind, suffix).double()
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_conversion_of_the_product_is_conversion_b_times_a(golden, kind):
    W, A, B = factors(golden, kind)
    ours = subspace.conversion_matrices(W, A, B)[1] @ A.double()
    theirs = stacked(golden, "conversion.BA", kind).double()
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("i", "j"), [(8, 8), (4, 4), (4, 8), (1, 1)])
@pytest.mark.parametrize(("suffix", "tolerance"), [(".f64", 1e-8), ("", 1e-4)])
def test_heat_maps_are_the_authors(golden, kind, i, j, suffix, tolerance):
    W, A, B = factors(golden, kind)
    conversion_A, conversion_B = subspace.conversion_matrices(W, A, B)
    left = subspace.conversion_maps(conversion_A, conversion_B, A, i, j)
    bases = {
        "A": subspace.right_basis(conversion_A, 8),
        "B": subspace.right_basis(conversion_B, 8),
        "BA": subspace.left_basis_of_product(A.mT, conversion_B.mT, 8),
    }
    for matrix, ours in left.items():
        theirs = golden[f"phi.left.i{i}j{j}.{matrix}.{kind}{suffix}"]
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
        right = subspace.phi_map(bases[matrix], bases[matrix], i, j)
        theirs = golden[f"phi.right.i{i}j{j}.{matrix}.{kind}{suffix}"]
        torch.testing.assert_close(right, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("column, kind", enumerate(KINDS))
@pytest.mark.parametrize("k", [8, 4])
@pytest.mark.parametrize(("suffix", "tolerance"), [(".f64", 1e-8), ("", 1e-4)])
def test_lora_against_condlora_is_the_authors(golden, column, kind, k, suffix, tolerance):
    W, A, B = (x.double() for x in factors(golden, kind))
    cond_A = golden[f"theta_A.{kind}"].double() @ W.mT
    cond_B = W @ golden[f"theta_B.{kind}"].double().mT
    found = subspace.adapter_phi(A, B, cond_A, cond_B, k, k)
    for matrix, name in (("A", "A"), ("B", "B"), ("delta_W", "delta")):
        theirs = golden[f"lora_vs_condlora.i{k}j{k}.{name}{suffix}"][:, column]
        torch.testing.assert_close(found[matrix], theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_conversion_matrices_of_condlora_are_the_same_in_every_layer(golden, kind):
    W = stacked(golden, "W", kind).double()
    A = golden[f"theta_A.{kind}"].double() @ W.mT
    B = W @ golden[f"theta_B.{kind}"].double().mT
    maps = subspace.conversion_maps(*subspace.conversion_matrices(W, A, B), A, 8, 8)
    for matrix in ("A", "B"):
        torch.testing.assert_close(maps[matrix], torch.ones(L, L).double())


def gaussian(*shape, seed=0):
    return subspace.gaussian(shape, torch.Generator().manual_seed(seed))


def oracle(W, A, B, i, j):
    """phi of conversion matrices pair by pair, by an explicit inverse and full SVDs in NumPy."""
    bases = {"A": [], "B": [], "BA": []}
    for w, a, b in zip(W.numpy(), A.numpy(), B.numpy(), strict=True):
        inverse = np.linalg.inv(w)
        for name, X in (("A", inverse @ a.T), ("B", inverse @ b), ("BA", inverse @ (b @ a))):
            bases[name].append(np.linalg.svd(X)[0])
    maps = {}
    for name, us in bases.items():
        maps[name] = np.array(
            [[np.linalg.norm(u[:, :i].T @ v[:, :j]) ** 2 / min(i, j) for v in us] for u in us]
        )
    return maps


@pytest.mark.parametrize(("i", "j"), [(3, 3), (2, 3), (3, 1)])
def test_batched_maps_agree_with_a_slow_oracle(i, j):
    W, A, B = gaussian(4, 10, 10), gaussian(5, 4, 3, 10, seed=1), gaussian(5, 4, 10, 3)
    maps = subspace.conversion_maps(*subspace.conversion_matrices(W, A, B), A, i, j)
    for run in range(5):
        for name, expected in oracle(W, A[run], B[run], i, j).items():
            np.testing.assert_allclose(maps[name][run].numpy(), expected, atol=1e-10)


def test_phi_of_a_subspace_with_itself_is_one():
    U = subspace.left_basis(gaussian(5, 20, 4), 4)
    torch.testing.assert_close(subspace.phi(U, U, 4, 4), torch.ones(5).double())
    torch.testing.assert_close(subspace.phi(U, U, 2, 4), torch.ones(5).double())


def test_phi_of_orthogonal_subspaces_is_zero():
    eye = torch.eye(6).double()
    assert subspace.phi(eye[:, :2], eye[:, 3:], 2, 3) == 0


def test_phi_does_not_change_when_both_spaces_are_rotated():
    X, Y = gaussian(20, 4, seed=1), gaussian(20, 4, seed=2)
    rotation = torch.linalg.qr(gaussian(20, 20, seed=3))[0]

    def similarity(X, Y):
        return subspace.phi(subspace.left_basis(X, 3), subspace.left_basis(Y, 3), 3, 3)

    torch.testing.assert_close(similarity(rotation @ X, rotation @ Y), similarity(X, Y))
    assert (similarity(rotation @ X, Y) - similarity(X, Y)).abs() > 1e-3


def test_left_space_of_the_product_is_that_of_b_only_when_all_vectors_are_taken():
    A_X, B_X, A_Y, B_Y = (
        gaussian(*shape, seed=n) for n, shape in enumerate([(3, 20), (20, 3)] * 2)
    )
    whole = subspace.adapter_phi(A_X, B_X, A_Y, B_Y, 3, 3)
    torch.testing.assert_close(whole["B"], whole["delta_W"])
    part = subspace.adapter_phi(A_X, B_X, A_Y, B_Y, 2, 2)
    assert (part["B"] - part["delta_W"]).abs() > 1e-4


@pytest.mark.parametrize(("i", "j"), [(4, 4), (2, 4), (4, 1)])
def test_random_subspaces_have_the_expected_phi(i, j):
    found = subspace.random_phi(
        (50, 40, 4), i, j, draws=40, generator=torch.Generator().manual_seed(0)
    )
    assert found.shape == (40, 50)
    # 2,000 draws with a deviation below 0.06 each: four standard errors are below 0.006.
    assert found.mean().item() == pytest.approx(max(i, j) / 40, abs=0.006)
    assert subspace.expected_random_phi(8, 8, 768) == pytest.approx(0.0104, abs=5e-5)


def test_random_baselines_follow_their_generator_and_nothing_else():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return subspace.random_phi((3, 20, 4), 4, 4, draws=2, generator=generator).numpy().tobytes()

    torch.manual_seed(1)
    first = draw(5)
    torch.manual_seed(2)
    assert draw(5) == first
    assert draw(6) != first


def test_float32_input_is_computed_in_float64():
    X = gaussian(20, 4).float()
    assert subspace.left_basis(X, 4).dtype == torch.float64
    W, A, B = gaussian(2, 4, 4).float(), gaussian(2, 1, 4).float(), gaussian(2, 4, 1).float()
    assert subspace.conversion_matrices(W, A, B)[0].dtype == torch.float64


def test_a_space_of_too_low_rank_is_undefined_and_not_invented():
    X = torch.stack([gaussian(20, 4), torch.zeros(20, 4).double(), gaussian(20, 1).expand(20, 4)])
    U = subspace.left_basis(X, 2)
    assert U.isnan().any(dim=(-2, -1)).tolist() == [False, True, True]
    assert not subspace.left_basis(X[2], 1).isnan().any()
    product = subspace.left_basis_of_product(X, gaussian(3, 4, 20), 2)
    assert product.isnan().any(dim=(-2, -1)).tolist() == [False, True, True]


@pytest.mark.parametrize("spoil", ["rank", "zero", "nan"])
def test_singular_weights_are_named(spoil):
    W = gaussian(3, 8, 8)
    W[1] = {"rank": W[1, :, :1] @ W[1, :1], "zero": 0 * W[1], "nan": W[1] * torch.nan}[spoil]
    with pytest.raises(subspace.NotInvertible, match="layer 2 "):
        subspace.conversion_matrices(W, gaussian(3, 2, 8), gaussian(3, 8, 2))
    with pytest.raises(subspace.NotInvertible, match="layer 12 "):
        subspace.conversion_matrices(W, gaussian(3, 2, 8), gaussian(3, 8, 2), layers=[10, 12, 14])


@pytest.mark.parametrize(("d_out", "d_in"), [(12, 7), (7, 12)])
def test_rectangular_weights_give_the_solutions_of_smallest_norm(d_out, d_in):
    W, A, B = gaussian(3, d_out, d_in), gaussian(2, 3, 4, d_in), gaussian(2, 3, d_out, 4, seed=1)
    conversion_A, conversion_B = subspace.conversion_matrices(W, A, B)
    assert conversion_A.shape == (2, 3, d_out, 4) and conversion_B.shape == (2, 3, d_in, 4)
    for run in range(2):
        for layer in range(3):
            pseudo_inverse = np.linalg.pinv(W[layer].numpy())
            for ours, theirs in (
                (conversion_A, pseudo_inverse.T @ A[run, layer].numpy().T),
                (conversion_B, pseudo_inverse @ B[run, layer].numpy()),
            ):
                np.testing.assert_allclose(ours[run, layer].numpy(), theirs, atol=1e-10)


@pytest.mark.parametrize(("d_out", "d_in"), [(12, 7), (7, 12)])
def test_one_map_of_rectangular_weights_is_recovered_where_the_system_allows(d_out, d_in):
    W = gaussian(3, d_out, d_in)
    theta_A, theta_B = gaussian(4, d_out, seed=1), gaussian(4, d_in, seed=2)
    found = subspace.conversion_matrices(W, theta_A @ W, W @ theta_B.mT)
    # A wide W keeps all of theta_A, a tall one all of theta_B; of the other, a part.
    whole, theta = (0, theta_A) if d_out < d_in else (1, theta_B)
    torch.testing.assert_close(found[whole], theta.mT.expand(3, -1, -1))
    assert found[1 - whole].shape[-2] == max(d_out, d_in)
    assert (found[1 - whole][0] - found[1 - whole][1]).abs().max() > 0.1


@pytest.mark.parametrize("spoil", ["rank", "nan"])
def test_rectangular_weights_without_full_rank_are_named(spoil):
    W = gaussian(3, 8, 5)
    W[2] = {"rank": W[2, :, :1] @ W[2, :1], "nan": W[2] * torch.nan}[spoil]
    with pytest.raises(subspace.NotInvertible, match="layer 9 "):
        subspace.conversion_matrices(W, gaussian(3, 2, 5), gaussian(3, 8, 2), layers=[7, 8, 9])


def test_means_of_a_heat_map_are_over_pairs_of_two_layers():
    """Five layers: the middle one is in neither half."""
    phi = torch.eye(5) + 10 * torch.arange(5.0) * (1 - torch.eye(5))  # column m holds 10 m
    expected = [20.0, 35.0, 5.0]  # columns 0 to 4, 3 and 4, 0 and 1
    assert subspace.means_of_pairs(phi.expand(2, 5, 5)).tolist() == [expected, expected]
    whole, deep, shallow = subspace.means_of_pairs(torch.full((3, 3), 0.5)).tolist()
    assert whole == 0.5 and np.isnan(deep) and np.isnan(shallow)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="cannot take 5"):
        subspace.left_basis(gaussian(20, 4), 5)
    with pytest.raises(ValueError, match="i = 3 and j = 0"):
        subspace.phi(gaussian(20, 4), gaussian(20, 4), 3, 0)


def test_which_conversion_matrix_keeps_its_similarity_in_another_basis():
    """W^-1 B under any outputs, W^-T A' under any inputs; the paper's W^-1 A' not even under rotations of one side."""
    D, R, generator = 12, 2, torch.Generator().manual_seed(3)
    shapes = ((L, D, D), (L, R, D), (L, D, R), (L, D, D), (D, D))
    W, A, B, M, free = (subspace.gaussian(shape, generator) for shape in shapes)
    rotation = torch.linalg.qr(free).Q

    def maps(W, A, B):
        X = subspace.conversion_matrices(W, A, B)
        transposed = subspace.conversion_matrices(W.mT, A, A.mT)[1]
        bases = [subspace.left_basis(x, R) for x in (X[0], transposed, X[1])]
        return [subspace.phi_map(U, U, R, R) for U in bases]

    of_A, of_A_transposed, of_B = maps(W, A, B)
    outputs = maps(M @ W, A, M @ B)
    torch.testing.assert_close(outputs[2], of_B)
    inputs = maps(W @ M, A @ M, B)
    torch.testing.assert_close(inputs[1], of_A_transposed)
    off = ~torch.eye(L, dtype=torch.bool)
    for changed in (maps(rotation @ W, A, rotation @ B), maps(W @ rotation, A @ rotation, B)):
        torch.testing.assert_close(changed[1], of_A_transposed)
        torch.testing.assert_close(changed[2], of_B)
        assert (changed[0] - of_A)[off].abs().max() > 0.01
