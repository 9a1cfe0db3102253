"""The LoRA paper's table 7: norms worked by hand, a slow oracle, and what random directions give."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.maths import amplification, subspace
from analysis.maths.amplification import GAUSSIAN_MAPS
from analysis.present import amplification as present_amplification
from tests.analysis.planted import LAYERS, WIDTH, gaussian, ranked_cell, stack


def test_norm_of_the_product_is_that_of_the_product_formed():
    B, A = gaussian(2, 3, 12, 4, seed=1), gaussian(2, 3, 4, 9, seed=2)
    ours = amplification.product_norm(B, A)
    torch.testing.assert_close(ours, torch.linalg.matrix_norm(B @ A))
    assert amplification.product_norm(0 * B, A).abs().max() == 0


def test_random_directions_meet_the_stated_part_of_a_weight():
    W = gaussian(1, 12, 20, seed=3) * torch.linspace(3, 0.1, 20)
    U = subspace.left_basis(gaussian(4000, 1, 12, 3, seed=4), 3)
    V = subspace.left_basis(gaussian(4000, 1, 20, 3, seed=5), 3)
    drawn = amplification.projected_norm(W, U, V).square().mean().sqrt().item()
    stated = amplification.random_projected_norm(W, 3).item()
    assert stated == pytest.approx(3 * W.norm().item() / 240**0.5)
    assert drawn == pytest.approx(stated, rel=0.02)


@pytest.mark.parametrize("shape", [(2, 10, 10), (2, 8, 14), (2, 14, 8)])
def test_directions_and_energies_are_those_of_an_svd(shape):
    W = gaussian(*shape, seed=6)
    U, energy = amplification.left_directions(W)
    exact_U, exact_S, _ = np.linalg.svd(W.numpy())
    k = min(shape[1:])
    np.testing.assert_allclose(energy[:, :k], exact_S**2, rtol=1e-9)
    for ours, theirs in zip(U.numpy(), exact_U, strict=True):  # a singular vector's sign is free
        overlap = np.abs(np.diag(ours[:, :k].T @ theirs[:, :k]))
        np.testing.assert_allclose(overlap, 1, atol=1e-9)


@pytest.fixture
def by_hand():
    """W = diag(24, 23 ... 1); delta W = 2 e3 e3' in every layer, with s = 8 / 2."""
    made = stack("lora_r2", 2, [ranked_cell("rte", "lora_r2", 0, 2)])
    W = torch.diag(torch.arange(WIDTH, 0, -1.0)).double().expand(LAYERS, WIDTH, WIDTH).clone()
    A = torch.zeros(1, LAYERS, 2, WIDTH).double()
    B = torch.zeros(1, LAYERS, WIDTH, 2).double()
    A[..., 0, 2] = A[..., 1, 4] = 1
    B[..., 2, 0] = 0.5
    B[..., 4, 1] = 0.25
    return replace(made, W=W, A=A, B=B)


def test_a_case_worked_by_hand(by_hand, settings):
    found = amplification.amplify([by_hand], settings)
    row = found.values.iloc[0]
    assert (row.method, row.r, row.task, row.seed, row.layer) == ("lora", 2, "rte", 0, 1)
    # U and V are e3 and e5: U' W V = diag(22, 20). delta W = 4 diag(0.5, 0.25) there.
    assert row.within_delta_W == pytest.approx((22**2 + 20**2) ** 0.5)
    assert row.within_W == pytest.approx((24**2 + 23**2) ** 0.5)
    assert row.norm_W == pytest.approx(sum(n * n for n in range(1, 25)) ** 0.5)
    assert row.norm_delta_W == pytest.approx((2**2 + 1**2) ** 0.5)
    assert row.amplification == pytest.approx(5**0.5 / 884**0.5)
    share = found.shares["lora", "value"][0, 0]
    np.testing.assert_allclose(share[:6], [0, 0, 0.5, 0.5, 1, 1], atol=1e-12)


def test_shares_count_the_first_and_the_last_tenth_of_directions(by_hand, settings):
    """A tenth of 24 is 2: e2 lies in the first and e23 in the last, e3 and e22 in neither."""
    for place, ends in ((1, (0.5, 0)), (2, (0, 0)), (21, (0, 0)), (22, (0, 0.5))):
        B = torch.zeros_like(by_hand.B)
        B[..., place, 0], B[..., 12, 1] = 1, 0.5
        row = amplification.amplify([replace(by_hand, B=B)], settings).values.iloc[0]
        assert (row.first_tenth, row.last_tenth) == pytest.approx(ends, abs=1e-12)


