"""One linear map of W0: recognised where it was planted, and at chance where there is none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from analysis.maths import linear_map, subspace
from analysis.maths.layers import PART
from analysis.maths.linear_map import GAUSSIAN, OTHER_LAYER, RANDOM, SHARED, TRAINED
from analysis.present import linear_map as present_linear_map
from analysis.stats.matrix_parts import linear_map_above_gaussian
from analysis.stats.rules import HOLDS, NOT_RESOLVED, load_rules
from analysis.study.selection import Settings
from analysis.study.stacks import Stack

THRESHOLDS = load_rules()[0]
SETTINGS = Settings(i=None, j=None, baseline_seed=0, baseline_draws=20)
L, d, r, RUNS = 6, 40, 3, 4


def gaussian(*shape, seed=0):
    return subspace.gaussian(shape, torch.Generator().manual_seed(seed))


def stack_of(W, A, B, adapter="lora"):
    cells = [SimpleNamespace(task="rte", seed=n) for n in range(len(A))]
    return Stack(adapter, "value", list(range(1, len(W) + 1)), W, A, B, cells)


def left_out(result, form, source):
    v = result.values
    return v.left_out[(v.form == form) & (v.source == source)].to_numpy()


def oracle(M, X):
    """The same fit for one run by SciPy's generalised eigenproblem on d x d matrices."""
    M = [m / np.linalg.norm(m) for m in M]
    bases = [np.linalg.svd(x, full_matrices=False)[0] for x in X]

    def phi_of_fit(fitted_on, layer):
        inside = sum(M[n].T @ bases[n] @ bases[n].T @ M[n] for n in fitted_on)
        T = eigh(inside, sum(M[n].T @ M[n] for n in fitted_on))[1][:, -r:]
        U = np.linalg.svd(M[layer] @ T, full_matrices=False)[0]
        share = np.linalg.norm(U.T @ X[layer]) ** 2 / np.linalg.norm(X[layer]) ** 2
        return np.linalg.norm(U.T @ bases[layer]) ** 2 / r, share

    layers = range(len(M))
    fitted = [phi_of_fit(layers, layer)[0] for layer in layers]
    return fitted, *zip(
        *(phi_of_fit([n for n in layers if n != m], m) for m in layers), strict=True
    )


def test_no_matrix_is_the_identity_in_all_layers():
    X = gaussian(2, L, d, r, seed=1)
    found = linear_map.explained(None, X)
    for n in range(2):
        for ours, theirs in zip(found, oracle([np.eye(d)] * L, X[n].numpy()), strict=True):
            np.testing.assert_allclose(ours[n], theirs, atol=1e-7)


def test_a_set_of_matrices_has_the_value_that_it_has_alone():
    M, X = gaussian(L, d, d), gaussian(2 * PART + 1, L, d, r, seed=1)
    alone = torch.cat([linear_map.left_out(M, x[None]) for x in X])
    torch.testing.assert_close(linear_map.left_out(M, X), alone)


@pytest.mark.parametrize("shape", [(L, d, d), (L, d, 25)])
def test_the_fit_is_the_generalised_eigenproblem_it_claims_to_be(shape):
    M, X = gaussian(*shape), gaussian(2, L, d, r, seed=1)
    M[0] *= 100  # a layer of large weights counts as any other
    found = linear_map.explained(M, X)
    for run in range(2):
        for ours, theirs in zip(found, oracle(M.numpy(), X[run].numpy()), strict=True):
            np.testing.assert_allclose(ours[run].numpy(), theirs, atol=1e-6)


@pytest.fixture(scope="module")
def planted():
    """A = G theta W' and B = W theta' G with another invertible G in every layer and run."""
    W = gaussian(L, d, d)
    theta_A, theta_B = gaussian(RUNS, 1, r, d, seed=1), gaussian(RUNS, 1, r, d, seed=2)
    G = gaussian(RUNS, L, r, r, seed=3)
    stack = stack_of(W, G @ (theta_A @ W.mT), (W @ theta_B.mT) @ G)
    return linear_map.linear_maps([stack], SETTINGS)


@pytest.mark.parametrize("form", ["A_code", "B"])
def test_a_planted_map_explains_layers_that_it_was_not_fitted_on(planted, form):
    np.testing.assert_allclose(left_out(planted, form, TRAINED), 1, atol=1e-6)
    for source in (OTHER_LAYER, RANDOM, SHARED, GAUSSIAN):
        assert left_out(planted, form, source).mean() < 2.5 * r / d, source
    part = next(
        p
        for p in linear_map_above_gaussian(planted.values, THRESHOLDS)
        if p.name == f"value {form[0]}"
    )
    assert part.verdict == HOLDS


