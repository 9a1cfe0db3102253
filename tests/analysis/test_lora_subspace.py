"""phi over all (i, j): closed forms, a slow oracle, the golden tensors, and planted adapters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from analysis.maths import lora_subspace, subspace
from analysis.maths.lora_subspace import RANKS, SEEDS, phi_all
from analysis.present import lora_subspace as present_lora_subspace
from condlora.tuner.methods.condlora import make_factors
from tests.analysis.planted import LAYERS, WIDTH, gaussian, ranked_cell, stack

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "analysis.safetensors"


def basis(*shape, seed):
    return subspace.left_basis(gaussian(*shape, seed=seed), shape[-1])


def test_identical_spaces_are_similar_at_every_i_and_j():
    U = basis(2, 20, 5, seed=1)
    torch.testing.assert_close(phi_all(U, U), torch.ones(2, 5, 5).double())


def test_orthogonal_spaces_are_unlike_at_every_i_and_j():
    eye = torch.eye(9).double()
    assert phi_all(eye[:, :4], eye[:, 4:]).abs().max() == 0


def test_one_shared_direction_counts_only_from_its_place_on():
    """It is the second of X and the third of Y: 1 / min(i, j) from (2, 3) on, 0 before."""
    eye = torch.eye(9).double()
    found = phi_all(eye[:, [0, 1, 2]], eye[:, [3, 4, 1, 5]])
    expected = [[0, 0, 0, 0], [0, 0, 1 / 2, 1 / 2], [0, 0, 1 / 3, 1 / 3]]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_random_spaces_have_phi_of_the_larger_count_over_the_dimension():
    X, Y = basis(600, 30, 3, seed=2), basis(600, 30, 6, seed=3)
    i, j = np.indices((3, 6)) + 1
    # 600 draws, a deviation below 0.05 each: five standard errors are 0.01.
    np.testing.assert_allclose(phi_all(X, Y).mean(dim=0), np.maximum(i, j) / 30, atol=0.01)


def test_all_counts_at_once_agree_with_a_slow_oracle():
    A_X, A_Y = gaussian(4, 20, seed=4), gaussian(7, 20, seed=5)
    U, V = (np.linalg.svd(A.numpy())[2].T for A in (A_X, A_Y))
    found = phi_all(subspace.right_basis(A_X, 4), subspace.right_basis(A_Y, 7))
    for i in range(1, 5):
        for j in range(1, 8):
            slow = np.linalg.norm(U[:, :i].T @ V[:, :j], "fro") ** 2 / min(i, j)
            assert found[i - 1, j - 1] == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize(("i", "j"), [(8, 8), (4, 4), (4, 8), (1, 1)])
@pytest.mark.parametrize("kind", ["q", "v"])
def test_places_of_the_map_are_the_authors_numbers(i, j, kind):
    golden = load_file(GOLDEN)
    X = torch.stack([golden[f"conversion.A.layer{n}.{kind}.f64"] for n in range(6)])
    U = subspace.left_basis(X, 8)
    ours = phi_all(U[:, None], U[None])[..., i - 1, j - 1]
    theirs = golden[f"phi.left.i{i}j{j}.A.{kind}.f64"]
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


@pytest.fixture
def stacks():
    """LoRA at ranks 2 and 8, two seeds and two tasks; A of all of them shares one strong direction."""
    found = []
    for n, r in enumerate((2, 8)):
        cells = [
            ranked_cell(task, f"lora_r{r}", seed, r) for task in ("rte", "sst2") for seed in (0, 1)
        ]
        made = stack(f"lora_r{r}", r, cells, seed=n)
        made.A[:, :, 0] += 30 * gaussian(LAYERS, WIDTH, seed=9)
        found.append(made)
    return found


@pytest.fixture
def result(stacks, settings):
    return lora_subspace.compare(stacks, settings)


def test_ranks_are_compared_within_task_and_seed(result, stacks):
    (found,) = result.between(RANKS)
    assert (found.method, found.module, found.matrix, found.counts) == (
        "lora",
        "value",
        "A",
        (2, 8),
    )
    assert found.pairs == [("rte", 0, 0), ("rte", 1, 1), ("sst2", 0, 0), ("sst2", 1, 1)]
    U, V = (subspace.right_basis(s.A[2], r) for s, r in zip(stacks, (2, 8), strict=True))
    np.testing.assert_allclose(found.phi[2], phi_all(U, V))


def test_a_shared_direction_is_found_and_what_is_not_shared_is_not(result):
    by_matrix = {c.matrix: c for c in result.between(SEEDS)}
    assert by_matrix["A"].at(1, 1).mean() > 0.9
    assert by_matrix["delta_W"].at(8, 8).mean() == pytest.approx(8 / WIDTH, abs=0.05)
    assert result.between(RANKS)[0].at(1, 1).mean() > 0.9
    assert result.between(RANKS)[0].random_at(1, 1) < 0.2


def test_seeds_are_compared_within_a_task_at_the_highest_rank_in_both_orders(result, stacks):
    a, delta = result.between(SEEDS)
    assert (a.matrix, delta.matrix) == ("A", "delta_W")
    assert a.pairs == [("rte", 0, 1), ("sst2", 0, 1)] and a.counts == (8, 8)
    np.testing.assert_allclose(a.phi, a.phi.swapaxes(-1, -2))
    products = stacks[1].B @ stacks[1].A
    U, V = (subspace.left_basis(products[n], 8) for n in (0, 1))
    both = (phi_all(U, V) + phi_all(V, U)) / 2
    np.testing.assert_allclose(delta.phi[0], both, atol=1e-9)


def test_a_lower_rank_serves_where_the_highest_has_one_seed(stacks, settings):
    cells = stacks[1].cells[:1]
    alone = replace(stacks[1], A=stacks[1].A[:1], B=stacks[1].B[:1], cells=cells)
    found = lora_subspace.compare([stacks[0], alone], settings)
    assert {c.counts for c in found.between(SEEDS)} == {(2, 2)}
    assert found.between(RANKS)[0].pairs == [("rte", 0, 0)]


def test_what_the_runs_do_not_allow_is_said(stacks, settings, tmp_path):
    cells = stacks[0].cells[:1]
    alone = replace(stacks[0], A=stacks[0].A[:1], B=stacks[0].B[:1], cells=cells)
    found = lora_subspace.compare([alone], settings)
    assert found.comparisons == [] and len(found.notes) == 2
    section = present_lora_subspace.section(found, tmp_path)
    assert section.text == found.notes and not section.shown and not list(tmp_path.iterdir())


def test_beside_condlora_stand_gaussian_maps_through_its_own_weights(settings):
    """With nothing learned two CondLoRAs are as similar as W0 makes them: more than Gaussian ones."""
    cells = [ranked_cell("rte", "condlora", seed, 4) for seed in (0, 1)]
    made = stack("condlora", 4, cells)
    # All but four directions of W0 are nearly nothing: whatever passes through it lies there.
    shrink = torch.cat([torch.ones(4), torch.full((WIDTH - 4,), 1e-3)]).double()
    W = made.W * shrink[:, None]
    factors = [
        make_factors(w, gaussian(4, WIDTH, seed=n), gaussian(4, WIDTH, seed=n + 9), "code")
        for n in (0, 1)
        for w in W
    ]
    A, B = (torch.stack([f[k] for f in factors]).unflatten(0, (2, LAYERS)) for k in (0, 1))
    found = lora_subspace.compare([replace(made, W=W, A=A, B=B)], settings)
    for comparison in found.between(SEEDS):
        assert comparison.at(4, 4).mean() > 0.99
        assert comparison.random_at(4, 4) > 0.99
    as_lora = lora_subspace.compare([replace(made, adapter="lora", W=W, A=A, B=B)], settings)
    assert as_lora.between(SEEDS)[0].random_at(4, 4) == pytest.approx(4 / WIDTH, abs=0.05)


@pytest.mark.parametrize("form", ["code", "literal", "consistent"])
def test_random_condlora_is_of_the_form_of_its_runs_and_shares_its_maps_over_layers(form):
    cell = ranked_cell("rte", "condlora", 0, 4)
    cell.record["recipe"]["adapter"]["config"]["form"] = form
    made = stack("condlora", 4, [cell])
    A, B = lora_subspace.gaussian_factors(made, 4, 3, torch.Generator().manual_seed(0))
    assert A.shape == (3, LAYERS, 4, WIDTH) and B.shape == (3, LAYERS, WIDTH, 4)
    theta_A = A @ torch.linalg.inv(made.W if form == "consistent" else made.W.mT)
    theta_B = torch.linalg.inv(made.W.mT if form == "literal" else made.W) @ B
    for theta in (theta_A, theta_B):
        torch.testing.assert_close(theta, theta[:, :1].expand_as(theta))
        assert (theta[0] - theta[1]).abs().max() > 0.1


@pytest.mark.slow
def test_figures_hold_the_means_and_are_byte_equal_on_repeat(result, tmp_path):
    paths = present_lora_subspace.draw(result, tmp_path / "first")
    assert set(paths) == {f"lora_subspace_{what}" for what in ("ranks", "seeds", "tasks")}
    present_lora_subspace.draw(result, tmp_path / "second")
    files = sorted((tmp_path / "first").iterdir())
    assert len(files) == 9
    for path in files:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    lines = (tmp_path / "first" / "lora_subspace_ranks.csv").read_text().splitlines()
    assert lines[0] == "matrix,module,method,source,i,j,phi,n"
    assert len(lines) == 1 + 2 * 2 * 8
    place = next(line.split(",") for line in lines if ",trained,2,5," in line)
    assert float(place[6]) == pytest.approx(result.between(RANKS)[0].at(2, 5).mean(), rel=1e-6)


def test_tables_give_every_pair_and_layer_behind_their_means(result):
    table = present_lora_subspace.table(result)
    (ranks,) = result.between(RANKS)
    row = table.rows[0]
    assert row[:4] == ["r = 2 and r = 8", "value", "A", "LoRA"]
    assert row[4].startswith(f"{ranks.at(1, 1).mean():.4f} ± ") and row[4].endswith("(4)")
    whole = table.data[(table.data.compared == RANKS) & (table.data.j == 8)]
    assert len(whole) == 4 * LAYERS
    np.testing.assert_allclose(whole.phi, ranks.at(2, 8).ravel())
    by_layer = present_lora_subspace.table_by_layer(result)
    assert by_layer.header[-4:] == ["1", "2", "3", "random"]