@pytest.fixture
def stacks():
    return [
        stack(f"{method}_r{r}", r, [ranked_cell("rte", f"{method}_r{r}", s, r) for s in (0, 1)], n)
        for n, (method, r) in enumerate((m, r) for m in ("lora", "condlora") for r in (2, 8))
    ]


def test_every_run_and_layer_agrees_with_a_slow_oracle(stacks, settings):
    found = amplification.amplify(stacks, settings).values
    for made in stacks:
        method, r = made.adapter.split("_r")
        for n, cell in enumerate(made.cells):
            for k, layer in enumerate(made.layers):
                W, delta = made.W[k].numpy(), 8 / int(r) * (made.B[n, k] @ made.A[n, k]).numpy()
                U, _, Vh = np.linalg.svd(delta)
                within = np.linalg.norm(U[:, : int(r)].T @ W @ Vh[: int(r)].T)
                row = found[
                    (found.method == method)
                    & (found.r == int(r))
                    & (found.seed == cell.seed)
                    & (found.layer == layer)
                ]
                assert row.within_delta_W.item() == pytest.approx(within)
                assert row.norm_delta_W.item() == pytest.approx(np.linalg.norm(delta))
                assert row.amplification.item() == pytest.approx(np.linalg.norm(delta) / within)


def test_an_update_of_nothing_has_no_factor_and_no_direction(by_hand, settings):
    found = amplification.amplify([replace(by_hand, B=0 * by_hand.B)], settings)
    assert (found.values.norm_delta_W == 0).all()
    assert found.values[["within_delta_W", "amplification", "first_tenth"]].isna().all().all()
    assert "–" in present_amplification.table(found).rows[0]


def test_condlora_has_random_maps_beside_it_and_lora_has_not(stacks, settings):
    found = amplification.amplify(stacks, settings)
    assert found.kinds == [
        ("value", method, r) for method in ("lora", "condlora", GAUSSIAN_MAPS) for r in (2, 8)
    ]
    control = found.values[found.values.method == GAUSSIAN_MAPS]
    assert control[["norm_delta_W", "amplification"]].isna().all().all()
    assert control.within_delta_W.notna().all()
    again = amplification.amplify(stacks, settings).values
    assert again.equals(found.values)


def test_random_maps_lean_to_the_leading_directions_as_w_does(stacks, settings):
    shrink = torch.cat([torch.ones(4), torch.full((WIDTH - 4,), 1e-3)]).double()
    flat = [replace(s, W=s.W * shrink[:, None]) for s in stacks]
    found = amplification.amplify(flat, settings).shares
    assert found[GAUSSIAN_MAPS, "value"][..., 7].min() > 0.5 - 1e-6
    assert found["lora", "value"][..., 7].mean() == pytest.approx(8 / WIDTH, abs=0.05)


def test_the_factor_of_a_table_is_the_quotient_of_means_over_layers(stacks, settings):
    found = amplification.amplify(stacks, settings)
    v = found.values[(found.values.method == "lora") & (found.values.r == 8)]
    means = v.groupby("seed")[["norm_delta_W", "within_delta_W"]].mean()
    factor = (means.norm_delta_W / means.within_delta_W).mean()
    table = present_amplification.table(found)
    row = next(row for row in table.rows if row[1] == "LoRA")
    assert row[2:4] == ["8", "2"] and row[9].startswith(f"{factor:.3f} ± ")
    assert set(table.data.r) == {8}
    assert len(present_amplification.table_by_rank(found).rows) == 6
    assert len(present_amplification.table_by_layer(found).rows) == 4


def test_figure_is_byte_equal_on_repeat_and_its_csv_says_what_is_drawn(stacks, settings, tmp_path):
    found = amplification.amplify(stacks, settings)
    first = present_amplification.draw(found, tmp_path / "first")
    present_amplification.draw(found, tmp_path / "second")
    for path in first.parent.iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    lines = first.with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "module,method,direction,share,lowest_layer,highest_layer"
    assert len(lines) == 1 + 3 * WIDTH


def test_section_says_each_method_in_a_sentence(stacks, settings, tmp_path):
    section = present_amplification.section(amplification.amplify(stacks, settings), tmp_path)
    starts = [line.split(",")[0] for line in section.text]
    assert starts == ["LoRA", "CondLoRA", "Gaussian maps"]
    assert [type(item).__name__ for item in section.shown] == ["Table", "Picture"]
    one_rank = [s for s in stacks if s.A.shape[2] == 8]
    section = present_amplification.section(amplification.amplify(one_rank, settings), tmp_path)
    assert [table.name for table in section.details] == ["amplification_by_layer"]