def test_a_map_of_the_other_side_of_w0_is_not_found(planted):
    assert left_out(planted, "A_consistent", TRAINED).mean() < 2.5 * r / d
    parts = linear_map_above_gaussian(planted.values, THRESHOLDS)
    assert {part.name for part in parts} == {"value A", "value B"}  # A in the form of the code
    text = present_linear_map.statement(planted, THRESHOLDS)[0]
    assert "than of Gaussian A and B: holds" in text and "value B 1.000" in text


def test_a_planted_map_under_noise_explains_a_part():
    W, noise = gaussian(L, d, d), gaussian(RUNS, L, d, r, seed=5)
    clean = W @ gaussian(RUNS, 1, d, r, seed=1)
    B = clean / clean.std() + 0.5 * noise
    result = linear_map.linear_maps([stack_of(W, gaussian(RUNS, L, r, d, seed=4), B)], SETTINGS)
    # Half the amplitude in noise leaves a squared cosine of at most 1 / (1 + 0.25) = 0.8.
    assert 0.5 < left_out(result, "B", TRAINED).mean() < 0.8


def test_independent_adapters_are_at_chance():
    stack = stack_of(
        gaussian(L, d, d), gaussian(RUNS, L, r, d, seed=1), gaussian(RUNS, L, d, r, seed=2)
    )
    result = linear_map.linear_maps([stack], SETTINGS)
    for form in ("A_code", "A_consistent", "B"):
        assert result.chance["value", form] == r / d
        # 20 draws of 6 layers with a deviation below 0.05 each: four standard errors are 0.02.
        assert left_out(result, form, GAUSSIAN).mean() == pytest.approx(r / d, abs=0.02)
        assert left_out(result, form, TRAINED).mean() == pytest.approx(r / d, abs=0.04)
    v = result.values
    assert (v.fitted > 1.5 * r / d).all()  # fitted on the layers themselves, anything is explained
    assert (
        "It explains most of them (more than 0.5): does not hold"
        in present_linear_map.statement(result, THRESHOLDS)[0]
    )


def test_one_span_for_all_layers_needs_no_w0():
    B = gaussian(RUNS, 1, d, r, seed=1) @ gaussian(RUNS, L, r, r, seed=2)
    result = linear_map.linear_maps(
        [stack_of(gaussian(L, d, d), gaussian(RUNS, L, r, d, seed=3), B)], SETTINGS
    )
    np.testing.assert_allclose(left_out(result, "B", SHARED), 1, atol=1e-6)
    assert left_out(result, "B", TRAINED).mean() < 0.5


def test_rectangular_weights_have_the_consistent_form_alone():
    W, theta = gaussian(L, d, 30), gaussian(RUNS, 1, r, d, seed=1)
    result = linear_map.linear_maps(
        [stack_of(W, theta @ W, gaussian(RUNS, L, d, r, seed=2))], SETTINGS
    )
    assert set(result.values.form) == {"A_consistent", "B"}
    np.testing.assert_allclose(left_out(result, "A_consistent", TRAINED), 1, atol=1e-6)
    assert result.chance["value", "A_consistent"] == r / 30


def test_an_undefined_adapter_is_undefined_and_spoils_no_other():
    B = gaussian(RUNS, L, d, r, seed=2)
    B[1, 3] = 0
    result = linear_map.linear_maps(
        [stack_of(gaussian(L, d, d), gaussian(RUNS, L, r, d), B)], SETTINGS
    )
    assert np.isnan(left_out(result, "B", TRAINED)).tolist() == [False, True, False, False]
    assert np.isfinite(left_out(result, "B", GAUSSIAN)).all()
    parts = {p.name: p for p in linear_map_above_gaussian(result.values, THRESHOLDS)}
    assert parts["value B"].verdict == NOT_RESOLVED


def test_only_lora_of_two_layers_or_more_is_asked():
    W, A, B = gaussian(L, d, d), gaussian(RUNS, L, r, d), gaussian(RUNS, L, d, r)
    stacks = [stack_of(W, A, B, "condlora"), stack_of(W[:1], A[:, :1], B[:, :1])]
    result = linear_map.linear_maps(stacks, SETTINGS)
    assert (
        result.values.empty
        and "no linear map" in present_linear_map.statement(result, THRESHOLDS)[0]
    )
    assert present_linear_map.section(result, THRESHOLDS).shown == []


def test_the_same_seed_gives_the_same_table(planted):
    W, A, B = gaussian(L, d, d), gaussian(RUNS, L, r, d), gaussian(RUNS, L, d, r)
    tables = [
        present_linear_map.table(linear_map.linear_maps([stack_of(W, A, B)], SETTINGS))
        for _ in range(2)
    ]
    assert tables[0].rows == tables[1].rows and len(tables[0].rows) == 3 * 5
    assert tables[0].rows[0][:3] == ["value", "A = θW₀′", "trained, own W₀"]
